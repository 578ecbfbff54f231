//! How the targets are put under `libFuzzer` and `AddressSanitizer`: [`build`] once, then [`fuzz`] each target for as long
//! as there is time, and [`executions`] of what it printed.
//!
//! By hand, for the target `ring`, from the workspace's root, these are
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 CARGO_PROFILE_RELEASE_LTO=off THROUGHLINE_AGENT=$PWD/Cargo.toml RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module …" \
//!     cargo build --release -p throughline-fuzz --features libfuzzer --bins --target x86_64-unknown-linux-gnu --target-dir target/fuzz
//! target/fuzz/x86_64-unknown-linux-gnu/release/fuzz-ring -max_total_time=60 -timeout=20 -malloc_limit_mb=64 \
//!     -rss_limit_mb=1024 -artifact_prefix=target/fuzz/found-ring- target/fuzz/corpus-ring proof/fuzz/corpus/ring
//! ```
//!
//! New inputs go into the first folder; that of the tree is only read. A finding ends the program with an error, and
//! lies in `target/fuzz/found-…`: `fuzz-ring <file>` repeats it. To add to the tree's corpus what is new,
//! `fuzz-ring -merge=1 -set_cover_merge=1 -use_counters=0 <empty folder> target/fuzz/corpus-ring proof/fuzz/corpus/ring`.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What makes a program that libFuzzer can steer (its coverage), and that finds what safe code cannot do wrong, but
/// the few lines that are not safe could.
const RUSTFLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Zsanitizer=address",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions=yes",
    "-Coverflow-checks=yes",
];

/// Seconds after which one input is called a hang.
const HANG: u64 = 20;
/// The largest single allocation, in MiB: no input is longer than some kilobytes.
const MOST_AT_ONCE: u64 = 64;
/// The most memory, in MiB, with the sanitizer's own.
const MOST_MEMORY: u64 = 1024;

fn folder(root: &Path) -> PathBuf {
    root.join("target").join("fuzz")
}

/// The command that builds all programs, on a stable toolchain: `RUSTC_BOOTSTRAP` unlocks the sanitizer's flag. Needs
/// a C++ compiler. With `--target`, build scripts and macros are spared the flags.
pub fn build(root: &Path) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(root)
        .args(["build", "--release", "--package", "throughline-fuzz", "--features", "libfuzzer", "--bins"])
        .args(["--target", TRIPLE, "--target-dir"])
        .arg(folder(root))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", RUSTFLAGS.join(" "))
        .env("RUSTC_BOOTSTRAP", "1")
        // Linked in a quarter of the time, and no slower than the sanitizer lets them be.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        // No guest is started: any file will do for its agent.
        .env("THROUGHLINE_AGENT", root.join("Cargo.toml"));
    cargo
}

/// The command that fuzzes a target for so many seconds. It prints to its standard error, and fails when it finds
/// something.
pub fn fuzz(root: &Path, target: &str, seconds: u64) -> io::Result<Command> {
    let folder = folder(root);
    let new = folder.join(format!("corpus-{target}"));
    std::fs::create_dir_all(&new)?;
    let mut found = OsString::from("-artifact_prefix=");
    found.push(folder.join(format!("found-{target}-")));
    let mut command = Command::new(folder.join(TRIPLE).join("release").join(format!("fuzz-{target}")));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={HANG}"))
        .arg(format!("-malloc_limit_mb={MOST_AT_ONCE}"))
        .arg(format!("-rss_limit_mb={MOST_MEMORY}"))
        .arg(found)
        .arg(new)
        .arg(root.join("proof/fuzz/corpus").join(target));
    Ok(command)
}

/// How many inputs were run, from what libFuzzer printed: its last word, or its last count where it did not get so far.
pub fn executions(printed: &str) -> Option<u64> {
    let done = |line: &str| line.strip_prefix("Done ")?.split_once(' ')?.0.parse().ok();
    let count = |line: &str| line.strip_prefix('#')?.split_once(['\t', ' '])?.0.parse().ok();
    let mut lines = printed.lines().rev();
    lines.clone().find_map(done).or_else(|| lines.find_map(count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_read_from_the_end_of_what_was_printed() {
        let running = "INFO: Seed: 1\n#2\tINITED cov: 3\n#128\tNEW    cov: 4\nsome panic\n";
        assert_eq!(executions(running), Some(128));
        let done = format!("{running}#4000\tDONE   cov: 4\nDone 4000 runs in 3 second(s)\nstat::peak_rss_mb: 30\n");
        assert_eq!(executions(&done), Some(4000));
        assert_eq!(executions("nothing was started"), None);
    }
}
