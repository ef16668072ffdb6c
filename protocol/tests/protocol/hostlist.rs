use dragon_protocol::hostlist::{HostlistError, expand};
use proptest::prelude::*;

#[test]
fn lists_expand_as_scontrol_does() {
    for (list, hosts) in [
        ("login", "login"),
        ("a,b,c", "a b c"),
        ("n[1-3]", "n1 n2 n3"),
        ("n[01-03]", "n01 n02 n03"),
        ("n[8-11]", "n8 n9 n10 n11"),
        ("n[08-11]", "n08 n09 n10 n11"),
        ("n[098-101]", "n098 n099 n100 n101"),
        ("n[01-02,7],login", "n01 n02 n7 login"),
        ("n[5]", "n5"),
        ("n[005]", "n005"),
        ("n[1-2]-ib", "n1-ib n2-ib"),
        (
            "rack[1-2]n[1-3]",
            "rack1n1 rack1n2 rack1n3 rack2n1 rack2n2 rack2n3",
        ),
        ("r[1,3]n[01-02]x", "r1n01x r1n02x r3n01x r3n02x"),
        ("[1-3]", "1 2 3"),
        ("node_a-1.example.org,b", "node_a-1.example.org b"),
        ("a, b", "a b"),
        ("n[3-3]", "n3"),
        ("n[0]", "n0"),
        ("n[1,1]", "n1 n1"),
    ] {
        let expected: Vec<&str> = hosts.split(' ').collect();
        assert_eq!(expand(list).unwrap(), expected, "{list}");
    }
}

#[test]
fn malformed_lists_are_refused_by_name() {
    for list in ["n[1-3", "n1-3]", "n[[1]]", "n[1]]", "[", "]", "a[1,b"] {
        let error = expand(list).unwrap_err();
        assert!(
            matches!(error, HostlistError::Bracket(_)),
            "{list}: {error}"
        );
        assert!(error.to_string().contains(list), "{list}: {error}");
    }
    for list in [
        "n[]",
        "n[3-1]",
        "n[a]",
        "n[1-]",
        "n[-1]",
        "n[1-2-3]",
        "n[1,]",
        "n[ 1]",
        "n[+1]",
        "n[9999999999999999999]",
    ] {
        let error = expand(list).unwrap_err();
        assert!(matches!(error, HostlistError::Range(_)), "{list}: {error}");
    }
    for list in ["", ",", "a,", ",a", "a,,b", "a, ,b"] {
        let error = expand(list).unwrap_err();
        assert!(matches!(error, HostlistError::Empty(_)), "{list}: {error}");
    }
}

#[test]
fn more_hosts_than_nodes_are_refused_before_they_are_listed() {
    for list in ["n[0-99999999999999999]", "n[0-16777215]"] {
        assert_eq!(expand(list), Err(HostlistError::TooMany), "{list}");
    }
}

proptest! {
    #[test]
    fn a_range_has_its_ends_its_count_and_its_width(first in 0..5_000_u64, count in 1..200_u64, width in 1..8_usize) {
        let last = first + count - 1;
        let hosts = expand(&format!("n[{first:0width$}-{last:0width$}]")).unwrap();
        prop_assert_eq!(hosts.len() as u64, count);
        prop_assert_eq!(&hosts[0], &format!("n{first:0width$}"));
        let width = width.max(first.to_string().len());
        prop_assert_eq!(hosts.last().unwrap(), &format!("n{last:0width$}"));
    }

    #[test]
    fn plain_names_come_back(names in prop::collection::vec("[a-z][a-z0-9_.-]{0,12}", 1..10)) {
        prop_assert_eq!(expand(&names.join(",")).unwrap(), names);
    }

    #[test]
    fn any_text_is_expanded_or_refused(text in "[a-c0-2,\\[\\]-]{0,16}") {
        let _ = expand(&text);
    }
}
