//! The examples in Rust say what they are meant to say.

#![allow(
    clippy::unwrap_used,
    reason = "a failure here is the failure of a test"
)]

#[path = "../examples/priorities.rs"]
mod priorities;
mod support;

use std::env;

use support::{SmallRuntime, stdout};

/// Tells this program, started once more, to be an example.
const EXAMPLE: &str = "DRAGON_CLIENT_TEST_EXAMPLE";

/// The body of children; without an example it is a test that does nothing.
#[test]
fn child() {
    if env::var_os(EXAMPLE).is_some() {
        priorities::main().unwrap();
    }
}

#[test]
fn the_most_urgent_work_comes_first() {
    let runtime = SmallRuntime::start();
    let mut example = runtime.command(&env::current_exe().unwrap());
    example.args(["--exact", "child", "--nocapture", "--quiet"]);
    let said = stdout(example.env(EXAMPLE, "priorities"));
    let expected = "one more: Err(Full)\nwaiting: [1, 3]\nlevel 0: a word from the user\n\
                    level 1: picture 0\nlevel 1: picture 1\nlevel 1: picture 2\n";
    assert!(said.contains(expected), "{said}");
    assert_eq!(runtime.blocks(), 0);
}
