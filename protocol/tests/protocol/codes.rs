use std::collections::HashSet;

use dragon_protocol::Code;

#[test]
fn every_number_names_one_code_with_a_text_of_its_own() {
    let mut texts = HashSet::new();
    for n in 0..=30 {
        let code = Code::from_i32(n);
        assert_eq!(code.to_i32(), n);
        assert!(texts.insert(code.text()), "{code:?}");
        assert!(!code.text().is_empty());
    }
}

#[test]
fn a_number_of_a_newer_peer_reads_as_corrupt() {
    for n in [-1, 10_000, i32::MIN, i32::MAX] {
        assert_eq!(Code::from_i32(n), Code::Corrupt);
    }
}
