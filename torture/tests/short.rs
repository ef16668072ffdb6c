//! A short run; the whole is `cargo xtask torture`.

use std::process::Command;

#[test]
fn kills_leave_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_dragon-torture"))
        .args(["--kills", "900", "--seed", "1"])
        .output()
        .expect("the program was built");
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}", output.status);
    assert_eq!(text.lines().last(), Some("kills 900, hangs 0, leaks 0"));
}
