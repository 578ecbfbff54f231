//! `cargo xtask prove`: the proofs with their full counts, and the table of what they came to.
//!
//! The proofs are tests that every run of `cargo xtask test` makes with a little effort. Here they make the full
//! one, every mutant of the list is made, and the fuzzers run for as long as they are given.

mod fuzz;
pub mod mutants;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use throughline_effort::{FULL, Proved, RECORD};

use crate::nextest::Runner;
use crate::surroundings::Surroundings;
use crate::{setup, test};

/// Nothing is proved about whole guests: packages that would be built for nothing.
const OF_GUESTS: [&str; 5] =
    ["xtask", "throughline-sandbox", "throughline-agent", "throughline-shim", "throughline-cli"];

/// The profile in `.config/nextest.toml` that lets proofs take their time.
const PROFILE: &str = "prove";

/// What can be run by itself.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// The tests that take their time, and the models.
    Tests,
    /// Mistakes made on purpose.
    Mutants,
    /// The fuzzers.
    Fuzz,
}

#[derive(clap::Args)]
pub struct Options {
    /// What to run: everything, unless said otherwise
    parts: Vec<Part>,
    /// With the little effort of every test run: to see whether everything is in order
    #[arg(long)]
    quick: bool,
    /// Seconds for each target of the fuzzers
    #[arg(long, default_value_t = 120)]
    fuzz_seconds: u64,
}

impl Options {
    fn has(&self, part: Part) -> bool {
        self.parts.is_empty() || self.parts.contains(&part)
    }
}

/// What it all came to.
#[derive(Serialize)]
struct Table {
    proved: Vec<Proved>,
    /// What was to be found and was not, and proofs that failed.
    failed: Vec<String>,
    seconds: f64,
}

/// Whether everything was proved.
pub fn run(root: &Path, options: &Options) -> Result<bool> {
    let started = Instant::now();
    setup::ensure()?;
    setup::ensure_nextest()?;
    let (mut proved, mut failed) = (Vec::new(), Vec::new());
    if options.has(Part::Tests) {
        tests(root, options.quick, &mut proved, &mut failed)?;
    }
    if options.has(Part::Mutants) {
        let list = mutants::read(root)?;
        let survivors = mutants::survivors(root, &list)?;
        proved.push(Proved {
            test: mutants::LIST.to_owned(),
            what: "mistakes made on purpose and found by the test that is named".to_owned(),
            count: (list.len() - survivors.len()) as u64,
            unit: "mutants".to_owned(),
            full: true,
        });
        failed.extend(survivors);
    }
    if options.has(Part::Fuzz) {
        let (inputs, found) = fuzz::run(root, options.fuzz_seconds)?;
        proved.extend(inputs);
        failed.extend(found);
    }
    let table = Table { proved, failed, seconds: started.elapsed().as_secs_f64() };
    let path = root.join("target/xtask/prove.json");
    fs::write(&path, serde_json::to_vec_pretty(&table)?).with_context(|| format!("cannot write {}", path.display()))?;
    print!("\nrecord: {}\n{}", path.display(), table.to_text());
    Ok(table.failed.is_empty())
}

fn tests(root: &Path, quick: bool, proved: &mut Vec<Proved>, failed: &mut Vec<String>) -> Result<()> {
    let surroundings = Surroundings::create(&root.join("target/xtask"))?;
    let record = root.join("target/xtask/proved.jsonl");
    match fs::remove_file(&record) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", record.display()));
        }
        _ => {}
    }
    let mut variables = surroundings.variables();
    variables.push((RECORD, record.clone()));
    if !quick {
        variables.push((FULL, PathBuf::from("1")));
    }
    for runner in runners(root)? {
        runner.build()?;
        let outcomes = runner.run(&variables)?;
        failed.extend(outcomes.into_iter().filter(|outcome| !outcome.passed).map(|outcome| outcome.id));
    }
    proved.extend(read(&record)?);
    Ok(())
}

/// The tests among which the proofs are, optimised, and the models.
fn runners(root: &Path) -> Result<Vec<Runner>> {
    let excluded = OF_GUESTS.iter().map(|package| format!("--exclude={package}"));
    let selection = ["--workspace", "--release"].into_iter().map(str::to_owned).chain(excluded);
    let proofs = Runner {
        name: "proofs",
        profile: PROFILE,
        root: root.to_path_buf(),
        target: None,
        selection: selection.collect(),
        environment: Vec::new(),
    };
    let models = test::models(root)?.into_iter().map(|runner| Runner { profile: PROFILE, ..runner });
    Ok(std::iter::once(proofs).chain(models).collect())
}

fn read(record: &Path) -> Result<Vec<Proved>> {
    let text = fs::read_to_string(record).with_context(|| format!("no proof left a record in {}", record.display()))?;
    text.lines().map(|line| serde_json::from_str(line).context("cannot read the record of the proofs")).collect()
}

impl Table {
    fn to_text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for Proved { test, what, count, unit, full } in &self.proved {
            let effort = if *full { "" } else { " (a little effort)" };
            let _ = writeln!(text, "{:>14} {unit}{effort}: {what} — {test}", grouped(*count));
        }
        for failed in &self.failed {
            let _ = writeln!(text, "FAILED {failed}");
        }
        let _ = writeln!(text, "{} proofs, {} failed; {:.0} s", self.proved.len(), self.failed.len(), self.seconds);
        text
    }
}

/// With a space after each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().filter_map(|group| str::from_utf8(group).ok()).collect();
    groups.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_readable() {
        assert_eq!([0, 12, 999, 1000, 1_234_567].map(grouped), ["0", "12", "999", "1 000", "1 234 567"]);
    }

    #[test]
    fn the_table_tells_what_failed() {
        let proved = Proved {
            test: "a::b".to_owned(),
            what: "nothing is lost".to_owned(),
            count: 20_000,
            unit: "seeds".to_owned(),
            full: false,
        };
        let table = Table { proved: vec![proved], failed: vec!["c::d".to_owned()], seconds: 1.0 };
        let text = table.to_text();
        assert!(text.contains("20 000 seeds (a little effort): nothing is lost — a::b\nFAILED c::d\n"), "{text}");
        assert!(text.ends_with("1 proofs, 1 failed; 1 s\n"), "{text}");
    }
}
