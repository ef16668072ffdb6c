//! Each target over the committed inputs, whole, cut off and changed.

use std::fs;
use std::path::Path;

#[test]
fn committed_inputs_and_what_is_near_them() {
    for (name, run) in dragon_fuzz::TARGETS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("corpus")
            .join(name);
        let inputs = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        let mut count = 0;
        for input in inputs {
            let bytes = fs::read(input.expect("a folder").path()).expect("a file");
            run(&bytes);
            for cut in 0..bytes.len().min(64) {
                run(&bytes[..cut]);
            }
            for at in 0..bytes.len().min(64) {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << (at % 8);
                run(&changed);
            }
            count += 1;
        }
        assert!(count > 0, "{name} has no inputs");
    }
}
