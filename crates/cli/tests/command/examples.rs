//! The examples of the crates below, as their readers run them.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::support::{command, text};

/// Runs an example, which the build of all tests has built, to its end; what it printed.
fn example(name: &str) -> String {
    let tests = std::env::current_exe().unwrap();
    let program: PathBuf = tests.parent().unwrap().parent().unwrap().join("examples").join(name);
    assert!(program.exists(), "{} is not built: run `cargo build --workspace --examples`", program.display());
    let mut run = Command::new(program);
    let output = run.env("THROUGHLINE_SHIM", command()).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn vm_the_example_of_a_sandbox_in_ones_own_process_runs() {
    let printed = example("embedded");
    let lines: Vec<_> = printed.lines().collect();
    assert!(lines[0].starts_with("Linux ") && lines[1..] == ["there and back"], "{printed}");
}

#[test]
fn vm_the_example_of_a_sandbox_that_outlives_its_shim_runs() {
    let printed = example("detached");
    let (before, rest) = printed.split_once("has taken over").expect("a successor");
    // Both halves of the command's output.
    for (text, word) in [(before, format!("{:?}", b"before\n")), (rest, format!("{:?}", b"after\n"))] {
        assert!(text.contains(&word), "{printed}");
    }
}
