use std::collections::HashSet;

use dragon_protocol::NodeIndex;
use dragon_protocol::key::{JobKey, PORT_FIRST, PORT_LAST, PORT_TRIES};
use proptest::prelude::*;

fn key(byte: &str) -> JobKey {
    JobKey::from_hex(&byte.repeat(32)).unwrap()
}

fn node(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

#[test]
fn hexadecimal_is_read_in_either_case_and_nothing_else() {
    let key = JobKey::from_hex(&"aB".repeat(32)).unwrap();
    assert_eq!(key.as_bytes(), &[0xab; 32]);
    for bad in [
        String::new(),
        "ab".repeat(31),
        "ab".repeat(33),
        "g".repeat(64),
        format!("+{}", "a".repeat(63)),
        "é".repeat(32),
    ] {
        assert!(JobKey::from_hex(&bad).is_none(), "{bad}");
    }
}

#[test]
fn a_key_never_shows_itself() {
    let shown = format!("{:?}", key("ab"));
    assert!(
        !shown.to_lowercase().contains("ab") && !shown.contains("171"),
        "{shown}"
    );
}

#[test]
fn what_is_derived_differs_by_key_purpose_node_and_attempt() {
    let (one, other) = (key("ab"), key("cd"));
    assert_eq!(one.runtime_id(), key("ab").runtime_id());
    assert_ne!(one.runtime_id(), other.runtime_id());
    assert_ne!(one.socket_part(node(0)), one.socket_part(node(1)));
    assert_ne!(one.socket_part(node(0)), other.socket_part(node(0)));
    assert_ne!(one.socket_part(node(0)), one.runtime_id().0);
    let ports = |key: &JobKey, node| {
        let port = |attempt| key.port(node, attempt, PORT_FIRST, PORT_LAST);
        (0..PORT_TRIES).map(port).collect::<Vec<_>>()
    };
    assert_ne!(ports(&one, node(0)), ports(&one, node(1)));
    assert_ne!(ports(&one, node(0)), ports(&other, node(0)));
    let distinct: HashSet<u16> = ports(&one, node(0)).into_iter().collect();
    assert!(distinct.len() > 1);
}

#[test]
fn proofs_differ_by_direction_and_words() {
    let key = key("ab");
    let proof = key.proof("accept", b"words");
    assert!(key.proves("accept", b"words", &proof));
    assert!(!key.proves("connect", b"words", &proof));
    assert!(!key.proves("accept", b"word", &proof));
    assert!(!self::key("cd").proves("accept", b"words", &proof));
    // The end of the direction and the beginning of the words are told apart.
    assert_ne!(key.proof("a", b"bc"), key.proof("ab", b"c"));
}

#[test]
fn derivations_never_change() {
    // Two releases that derived differently would not find each other, and could not even say so.
    let key = key("00");
    let now = (
        key.runtime_id().to_string(),
        key.socket_part(node(1)),
        key.port(node(1), 0, PORT_FIRST, PORT_LAST),
    );
    assert_eq!(now, (RUNTIME.to_owned(), SOCKET, PORT));
}

const RUNTIME: &str = "eee3a3f25aef023b";
const SOCKET: u64 = 4_671_908_998_273_579_231;
const PORT: u16 = 25_431;

proptest! {
    #[test]
    fn no_port_is_tried_twice_before_all_were(seed in any::<[u8; 32]>(), n in 0..1000_u32, first in 1024..60_000_u16, span in 0..40_u16) {
        let hex: String = seed.iter().map(|b| format!("{b:02x}")).collect();
        let key = JobKey::from_hex(&hex).unwrap();
        let ports: std::collections::BTreeSet<_> = (0..=u32::from(span)).map(|attempt| key.port(node(n), attempt, first, first + span)).collect();
        prop_assert_eq!(ports.len(), usize::from(span) + 1);
    }

    #[test]
    fn ports_lie_in_their_range(seed in any::<[u8; 32]>(), n in 0..1000_u32, attempt in 0..8_u32, first in 1024..60_000_u16, span in 0..5000_u16) {
        let hex: String = seed.iter().map(|b| format!("{b:02x}")).collect();
        let key = JobKey::from_hex(&hex).unwrap();
        let port = key.port(node(n), attempt, first, first + span);
        prop_assert!((first..=first + span).contains(&port));
    }
}
