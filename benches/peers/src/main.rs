//! Peers: `peers iceoryx2 | crossbeam | crossbeam-rate [--runs N]`. Prints one JSON object, as the raw programs.

use std::error::Error;
use std::process::Command;
use std::time::Instant;

use iceoryx2::prelude::*;

type Result<T> = std::result::Result<T, Box<dyn Error>>;


/// How many values to measure: the number after `--runs`, or 10.
fn runs() -> Result<u32> {
    let mut words = std::env::args().skip_while(|word| word != "--runs").skip(1);
    Ok(words.next().map_or(Ok(10), |number| number.parse())?)
}

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args()
        .skip(1)
        .take_while(|word| word != "--runs")
        .collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["iceoryx2"] => iceoryx2(),
        ["iceoryx2", "echo", id] => echo(id),
        ["crossbeam"] => crossbeam(),
        ["crossbeam-rate"] => crossbeam_rate(),
        _ => Err("peers iceoryx2 | crossbeam | crossbeam-rate".into()),
    }
}

fn report(name: &str, unit: &str, values: &[f64], note: &str) {
    println!(r#"{{"name":"{name}","unit":"{unit}","values":{values:?},"note":"{note}"}}"#);
}

/// A publisher and a subscriber of 8 bytes, for one direction each.
macro_rules! service {
    ($node:expr, $name:expr) => {
        $node
            .service_builder(&$name.as_str().try_into()?)
            .publish_subscribe::<u64>()
            .open_or_create()?
    };
}

fn iceoryx2() -> Result<()> {
    const ROUNDS: u64 = 100_000;
    let id = std::process::id().to_string();
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let ping = service!(node, format!("dragon-ping-{id}"));
    let pong = service!(node, format!("dragon-pong-{id}"));
    let publisher = ping.publisher_builder().create()?;
    let subscriber = pong.subscriber_builder().create()?;
    let mut child = Command::new("taskset")
        .args(["-c", "1"])
        .arg(std::env::current_exe()?)
        .args(["iceoryx2", "echo", &id])
        .spawn()?;
    let round = |number: u64| -> Result<()> {
        publisher.loan_uninit()?.write_payload(number).send()?;
        loop {
            if let Some(sample) = subscriber.receive()? {
                assert_eq!(*sample, number);
                return Ok(());
            }
        }
    };
    // Until the other process is there, nobody gets what is published.
    loop {
        publisher.loan_uninit()?.write_payload(u64::MAX - 1).send()?;
        if subscriber.receive()?.is_some() {
            break;
        }
        std::thread::yield_now();
    }
    while subscriber.receive()?.is_some() {}
    std::thread::sleep(std::time::Duration::from_millis(100));
    while subscriber.receive()?.is_some() {}
    let mut values = Vec::new();
    for run in 0..=runs()? {
        let start = Instant::now();
        for number in 0..ROUNDS {
            round(number)?;
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e6 / ROUNDS as f64 / 2.0);
        }
    }
    publisher.loan_uninit()?.write_payload(u64::MAX).send()?;
    child.wait()?;
    report("iceoryx2", "us", &values, "8 B one way, two processes, polling");
    Ok(())
}

fn echo(id: &str) -> Result<()> {
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let ping = service!(node, format!("dragon-ping-{id}"));
    let pong = service!(node, format!("dragon-pong-{id}"));
    let subscriber = ping.subscriber_builder().create()?;
    let publisher = pong.publisher_builder().create()?;
    loop {
        if let Some(sample) = subscriber.receive()? {
            if *sample == u64::MAX {
                return Ok(());
            }
            publisher.loan_uninit()?.write_payload(*sample).send()?;
        }
    }
}

fn crossbeam() -> Result<()> {
    const ROUNDS: u64 = 50_000;
    let (ping, pinged) = crossbeam_channel::bounded::<u64>(256);
    let (pong, ponged) = crossbeam_channel::bounded::<u64>(256);
    std::thread::spawn(move || {
        for number in pinged {
            if pong.send(number).is_err() {
                return;
            }
        }
    });
    let mut values = Vec::new();
    for run in 0..=runs()? {
        let start = Instant::now();
        for number in 0..ROUNDS {
            ping.send(number)?;
            ponged.recv()?;
        }
        if run > 0 {
            values.push(start.elapsed().as_secs_f64() * 1e6 / ROUNDS as f64 / 2.0);
        }
    }
    report("crossbeam", "us", &values, "8 B one way, two threads");
    Ok(())
}

fn crossbeam_rate() -> Result<()> {
    const TOTAL: u64 = 1_000_000;
    let mut values = Vec::new();
    for run in 0..=runs()? {
        let (sender, receiver) = crossbeam_channel::bounded::<[u8; 64]>(256);
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            for _ in 0..TOTAL {
                if sender.send([7; 64]).is_err() {
                    return;
                }
            }
        });
        for _ in 0..TOTAL {
            receiver.recv()?;
        }
        thread.join().map_err(|_| "the sender panicked")?;
        if run > 0 {
            values.push(TOTAL as f64 / start.elapsed().as_secs_f64() / 1e6);
        }
    }
    report("crossbeam-rate", "M/s", &values, "64 B, 1:1, two threads");
    Ok(())
}
