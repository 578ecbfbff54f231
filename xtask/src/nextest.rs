//! The test runner: how it is started, and what its two records mean (what is built, what ran).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::report::Outcome;

/// The profile in `.config/nextest.toml` that runs everything and keeps a record.
pub const PROFILE: &str = "xtask";

/// One way to run tests: which packages, built how, into which folder.
pub struct Runner {
    /// What this run is called when it fails as a whole.
    pub name: &'static str,
    /// The profile, which must keep a record.
    pub profile: &'static str,
    pub root: PathBuf,
    /// Where it is built, unless in cargo's own place.
    pub target: Option<PathBuf>,
    /// Which packages and test binaries, in cargo's words.
    pub selection: Vec<String>,
    pub environment: Vec<(String, String)>,
}

/// What a build left behind, as far as tests are concerned.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Built {
    rust_build_meta: BuildMeta,
    rust_suites: BTreeMap<String, Suite>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct BuildMeta {
    target_directory: PathBuf,
    #[serde(default)]
    non_test_binaries: BTreeMap<String, Vec<Program>>,
}

#[derive(Debug, Deserialize)]
struct Program {
    name: String,
    kind: String,
    path: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Suite {
    package_name: String,
    kind: String,
    binary_name: String,
    binary_path: PathBuf,
    #[serde(default)]
    testcases: BTreeMap<String, serde_json::Value>,
}

/// One built test.
#[derive(Debug, PartialEq)]
pub struct Case<'a> {
    /// The test binary's id, as in the ids of outcomes.
    pub suite: &'a str,
    pub name: &'a str,
    pub binary: &'a Path,
}

impl Built {
    pub fn parse(json: &[u8]) -> Result<Self> {
        serde_json::from_slice(json).context("cannot read nextest's list of tests")
    }

    /// The tests whose own name, without its path, starts so.
    pub fn cases_starting<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = Case<'a>> {
        self.rust_suites.iter().flat_map(move |(suite, built)| {
            let names = built.testcases.keys().map(String::as_str);
            names
                .filter(move |name| name.rsplit("::").next().unwrap_or(name).starts_with(prefix))
                .map(move |name| Case { suite, name, binary: &built.binary_path })
        })
    }

    /// What cargo is to build so that the tests whose path ends so can run; `None` where there are none.
    pub fn selection(&self, test: &str) -> Option<Vec<String>> {
        let fits = |name: &String| name.strip_suffix(test).is_some_and(|path| path.is_empty() || path.ends_with("::"));
        let mut selection = Vec::new();
        for suite in self.rust_suites.values().filter(|suite| suite.testcases.keys().any(fits)) {
            selection.extend(["--package".to_owned(), suite.package_name.clone()]);
            match suite.kind.as_str() {
                "lib" => selection.push("--lib".to_owned()),
                kind => selection.extend([format!("--{kind}"), suite.binary_name.clone()]),
            }
        }
        (!selection.is_empty()).then_some(selection)
    }

    /// The programs built beside the tests: name and file.
    pub fn programs(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        let folder = &self.rust_build_meta.target_directory;
        let programs = self.rust_build_meta.non_test_binaries.values().flatten();
        programs
            .filter(|program| program.kind == "bin-exe")
            .map(|program| (program.name.as_str(), folder.join(&program.path)))
    }
}

impl Runner {
    fn command(&self, subcommand: &str) -> Command {
        let mut command = cargo(&self.root);
        command
            .args(["nextest", subcommand])
            .args(&self.selection)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        if let Some(target) = &self.target {
            command.arg("--target-dir").arg(target);
        }
        command
    }

    /// Builds the tests; whoever a build starts and leaves (a compiler cache, say) is then there *before* the tests.
    pub fn build(&self) -> Result<()> {
        let status = self.command("run").arg("--no-run").status().context("cannot start cargo")?;
        if !status.success() {
            bail!("{} do not build", self.name);
        }
        Ok(())
    }

    pub fn list(&self) -> Result<Built> {
        let mut command = self.command("list");
        command.args(["--message-format", "json"]).stderr(Stdio::inherit());
        let output = command.output().context("cannot start cargo")?;
        if !output.status.success() {
            bail!("cannot list {}", self.name);
        }
        Built::parse(&output.stdout)
    }

    /// Runs the tests in the given surroundings, the runner's own words going to the terminal.
    pub fn run(&self, surroundings: &[(&str, PathBuf)]) -> Result<Vec<Outcome>> {
        // The runner's own folder, which does not follow cargo's.
        let record = self.root.join("target/nextest").join(self.profile).join("junit.xml");
        match std::fs::remove_file(&record) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", record.display()));
            }
            _ => {}
        }
        let mut command = self.command("run");
        command.args(["--profile", self.profile]);
        command.envs(surroundings.iter().map(|(name, path)| (name, path)));
        let status = command.status().context("cannot start cargo")?;
        let record = std::fs::read_to_string(&record)
            .with_context(|| format!("{} left no record of what ran ({status})", self.name))?;
        let mut outcomes = parse_junit(&record)?;
        if !status.success() && outcomes.iter().all(|outcome| outcome.passed) {
            // The deadline for the whole run, for one: what did not get its turn is in no record.
            let why = format!("the runner ended with {status}, though no test failed");
            outcomes.push(Outcome::check(self.name, vec![why]));
        }
        Ok(outcomes)
    }
}

/// Cargo in the workspace, without what the cargo that started this program told it about its own crate.
pub fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Every test of a record in the form of `JUnit`; whatever is neither passed nor skipped has failed.
fn parse_junit(xml: &str) -> Result<Vec<Outcome>> {
    let document = roxmltree::Document::parse(xml).context("cannot read nextest's record")?;
    let cases = document.descendants().filter(|node| node.has_tag_name("testcase"));
    cases
        .map(|case| {
            let name = case.attribute("name").context("a test without a name in nextest's record")?;
            let suite = case.parent().and_then(|suite| suite.attribute("name"));
            let suite = suite.with_context(|| format!("test {name} stands in no suite in nextest's record"))?;
            let seconds = case.attribute("time").and_then(|time| time.parse().ok()).unwrap_or(0.0);
            let bad = ["failure", "error", "skipped"];
            let failure = case.children().find(|child| bad.iter().any(|tag| child.has_tag_name(*tag)));
            let mut outcome = Outcome::new(format!("{suite}::{name}"), failure.is_none(), seconds);
            let why = failure.and_then(|node| node.attribute("message").or(node.attribute("type")));
            outcome.details.extend(why.map(|text| text.lines().take(5).collect::<Vec<_>>().join(" ")));
            Ok(outcome)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0">
    <testsuite name="ring::loom_sleep" tests="2" failures="1">
        <testcase name="wakes" classname="ring::loom_sleep" time="0.250"/>
        <testcase name="deep::hangs" classname="ring::loom_sleep" time="300.0">
            <failure type="test timeout"/>
        </testcase>
    </testsuite>
    <testsuite name="shmem" tests="1"><testcase name="stops" time="1"><error type="signal 9"/></testcase></testsuite>
</testsuites>"#;

    #[test]
    fn a_record_tells_who_passed_and_who_did_not() {
        let outcomes = parse_junit(RECORD).expect("a record");
        let seen: Vec<_> = outcomes.iter().map(|outcome| (outcome.id.as_str(), outcome.passed)).collect();
        assert_eq!(
            seen,
            [("ring::loom_sleep::wakes", true), ("ring::loom_sleep::deep::hangs", false), ("shmem::stops", false)]
        );
        assert_eq!(outcomes[1].details, ["test timeout"]);
    }

    #[test]
    fn a_damaged_record_is_refused() {
        assert!(parse_junit(&RECORD[..200]).is_err());
        assert!(parse_junit(r#"<a><testcase name="x"/></a>"#).is_err());
    }

    #[test]
    fn built_tests_are_found_by_their_own_name_and_programs_by_their_file() {
        let json = br#"{"rust-build-meta":{"target-directory":"/t","non-test-binaries":{"p":[
                {"name":"throughline","kind":"bin-exe","path":"debug/throughline"},
                {"name":"lib","kind":"dylib","path":"debug/lib.so"}]}},
            "rust-suites":{
                "sandbox::path":{"package-name":"sandbox","kind":"test","binary-name":"path","binary-path":"/t/path",
                    "testcases":{"a::vm_main_path_boots":{},"vm_main_path::other":{},"vm_other":{}}},
                "ring":{"package-name":"ring","kind":"lib","binary-name":"ring","binary-path":"/t/ring",
                    "testcases":{"a::wraps":{},"b::other":{}}},
                "ring::models":{"package-name":"ring","kind":"test","binary-name":"models","binary-path":"/t/models",
                    "testcases":{"wraps":{}}}}}"#;
        let built = Built::parse(json).expect("a list");
        let cases: Vec<_> = built.cases_starting("vm_main_path").collect();
        let expected = Case { suite: "sandbox::path", name: "a::vm_main_path_boots", binary: Path::new("/t/path") };
        assert_eq!(cases, [expected]);
        let programs: Vec<_> = built.programs().collect();
        assert_eq!(programs, [("throughline", PathBuf::from("/t/debug/throughline"))]);
        let selection = |test| built.selection(test).map(|selection| selection.join(" "));
        assert_eq!(selection("wraps").as_deref(), Some("--package ring --lib --package ring --test models"));
        assert_eq!(selection("vm_main_path_boots").as_deref(), Some("--package sandbox --test path"));
        assert_eq!(selection("other").as_deref(), Some("--package ring --lib --package sandbox --test path"));
        assert_eq!([selection("boots"), selection("none")], [None, None]);
        assert!(Built::parse(b"{}").is_err());
    }
}
