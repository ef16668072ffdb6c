use std::io::{Read as _, Write as _};

use dragon_protocol::handshake::{ANSWER, Connector};

use super::*;

/// A test that hangs is ended by this; nothing is ever expected to take this long.
const WATCHDOG: Duration = Duration::from_secs(60);

fn node(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

/// Runs a test in the event loop, with the door of a job of three nodes.
fn at_the_door<F: Future>(test: impl FnOnce(Door) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_all().build().unwrap();
    runtime.block_on(async {
        let hosts = ["n0", "n1", "n2"].map(str::to_owned).to_vec();
        let test = timeout(WATCHDOG, test(Door::open(hosts, WATCHDOG).unwrap()));
        assert!(test.await.is_ok(), "the test hangs");
    });
}

fn late() -> Instant {
    Instant::now() + WATCHDOG * 2
}

#[test]
fn what_the_starter_says_arrives_and_so_does_the_end() {
    at_the_door(|mut door| async move {
        let (port, key) = (door.port, door.key.clone());
        let (mut says, mut ended) = door.expect(1).unwrap();
        let admitted = tokio::spawn(door.admit(late()));
        // More than a record, and more than a pipe holds.
        let said: Vec<u8> = (0..300_000_u32)
            .map(|n| n.to_le_bytes()[n as usize % 3])
            .collect();
        let bytes = said.clone();
        std::thread::spawn(move || says.write_all(&bytes));
        let mut joined = enter(&key, node(1), ("127.0.0.1", port)).await.unwrap();
        admitted.await.unwrap().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        let heard = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        joined.pass_on(writer.into()).await.unwrap();
        assert!(heard.await.unwrap().unwrap() == said);
        drop(joined);
        // Only now does the starter hear that the daemon is gone.
        let end = tokio::task::spawn_blocking(move || ended.read(&mut [0; 1]));
        assert_eq!(end.await.unwrap().unwrap(), 0);
        // And nobody listens any more.
        let error = enter(&key, node(2), ("127.0.0.1", port)).await.unwrap_err();
        assert!(is_final(&error), "{error:#}");
    });
}

#[test]
fn nothing_that_was_overheard_lets_anybody_in() {
    at_the_door(|mut door| async move {
        let (port, key) = (door.port, door.key.clone());
        let _expected = [door.expect(1).unwrap(), door.expect(2).unwrap()];
        let admitted = tokio::spawn(door.admit(late()));
        // Node 1 joins, and somebody hears all of it.
        let mut first = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let connector = Connector::new(&key, Role::Join, node(1), NodeIndex::FIRST, 1, [7; 32]);
        let connector = connector.encrypted(true);
        let hello = connector.hello();
        first.write_all(&hello).await.unwrap();
        let mut answer = [0; ANSWER];
        first.read_exact(&mut answer).await.unwrap();
        let (proof, _) = connector.answer(&answer, 1).unwrap();
        let mut shake = Shake::new(&key, true).unwrap();
        let message = shake.say(&[]).unwrap();
        first.write_all(&proof).await.unwrap();
        first.write_all(&message).await.unwrap();
        first.read_exact(&mut [0; EMPTY]).await.unwrap();
        // Said once more it is worth nothing: neither an answer to the proof, nor the end of the bring-up.
        let mut again = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        for part in [&hello[..], &proof, &message] {
            let _ = again.write_all(part).await;
        }
        let mut rest = Vec::new();
        // Closed or reset: both are the end.
        let _ = again.read_to_end(&mut rest).await;
        assert!(rest.len() <= ANSWER, "{} bytes", rest.len());
        let _second = enter(&key, node(2), ("127.0.0.1", port)).await.unwrap();
        admitted.await.unwrap().unwrap();
    });
}

#[test]
fn a_second_one_of_a_rank_ends_the_bring_up() {
    for (rank, why) in [
        (1, "joins as node 1 (n1), which has joined already"),
        (3, "joins as node 3 of a job of 3 nodes"),
    ] {
        at_the_door(|mut door| async move {
            let (port, key) = (door.port, door.key.clone());
            let _expected = [door.expect(1).unwrap(), door.expect(2).unwrap()];
            let admitted = tokio::spawn(door.admit(late()));
            let address = ("127.0.0.1", port);
            let _first = enter(&key, node(1), address).await.unwrap();
            let _second = enter(&key, node(rank), address).await.unwrap();
            let refused = admitted.await.unwrap().unwrap_err().to_string();
            assert!(refused.contains(why), "{refused}");
        });
    }
}

#[test]
fn who_does_not_join_in_time_is_not_waited_for() {
    at_the_door(|mut door| async move {
        let (_says, mut ended) = door.expect(1).unwrap();
        door.admit(Instant::now()).await.unwrap();
        let end = tokio::task::spawn_blocking(move || ended.read(&mut [0; 1]));
        assert_eq!(end.await.unwrap().unwrap(), 0);
    });
}

#[test]
fn a_way_is_told_from_a_file() {
    let way_of = |words: &[&str]| {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        way(&words).map(str::to_owned)
    };
    assert_eq!(
        way_of(&["--launch", "tcp:n1:7", "--from=x"]),
        Some("n1:7".to_owned())
    );
    assert_eq!(way_of(&["--launch", "/proc/1/fd/2"]), None);
    assert_eq!(way_of(&["--launch"]), None);
    assert_eq!(way_of(&["tcp:n1:7"]), None);
}
