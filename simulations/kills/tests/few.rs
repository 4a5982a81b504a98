//! A few kills: the command runs as a user runs it.

use std::process::Command;

#[test]
fn nothing_is_lost_and_nothing_comes_back() {
    let output = Command::new(env!("CARGO_BIN_EXE_kills")).args(["--kills", "36", "--seed", "5"]).output();
    let output = output.expect("the command runs");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("36 kills") && said.contains("nothing was lost"), "{said}");
}

#[test]
fn a_wrong_command_line_is_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_kills")).args(["--programs", "0"]).output();
    assert_eq!(output.expect("the command runs").status.code(), Some(2));
}
