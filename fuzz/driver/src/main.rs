//! Runs the target that `DRAGON_FUZZ_TARGET` names under libFuzzer.

#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("DRAGON_FUZZ_TARGET").unwrap_or_default();
    dragon_fuzz::target(&name).unwrap_or_else(|| panic!("there is no target {name:?}"))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
