//! A few jobs of `cargo xtask chaos`: something happens to each in a named state, and it must end well and leave nothing.

use dragon_tests::chaos::{self, NODES, Place, Totals};
use dragon_tests::local::binary;
use dragon_tests::netns::Netns;

const RUNS: u32 = 16;

#[test]
fn jobs_end_and_leave_nothing_whatever_happens_to_them() {
    // Half of them each: who is lost without a word is waited for.
    let halves = [0, RUNS / 2].map(|first| std::thread::spawn(move || some(first)));
    let totals = halves.map(|half| half.join().expect("it does not panic"));
    for half in totals {
        assert!(half.good(), "{half}");
    }
}

fn some(first: u32) -> Totals {
    let netns = Netns::up(NODES);
    if let Err(why) = &netns {
        println!("no namespaces, so no links are cut: {why}");
    }
    let place = Place {
        netns: netns.ok(),
        heads: binary("dragon-chaos"),
        python: None,
    };
    chaos::run(&place, 3, first, RUNS / 2, false)
}
