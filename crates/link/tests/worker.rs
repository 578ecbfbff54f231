//! The example of a VMM and its worker runs as it says.

use std::process::Command;

#[test]
fn the_example_of_a_vmm_and_its_worker_loses_and_doubles_nothing() {
    // Cargo builds the examples beside a package's tests.
    let tests = std::env::current_exe().unwrap();
    let example = tests.ancestors().nth(2).unwrap().join("examples/worker");
    let output = Command::new(&example).output();
    let output = output.unwrap_or_else(|error| panic!("{error}: {}: cargo build --examples", example.display()));
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.ends_with("killed each 100 times: every request was answered once, in order\n"), "{printed}");
}
