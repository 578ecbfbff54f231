//! The tour in the README, as a new user would take it.

use std::process::Command;

use crate::support::{Name, command, text};

const README: &str = include_str!("../../../../README.md");

#[test]
fn vm_main_path_the_readmes_tour_works() {
    let name = Name::new("tour");
    let (_, tour) = README.split_once("## The command").expect("a chapter");
    let (_, tour) = tour.split_once("```sh\n").expect("commands");
    let (tour, _) = tour.split_once("```").expect("their end");
    // Other tests run at the same time, and have names of their own.
    let script = tour.replace("web", &name.0).replace("before", &format!("before-{}", name.0));
    let script = script.replace("exit 3'", "exit 3' || [ $? = 3 ]");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("README.md"), README).unwrap();
    let function = format!("set -eu\nthroughline() {{ '{}' \"$@\"; }}\n", command().display());
    let output = Command::new("sh").arg("-c").arg(function + &script).current_dir(folder.path()).output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("line 1\nline 2\nline 3\n"), "{}", text(&output.stdout));
}
