//! The fuzzers, each for as long as it is given.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use throughline_effort::Proved;
use throughline_fuzz::{TARGETS, runner};

/// What all targets came to, and those that found something.
pub fn run(root: &Path, seconds: u64) -> Result<(Vec<Proved>, Vec<String>)> {
    println!("building the fuzzers");
    let status = quiet(&mut runner::build(root)).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the fuzzers do not build; they need a C++ compiler: apt-get install g++");
    }
    let (mut proved, mut failed) = (Vec::new(), Vec::new());
    for (target, _) in TARGETS {
        println!("fuzzing {target} for {seconds} s");
        let mut command = runner::fuzz(root, target, seconds).context("cannot keep what the fuzzers find")?;
        let output = quiet(&mut command).stderr(Stdio::piped()).output();
        let output = output.with_context(|| format!("cannot start the fuzzer of {target}"))?;
        let printed = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            println!("{printed}");
            failed.push(format!("fuzz-{target}: see target/fuzz/found-{target}-…"));
        }
        proved.push(Proved {
            test: format!("fuzz-{target}"),
            what: format!("inputs that the fuzzer of {target} made up in {seconds} s"),
            count: runner::executions(&printed).unwrap_or(0),
            unit: "inputs".to_owned(),
            full: true,
        });
    }
    Ok((proved, failed))
}

fn quiet(command: &mut Command) -> &mut Command {
    command.stdin(Stdio::null())
}
