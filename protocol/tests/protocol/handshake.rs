use dragon_protocol::handshake::{
    ANSWER, Acceptor, Connector, HELLO, HandshakeError, PROOF, Peer, Role,
};
use dragon_protocol::key::JobKey;
use dragon_protocol::{NodeIndex, PROTOCOL_VERSION, RELEASE};
use proptest::prelude::*;

fn key(byte: &str) -> JobKey {
    JobKey::from_hex(&byte.repeat(32)).unwrap()
}

fn node(n: u32) -> NodeIndex {
    NodeIndex::new(n).unwrap()
}

fn connector(key: &JobKey) -> Connector {
    Connector::new(key, Role::Data, node(3), node(7), 1_000, [1; 32])
}

fn accept(key: &JobKey, hello: &[u8; HELLO]) -> Result<(Acceptor, [u8; ANSWER]), HandshakeError> {
    Acceptor::new(key, Role::Data, node(7), hello, 5_000, [2; 32])
}

#[test]
fn the_right_key_is_proved_both_ways() {
    let key = key("ab");
    let connecting = connector(&key);
    let (accepting, answer) = accept(&key, &connecting.hello()).unwrap();
    let (proof, peer) = connecting.answer(&answer, 1_500).unwrap();
    assert_eq!(
        peer,
        Peer {
            node: node(7),
            clock_offset: 1_500 - 5_000
        }
    );
    let peer = accepting.finish(&proof).unwrap();
    assert_eq!(
        peer,
        Peer {
            node: node(3),
            clock_offset: 4_000
        }
    );
}

#[test]
fn a_wrong_key_is_refused_by_both() {
    let connecting = connector(&key("ab"));
    let (accepting, answer) = accept(&key("cd"), &connecting.hello()).unwrap();
    let error = connecting.answer(&answer, 1_500).unwrap_err();
    assert_eq!(error, HandshakeError::NoProof);
    assert_eq!(accepting.finish(&[0; PROOF]), Err(HandshakeError::NoProof));
}

#[test]
fn a_recorded_exchange_proves_nothing() {
    let key = key("ab");
    let connecting = connector(&key);
    let hello = connecting.hello();
    let (accepting, answer) = accept(&key, &hello).unwrap();
    let (proof, _) = connecting.answer(&answer, 1_500).unwrap();
    accepting.finish(&proof).unwrap();
    // The stranger repeats what the connector said; the acceptor's challenge is another.
    let fresh = Acceptor::new(&key, Role::Data, node(7), &hello, 5_000, [3; 32]).unwrap();
    assert_eq!(fresh.0.finish(&proof), Err(HandshakeError::NoProof));
    // The stranger repeats what the acceptor said; the connector's challenge is another.
    let again = Connector::new(&key, Role::Data, node(3), node(7), 1_000, [4; 32]);
    assert_eq!(
        again.answer(&answer, 1_500).unwrap_err(),
        HandshakeError::NoProof
    );
}

#[test]
fn a_proof_sent_back_proves_nothing() {
    let key = key("ab");
    let connecting = connector(&key);
    let (accepting, answer) = accept(&key, &connecting.hello()).unwrap();
    let theirs: &[u8; PROOF] = answer[HELLO..].try_into().unwrap();
    assert_eq!(accepting.finish(theirs), Err(HandshakeError::NoProof));
}

#[test]
fn a_hello_sent_back_is_refused() {
    // Whoever has no key may answer with the connector's own words.
    let connecting = connector(&key("ab"));
    let mut mirrored = [0; ANSWER];
    mirrored[..HELLO].copy_from_slice(&connecting.hello());
    let error = connecting.answer(&mirrored, 1_500).unwrap_err();
    assert!(
        matches!(error, HandshakeError::WrongPeer { .. }),
        "{error:?}"
    );
}

#[test]
fn another_role_or_node_is_refused_with_its_numbers() {
    let key = key("ab");
    let control = Connector::new(&key, Role::Control, node(3), node(7), 1, [1; 32]);
    let error = accept(&key, &control.hello()).unwrap_err();
    let expected = HandshakeError::WrongPeer {
        from: 3,
        to: 7,
        role: 1,
    };
    assert_eq!(error, expected);
    let other = Connector::new(&key, Role::Data, node(3), node(8), 1, [1; 32]);
    let error = accept(&key, &other.hello()).unwrap_err();
    let expected = HandshakeError::WrongPeer {
        from: 3,
        to: 8,
        role: 2,
    };
    assert_eq!(error, expected);
    // Somebody else of the job answers.
    let connecting = connector(&key);
    let imposter = Connector::new(&key, Role::Data, node(3), node(9), 1_000, [1; 32]);
    let (_, answer) =
        Acceptor::new(&key, Role::Data, node(9), &imposter.hello(), 1, [2; 32]).unwrap();
    assert!(matches!(
        connecting.answer(&answer, 1).unwrap_err(),
        HandshakeError::WrongPeer { from: 9, .. }
    ));
}

#[test]
fn another_version_is_told_with_both_releases() {
    let key = key("ab");
    let mut hello = connector(&key).hello();
    hello[8..10].copy_from_slice(&(PROTOCOL_VERSION + 1).to_le_bytes());
    hello[20..24].copy_from_slice(&[9, 8, 7, 0]);
    let error = accept(&key, &hello).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, HandshakeError::Version { .. }), "{text}");
    assert!(text.contains("9.8.7") && text.contains(RELEASE), "{text}");
}

#[test]
fn a_stranger_is_told_apart_from_another_version() {
    let key = key("ab");
    assert_eq!(
        accept(&key, &[0; HELLO]).unwrap_err(),
        HandshakeError::Stranger
    );
    let mut hello = connector(&key).hello();
    hello[..4].copy_from_slice(b"GET ");
    assert_eq!(accept(&key, &hello).unwrap_err(), HandshakeError::Stranger);
}

proptest! {
    #[test]
    fn one_changed_bit_anywhere_is_refused(at in 0..(HELLO + ANSWER + PROOF) * 8) {
        let key = key("ab");
        let (byte, bit) = (at / 8, 1_u8 << (at % 8));
        let connecting = connector(&key);
        let mut hello = connecting.hello();
        if let Some(b) = hello.get_mut(byte) {
            *b ^= bit;
        }
        let Ok((accepting, mut answer)) = accept(&key, &hello) else { return Ok(()) };
        if let Some(b) = byte.checked_sub(HELLO).and_then(|n| answer.get_mut(n)) {
            *b ^= bit;
        }
        let Ok((mut proof, _)) = connecting.answer(&answer, 1) else { return Ok(()) };
        if let Some(b) = byte.checked_sub(HELLO + ANSWER).and_then(|n| proof.get_mut(n)) {
            *b ^= bit;
        }
        prop_assert_eq!(accepting.finish(&proof), Err(HandshakeError::NoProof));
    }

    #[test]
    fn noise_is_refused(bytes in any::<[u8; 32]>(), filler in any::<u8>()) {
        let mut hello = [filler; HELLO];
        hello[..32].copy_from_slice(&bytes);
        prop_assert!(accept(&key("ab"), &hello).is_err());
    }
}
