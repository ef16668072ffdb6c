//! A worker that takes the most urgent work first. Run it inside a runtime, or by itself: `cargo run --example priorities`.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use dragon::{Code, Deadline, Error, PriorityQueue, PriorityQueueOptions};

const URGENT: u32 = 0;
const ORDINARY: u32 = 1;

pub(crate) fn main() -> Result<(), Error> {
    let options = PriorityQueueOptions {
        levels: 2,
        capacity: 3,
        ..PriorityQueueOptions::default()
    };
    let work = PriorityQueue::create(&options)?;
    for n in 0..3 {
        let task = format!("picture {n}");
        work.send(ORDINARY, task.as_bytes(), n, Deadline::Never)?;
    }
    // That level is full, the others have their room.
    let refused = work.send(ORDINARY, b"picture 3", 3, Deadline::Now);
    println!("one more: {:?}", refused.map_err(|error| error.code()));
    work.send(URGENT, b"a word from the user", 0, Deadline::Never)?;
    println!("waiting: {:?}", work.state()?.messages);
    loop {
        match work.receive(Deadline::Now) {
            Ok((level, task)) => {
                let text = String::from_utf8_lossy(&task.to_vec()).into_owned();
                println!("level {level}: {text}");
            }
            Err(error) if error.code() == Code::Empty => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
