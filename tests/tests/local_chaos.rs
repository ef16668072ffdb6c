//! A few jobs of `cargo xtask chaos`: something happens to each in a named state, and it must end well and leave nothing.

use dragon_tests::chaos::{self, NODES, Place};
use dragon_tests::local::binary;
use dragon_tests::netns::Netns;

#[test]
fn jobs_end_and_leave_nothing_whatever_happens_to_them() {
    let netns = Netns::up(NODES);
    if let Err(why) = &netns {
        println!("no namespaces, so no links are cut: {why}");
    }
    let place = Place {
        netns: netns.ok(),
        heads: binary("dragon-chaos"),
        python: None,
    };
    let totals = chaos::run(&place, 3, 0, 16, false);
    assert!(totals.good(), "{totals}");
}
