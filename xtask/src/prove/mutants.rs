//! Mistakes made on purpose, one at a time, in a copy of the tree: the test that a list names must find each.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::nextest::{Built, cargo};
use crate::tidy;

/// The list, in the tree.
pub const LIST: &str = "proof/mutants.toml";
/// What the runner says when tests failed; anything else but success is no verdict.
const TESTS_FAILED: i32 = 100;
/// The profile in `.config/nextest.toml`: a mutant that hangs is found out sooner than a test.
const PROFILE: &str = "mutants";

/// One mistake.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// What goes wrong, for people.
    pub name: String,
    /// Path below the tree's root.
    file: PathBuf,
    /// Text that occurs once in the file.
    find: String,
    /// What stands there instead.
    replace: String,
    /// The end of the id of the test that must fail.
    pub test: String,
    /// The model checker under which that test runs, if it does.
    models: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// The list.
pub fn read(root: &Path) -> Result<Vec<Mutant>> {
    let path = root.join(LIST);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let list: List = toml::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(list.mutant)
}

/// Mutants that cannot be made any more, or have no name of their own.
pub fn findings(root: &Path) -> Result<Vec<String>> {
    let mut names = HashSet::new();
    let mut findings = Vec::new();
    for mutant in read(root)? {
        if !names.insert(mutant.name.clone()) {
            findings.push(format!("{LIST}: two mutants are called \"{}\"", mutant.name));
        }
        let text = fs::read_to_string(root.join(&mutant.file)).unwrap_or_default();
        let found = text.matches(&mutant.find).count();
        if found != 1 {
            let file = mutant.file.display();
            findings.push(format!("{LIST}: \"{}\": its text occurs {found} times in {file}, not once", mutant.name));
        }
    }
    Ok(findings)
}

/// A few of them, others each day.
pub fn todays(mutants: &[Mutant], count: usize) -> Vec<Mutant> {
    let day = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs() / 86_400;
    let first = day as usize * count % mutants.len().max(1);
    mutants.iter().cycle().skip(first).take(count.min(mutants.len())).cloned().collect()
}

/// Makes each mistake in turn; returns those that no test found.
pub fn survivors(root: &Path, mutants: &[Mutant]) -> Result<Vec<String>> {
    // Always in the same place, or each run would be built anew beside the ones before it.
    let copy = root.join("target/mutants");
    if copy.exists() {
        fs::remove_dir_all(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    }
    copy_tree(root, &copy)?;
    let mut survivors = Vec::new();
    let mut built = HashMap::new();
    for mutant in mutants {
        let models = mutant.models.as_deref();
        let tests = match built.entry(models) {
            Entry::Occupied(tests) => tests.into_mut(),
            Entry::Vacant(place) => place.insert(list(root, &copy, models)?),
        };
        // Built for each mutant is what its test needs, not all the tests.
        let selection = tests.selection(&mutant.test);
        let selection = selection.with_context(|| format!("{LIST}: {:?} names no test", mutant.test))?;
        let path = copy.join(&mutant.file);
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        fs::write(&path, text.replacen(&mutant.find, &mutant.replace, 1))?;
        let verdict = verdict(root, &copy, &selection, mutant);
        fs::write(&path, text)?;
        if verdict? {
            println!("found: {} ({})", mutant.name, mutant.test);
        } else {
            survivors.push(format!("{} does not find: {}", mutant.test, mutant.name));
        }
    }
    Ok(survivors)
}

/// The tests of the copy as it is.
fn list(root: &Path, copy: &Path, models: Option<&str>) -> Result<Built> {
    let mut command = nextest(root, copy, models, "list");
    command.args(["--workspace", "--message-format", "json"]);
    for package in super::OF_GUESTS.iter().chain(&["throughline-fuzz"]) {
        command.args(["--exclude", package]);
    }
    if let Some(checker) = models {
        command.args(["--test", &format!("{checker}_*")]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cannot list the tests of {}", copy.display());
    }
    Built::parse(&output.stdout)
}

fn nextest(root: &Path, copy: &Path, models: Option<&str>, subcommand: &str) -> Command {
    let mut command = cargo(copy);
    // Shared with the tests: what does not depend on the tree is built already.
    let target = root.join("target").join(models.unwrap_or_default());
    command.args(["nextest", subcommand, "--target-dir"]).arg(target);
    if let Some(checker) = models {
        command.arg("--release").envs(crate::test::MODEL_ENVIRONMENT).env("RUSTFLAGS", format!("--cfg {checker}"));
    }
    command
}

/// Whether the test fails in the copy, as it must.
fn verdict(root: &Path, copy: &Path, selection: &[String], mutant: &Mutant) -> Result<bool> {
    let mut command = nextest(root, copy, mutant.models.as_deref(), "run");
    command.args(["--profile", PROFILE]).args(selection);
    command.args(["-E", &format!("test(/(^|::){}$/)", mutant.test)]);
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().context("cannot start cargo")?;
    match output.status.code() {
        Some(0) => Ok(false),
        Some(TESTS_FAILED) => Ok(true),
        _ => {
            let text = String::from_utf8_lossy(&output.stderr);
            let tail: Vec<&str> = text.lines().rev().take(30).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            bail!("\"{}\" is no mutant ({}):\n{}", mutant.name, output.status, tail.join("\n"))
        }
    }
}

fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for path in tidy::files(from)? {
        let place = to.join(path.strip_prefix(from)?);
        if let Some(folder) = place.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(&path, &place).with_context(|| format!("cannot copy {}", path.display()))?;
    }
    fs::copy(from.join("Cargo.lock"), to.join("Cargo.lock")).context("cannot copy Cargo.lock")?;
    // Cargo tells packages apart by name, version and place within their workspace: with the same version, what is
    // built of a mutant would be taken for the tree's own later.
    let manifest = to.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).context("cannot read the copy's Cargo.toml")?;
    fs::write(&manifest, as_mutant(&text)?).context("cannot write the copy's Cargo.toml")
}

/// A workspace's manifest with a version that only mutants have.
fn as_mutant(manifest: &str) -> Result<String> {
    const VERSION: &str = "\nversion = \"";
    if !manifest.contains(VERSION) {
        bail!("Cargo.toml gives the workspace no version");
    }
    Ok(manifest.replacen(VERSION, &format!("{VERSION}0.0.0-mutant."), 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(list: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        fs::create_dir(root.path().join("proof")).expect("a folder");
        fs::write(root.path().join(LIST), list).expect("a list");
        fs::write(root.path().join("a.rs"), "one two two").expect("a file");
        root
    }

    fn mutant(name: &str, find: &str) -> String {
        format!("[[mutant]]\nname = \"{name}\"\nfile = \"a.rs\"\nfind = '''\n{find}'''\nreplace = ''\ntest = \"t\"\n")
    }

    #[test]
    fn a_mutant_must_fit_one_place_and_have_a_name_of_its_own() {
        let root = tree(&[mutant("a", "one"), mutant("b", "two"), mutant("c", "three"), mutant("a", "one")].concat());
        let findings = findings(root.path()).expect("an answer");
        assert_eq!(findings.len(), 3, "{findings:?}");
        assert!(findings[0].contains("\"b\": its text occurs 2 times"), "{findings:?}");
        assert!(findings[1].contains("\"c\": its text occurs 0 times"), "{findings:?}");
        assert!(findings[2].contains("two mutants are called \"a\""), "{findings:?}");
    }

    #[test]
    fn a_mutant_is_another_package() {
        let manifest = "[workspace.package]\nversion = \"0.1.0\"\nedition = \"2024\"\n";
        let mutant = as_mutant(manifest).expect("a version");
        assert_eq!(mutant, "[workspace.package]\nversion = \"0.0.0-mutant.0.1.0\"\nedition = \"2024\"\n");
        assert!(as_mutant("[workspace]\n").is_err());
    }

    #[test]
    fn each_day_has_its_mutants() {
        let root = tree(&[mutant("a", "one"), mutant("b", "one"), mutant("c", "one")].concat());
        let all = read(root.path()).expect("a list");
        assert_eq!(todays(&all, 2).len(), 2);
        assert_eq!(todays(&all, 9).len(), 3);
        assert!(todays(&[], 9).is_empty());
    }
}
