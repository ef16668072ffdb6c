use super::{Class, Interface, InterfaceError, Wanted, choose, system};

fn interface(name: &str, up: bool, class: Class, speed: u32, addresses: &[&str]) -> Interface {
    Interface {
        name: name.to_owned(),
        up,
        class,
        speed: (speed != 0).then_some(speed),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        prefixes: vec![24; addresses.len()],
    }
}

/// A node with two fast rails, a port for administration, containers, and one rail whose cable is out.
fn node() -> Vec<Interface> {
    vec![
        interface("lo", true, Class::Loopback, 0, &["127.0.0.1", "::1"]),
        interface("eno1", true, Class::Adapter, 1000, &["10.0.0.7", "fe80::7"]),
        interface("docker0", true, Class::Container, 10_000, &["172.17.0.1"]),
        interface(
            "ib0",
            true,
            Class::Adapter,
            200_000,
            &["10.1.0.7", "fd00:1::7"],
        ),
        interface(
            "ib1",
            true,
            Class::Adapter,
            200_000,
            &["fe80::8", "fd00:2::7"],
        ),
        interface("ib2", false, Class::Adapter, 200_000, &["10.3.0.7"]),
        interface("ib3", true, Class::Adapter, 400_000, &["fe80::9"]),
        interface("eno1.100", true, Class::Adapter, 1000, &["10.9.0.7"]),
    ]
}

fn names(there: &[Interface], wanted: &str) -> Result<String, InterfaceError> {
    let chosen = choose(there, &wanted.parse::<Wanted>()?)?;
    let one = |c: &super::Chosen| format!("{} {}", c.name, c.address);
    Ok(chosen.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[test]
fn what_is_asked_for_is_taken() {
    let table = [
        ("", "ib0 10.1.0.7, ib1 fd00:2::7"),
        ("auto", "ib0 10.1.0.7, ib1 fd00:2::7"),
        ("eno1", "eno1 10.0.0.7"),
        // A name stands for itself: the point is no wildcard.
        ("eno1.100", "eno1.100 10.9.0.7"),
        ("ib.", "ib0 10.1.0.7, ib1 fd00:2::7"),
        ("ib[12]", "ib1 fd00:2::7"),
        ("ib1, ib0", "ib1 fd00:2::7, ib0 10.1.0.7"),
        ("ib0,ib.", "ib0 10.1.0.7, ib1 fd00:2::7"),
        ("en.*", "eno1 10.0.0.7, eno1.100 10.9.0.7"),
        (
            "10.0.0.0/8",
            "eno1 10.0.0.7, ib0 10.1.0.7, eno1.100 10.9.0.7",
        ),
        ("10.1.0.7", "ib0 10.1.0.7"),
        ("fd00::/8", "ib0 fd00:1::7, ib1 fd00:2::7"),
        (
            "0.0.0.0/0,docker0",
            "lo 127.0.0.1, eno1 10.0.0.7, docker0 172.17.0.1, ib0 10.1.0.7, eno1.100 10.9.0.7",
        ),
        ("lo", "lo 127.0.0.1"),
        ("::1/128", "lo ::1"),
    ];
    for (wanted, expected) in table {
        assert_eq!(names(&node(), wanted).unwrap(), expected, "{wanted}");
    }
}

#[test]
fn what_cannot_be_had_is_named_beside_what_there_is() {
    for wanted in ["ib2", "ib3", "eth7", "192.168.0.0/16", "fe80::/10", "eno"] {
        let error = names(&node(), wanted).unwrap_err().to_string();
        assert!(error.contains(&format!("'{wanted}'")), "{error}");
        assert!(error.contains("ib2 (down, 10.3.0.7)"), "{error}");
    }
    for wanted in [
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0/8",
        "eth0/24",
        "a,,b",
        "ib[0",
        "10.0.0.0/",
    ] {
        let error = names(&node(), wanted).unwrap_err();
        assert!(
            matches!(error, InterfaceError::Pattern { .. }),
            "{wanted}: {error}"
        );
    }
    let error = names(&[], "").unwrap_err().to_string();
    assert!(error.contains("this node has none"), "{error}");
}

#[test]
fn left_to_itself_the_choice_is_the_best_that_is_up() {
    let lo = || interface("lo", true, Class::Loopback, 0, &["127.0.0.1"]);
    let docker = || interface("docker0", true, Class::Container, 0, &["172.17.0.1"]);
    let bridge = || interface("br0", true, Class::Bridge, 0, &["10.0.0.1"]);
    let inside = || interface("eth0", true, Class::Virtual, 10_000, &["10.0.0.2"]);
    let down = || interface("eth1", false, Class::Adapter, 10_000, &["10.0.0.3"]);
    let bare = || interface("eth2", true, Class::Adapter, 10_000, &[]);
    let slow = || interface("eth3", true, Class::Adapter, 0, &["169.254.1.1"]);
    let table = [
        (vec![lo()], "lo 127.0.0.1"),
        (vec![lo(), docker()], "docker0 172.17.0.1"),
        (vec![lo(), docker(), bridge()], "br0 10.0.0.1"),
        (vec![lo(), docker(), bridge(), inside()], "eth0 10.0.0.2"),
        (vec![lo(), docker(), down(), bare()], "docker0 172.17.0.1"),
        (vec![inside(), slow(), lo()], "eth3 169.254.1.1"),
    ];
    for (there, expected) in table {
        assert_eq!(names(&there, "").unwrap(), expected);
    }
}

#[test]
fn kinds_are_told_by_name_and_driver() {
    let table = [
        ("eth0", Some(("mlx5_core", "0000:01:00.0")), Class::Adapter),
        ("eth0", Some(("virtio_net", "virtio0")), Class::Adapter),
        ("eth0", Some(("veth", "")), Class::Virtual),
        ("bond0", Some(("bonding", "")), Class::Adapter),
        ("eth0.5", Some(("802.1Q VLAN Support", "")), Class::Adapter),
        ("ib0", Some(("ib_ipoib", "")), Class::Adapter),
        ("hsn0", None, Class::Virtual),
        ("br0", Some(("bridge", "N/A")), Class::Bridge),
        ("br-1a2b3c4d5e6f", Some(("bridge", "N/A")), Class::Container),
        ("docker0", Some(("bridge", "N/A")), Class::Container),
        ("cni-podman0", Some(("bridge", "N/A")), Class::Container),
        ("virbr0", Some(("bridge", "N/A")), Class::Container),
        ("veth12ab", Some(("veth", "")), Class::Container),
        ("podman1", Some(("bridge", "N/A")), Class::Container),
        ("tun0", Some(("tun", "tun")), Class::Virtual),
        ("brad0", Some(("e1000e", "0000:00:1f.6")), Class::Adapter),
    ];
    for (name, driver, class) in table {
        assert_eq!(system::class(name, driver), class, "{name} {driver:?}");
    }
}

#[test]
fn this_machine_has_a_loopback_interface() {
    let there = system::list().unwrap();
    let lo = there.iter().find(|i| i.name == "lo").unwrap();
    assert_eq!(lo.class, Class::Loopback);
}

#[test]
fn networks_are_used_together_when_they_are_apart_and_as_fast() {
    let rails = |there: &[Interface], wanted: &str| {
        let chosen = choose(there, &wanted.parse::<Wanted>().unwrap()).unwrap();
        let rails = super::rails(there, &chosen).into_iter();
        let text = rails.map(|rail| format!("{}/{}", rail.address, rail.bits));
        text.collect::<Vec<_>>().join(", ")
    };
    let of = |speeds: [u32; 4], addresses: [&str; 4]| -> Vec<Interface> {
        let names = ["ib0", "ib1", "ib2", "eth0"];
        let all = names.into_iter().zip(speeds).zip(addresses);
        let all =
            all.map(|((name, speed), at)| interface(name, true, Class::Adapter, speed, &[at]));
        all.collect()
    };
    let apart = ["10.1.0.7", "10.2.0.7", "10.3.0.7", "10.4.0.7"];
    let there = of([200_000, 200_000, 200_000, 1000], apart);
    let three = "10.1.0.7/24, 10.2.0.7/24, 10.3.0.7/24";
    assert_eq!(rails(&there, ""), three);
    // The slow one is left out although it was asked for: it stays an address to fall back to.
    assert_eq!(rails(&there, "eth0,ib."), three);
    assert_eq!(rails(&there, "ib[02]"), "10.1.0.7/24, 10.3.0.7/24");
    // One alone is no choice.
    assert_eq!(rails(&there, "ib0"), "");
    assert_eq!(rails(&there, "ib0,eth0"), "");
    // Two interfaces of one network count once.
    let there = of([0; 4], ["10.1.0.7", "10.1.0.8", "10.3.0.7", "fd00:1::7"]);
    assert_eq!(rails(&there, "ib."), "10.1.0.7/24, 10.3.0.7/24");
    assert_eq!(rails(&there, "ib[01]"), "");
    // Where the system does not tell how large a network is, it is not used with others.
    let mut unknown = there;
    unknown[2].prefixes.clear();
    assert_eq!(rails(&unknown, "ib."), "");
}
