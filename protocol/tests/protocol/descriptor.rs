use dragon_protocol::descriptor::DescriptorError;
use dragon_protocol::{Descriptor, NodeIndex, ObjectId, ObjectKind, RuntimeId};
use proptest::prelude::*;

fn kinds() -> impl Strategy<Value = ObjectKind> {
    (1..=5_u8).prop_map(|n| ObjectKind::from_u8(n).unwrap())
}

fn descriptors() -> impl Strategy<Value = Descriptor> {
    let node = 0..=NodeIndex::MAX;
    (any::<[u64; 2]>(), node, kinds(), any::<[u32; 2]>()).prop_map(
        |([runtime, user], node, kind, [index, generation])| Descriptor {
            runtime: RuntimeId(runtime),
            object: ObjectId {
                node: NodeIndex::new(node).unwrap(),
                kind,
                index,
                generation,
            },
            user,
        },
    )
}

fn example() -> Descriptor {
    Descriptor {
        runtime: RuntimeId(0x00c0_ffee_00c0_ffee),
        object: ObjectId {
            node: NodeIndex::new(2).unwrap(),
            kind: ObjectKind::Channel,
            index: 17,
            generation: 1,
        },
        user: 0,
    }
}

proptest! {
    #[test]
    fn bytes_and_text_bring_back_the_same(d in descriptors()) {
        prop_assert_eq!(Descriptor::from_bytes(&d.to_bytes()), Ok(d));
        prop_assert_eq!(d.to_string().parse(), Ok(d));
    }

    #[test]
    fn any_bytes_are_read_or_refused_and_what_is_read_is_exact(bytes in any::<[u8; 32]>()) {
        if let Ok(d) = Descriptor::from_bytes(&bytes) {
            let written = d.to_bytes();
            prop_assert_eq!(&written[..2], &bytes[..2]);
            prop_assert_eq!(&written[4..], &bytes[4..]);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,60}") {
        let _ = text.parse::<Descriptor>();
    }

    #[test]
    fn a_damaged_text_is_refused_or_names_something_else(d in descriptors(), at in any::<prop::sample::Index>(), byte in b' '..b'~') {
        let mut text = d.to_string().into_bytes();
        let at = at.index(text.len());
        text[at] = byte;
        let text = String::from_utf8(text).unwrap();
        if let Ok(read) = text.parse::<Descriptor>() {
            prop_assert!(read != d || text.eq_ignore_ascii_case(&d.to_string()) || read.to_string() == d.to_string());
        }
    }
}

#[test]
fn the_text_is_the_documented_one() {
    assert_eq!(example().to_string(), "dragon1:c:00c0ffee00c0ffee:2.17.1");
    let user = Descriptor {
        user: 42,
        ..example()
    };
    assert_eq!(user.to_string(), "dragon1:c:00c0ffee00c0ffee:2.17.1:42");
}

#[test]
fn the_bytes_are_the_documented_ones() {
    let mut expected = [0; 32];
    expected[0] = 1;
    expected[1] = 1;
    expected[4] = 2;
    expected[8] = 17;
    expected[12] = 1;
    expected[16..24].copy_from_slice(&0x00c0_ffee_00c0_ffee_u64.to_le_bytes());
    assert_eq!(example().to_bytes(), expected);
}

#[test]
fn malformed_bytes_are_refused_by_name() {
    let good = example().to_bytes();
    let spoiled = |at: usize, byte: u8| {
        let mut bytes = good;
        bytes[at] = byte;
        Descriptor::from_bytes(&bytes).unwrap_err()
    };
    assert_eq!(spoiled(0, 2), DescriptorError::Version(2));
    assert_eq!(spoiled(0, 0), DescriptorError::Version(0));
    assert_eq!(spoiled(1, 0), DescriptorError::Kind(0));
    assert_eq!(spoiled(1, 14), DescriptorError::Kind(14));
    assert_eq!(spoiled(7, 1), DescriptorError::Node(1 << 24 | 2));
    for length in [0, 1, 31, 33, 64] {
        let bytes = vec![1; length];
        let error = Descriptor::from_bytes(&bytes).unwrap_err();
        assert_eq!(error, DescriptorError::Length(length));
        assert!(error.to_string().contains("32"), "{error}");
    }
}

#[test]
fn malformed_text_is_refused() {
    for text in [
        "",
        "dragon1",
        "dragon1:",
        "dragon2:c:00c0ffee00c0ffee:2.17.1",
        "dragon1:x:00c0ffee00c0ffee:2.17.1",
        "dragon1:cc:00c0ffee00c0ffee:2.17.1",
        "dragon1::00c0ffee00c0ffee:2.17.1",
        "dragon1:c:00c0ffee00c0ffe:2.17.1",
        "dragon1:c:00c0ffee00c0ffeee:2.17.1",
        "dragon1:c:00c0ffee00c0ffeg:2.17.1",
        "dragon1:c:+0c0ffee00c0ffee:2.17.1",
        "dragon1:c:00c0ffee00c0ffee:2.17",
        "dragon1:c:00c0ffee00c0ffee:2.17.1.3",
        "dragon1:c:00c0ffee00c0ffee:16777216.17.1",
        "dragon1:c:00c0ffee00c0ffee:-2.17.1",
        "dragon1:c:00c0ffee00c0ffee:2.4294967296.1",
        "dragon1:c:00c0ffee00c0ffee:2.17.1:",
        "dragon1:c:00c0ffee00c0ffee:2.17.1:x",
        "dragon1:c:00c0ffee00c0ffee:2.17.1:1:2",
        " dragon1:c:00c0ffee00c0ffee:2.17.1",
    ] {
        assert!(text.parse::<Descriptor>().is_err(), "{text}");
    }
}

#[test]
fn an_error_quotes_no_more_than_the_beginning() {
    let long = "x".repeat(10_000);
    let error = long.parse::<Descriptor>().unwrap_err();
    assert!(error.to_string().len() < 200);
}
