//! What the fuzzer feeds with bytes. A target must not panic, read outside of what it was given, or come to no end; what it
//! returns in the ordinary way, errors above all, is right.
//!
//! The driver (`fuzz/driver`, libFuzzer) runs one of them over millions of inputs: `cargo xtask fuzz TARGET`. The tests of this
//! crate run all of them over the committed inputs in `fuzz/corpus`, and over some that are cut off and changed.

mod decoders;
mod peer;
mod scribble;

/// A target: its name, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("descriptor", decoders::descriptor),
    ("attach", decoders::attach),
    ("control", decoders::control),
    ("wire", decoders::wire),
    ("frames", dragon_transport::hostile::frames),
    ("peer", peer::peer),
    ("handshake", decoders::handshake),
    ("text", decoders::text),
    ("scribble", scribble::scribble),
];

/// The target of that name.
#[must_use]
pub fn target(name: &str) -> Option<fn(&[u8])> {
    TARGETS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, run)| *run)
}
