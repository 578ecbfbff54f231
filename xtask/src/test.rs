//! `cargo xtask test`: set up, run everything, then hold the promises and the machine against what ran.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::leftovers::Watch;
use crate::nextest::{self, Runner, cargo};
use crate::prove::mutants;
use crate::report::{Outcome, Report};
use crate::spec::Specification;
use crate::surroundings::Surroundings;
use crate::{setup, tidy, unprivileged};

/// How long something that is on its way out may take: a killed process, an unmounting folder.
const GRACE: Duration = Duration::from_secs(5);

/// Mutants that every run makes; `cargo xtask prove` makes all.
const MUTANTS: usize = 3;

/// A watchdog for the documentation's examples, building them included.
const DOC_DEADLINE: &str = "900";

/// Model checkers that replace the atomics and locks everywhere, so that their tests are built apart: those in
/// `crates/*/tests/<checker>_*.rs`, with the flag `--cfg <checker>`.
const CHECKERS: [&str; 2] = ["loom", "shuttle"];

/// How models are built, besides the checker's flag.
pub const MODEL_ENVIRONMENT: [(&str, &str); 3] = [
    // Optimised, or the models take for ever; checked all the same, and without the slow link.
    ("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true"),
    ("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true"),
    ("CARGO_PROFILE_RELEASE_LTO", "off"),
];

/// Whether everything passed.
pub fn run(root: &Path) -> Result<bool> {
    let start = Instant::now();
    setup::ensure()?;
    setup::ensure_nextest()?;
    let mut report = Report::default();
    report.add([Outcome::check("tidy", tidy::check(root)?)]);

    let tests = everything(root);
    let models = models(root)?;
    step("building the tests");
    tests.build()?;
    models.iter().try_for_each(Runner::build)?;

    let surroundings = Surroundings::create(&root.join("target/xtask"))?;
    let watch = Watch::begin(surroundings.watched())?;
    report.add(run_all(root, &tests, &models, &surroundings)?);
    step("making mistakes on purpose");
    let few = mutants::todays(&mutants::read(root)?, MUTANTS);
    report.add([Outcome::check("mutants", mutants::survivors(root, &few)?)]);
    step("looking for leftovers");
    report.add([Outcome::check("leftovers", watch.end(GRACE)?)]);

    let specification = Specification::read(root)?;
    report.promises_pending = specification.pending();
    report.promises_enforced = specification.promises.len() - report.promises_pending;
    report.add([Outcome::check("specification", specification.unkept(&report.outcomes))]);
    report.seconds = start.elapsed().as_secs_f64();
    let record = root.join("target/xtask/test.json");
    report.write_json(&record)?;
    print!("\nrecord: {}\n{}", record.display(), report.to_text());
    Ok(report.all_passed())
}

fn run_all(root: &Path, tests: &Runner, models: &[Runner], surroundings: &Surroundings) -> Result<Vec<Outcome>> {
    step("running the tests");
    let mut outcomes = tests.run(&surroundings.variables())?;
    for models in models {
        step(&format!("running the {}", models.name));
        outcomes.extend(models.run(&surroundings.variables())?);
    }
    step("running the documentation's examples");
    outcomes.extend(documentation(root, surroundings)?);
    step("running the main path as an ordinary user");
    let as_user = if rustix::process::geteuid().is_root() {
        unprivileged::run(&tests.list()?, surroundings)?
    } else {
        already_unprivileged(&outcomes)
    };
    println!("{} tests", as_user.len());
    outcomes.extend(as_user);
    Ok(outcomes)
}

/// Where the whole run is an ordinary user's, the main path has been walked as one.
fn already_unprivileged(outcomes: &[Outcome]) -> Vec<Outcome> {
    let own_name = |outcome: &Outcome| outcome.id.rsplit("::").next().unwrap_or_default().to_owned();
    let main_path = outcomes.iter().filter(|outcome| own_name(outcome).starts_with(unprivileged::MAIN_PATH));
    main_path
        .map(|outcome| Outcome { id: format!("{}{}", outcome.id, unprivileged::MARK), ..outcome.clone() })
        .collect()
}

fn everything(root: &Path) -> Runner {
    Runner {
        name: "tests",
        profile: nextest::PROFILE,
        root: root.to_path_buf(),
        target: None,
        selection: vec!["--workspace".to_owned()],
        environment: Vec::new(),
    }
}

/// The models of every checker that has some.
pub fn models(root: &Path) -> Result<Vec<Runner>> {
    let mut runners = Vec::new();
    for checker in CHECKERS {
        // Cargo takes a pattern that fits no test for a mistake, so they are looked for first.
        if has_models(root, checker)? {
            runners.push(models_of(root, checker));
        }
    }
    Ok(runners)
}

fn models_of(root: &Path, checker: &'static str) -> Runner {
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let flags = ("RUSTFLAGS".to_owned(), format!("--cfg {checker}"));
    let tests = format!("{checker}_*");
    Runner {
        name: if checker == "loom" { "models under loom" } else { "models under shuttle" },
        profile: nextest::PROFILE,
        root: root.to_path_buf(),
        target: Some(root.join("target").join(checker)),
        selection: ["--workspace", "--release", "--test", &tests].map(str::to_owned).to_vec(),
        environment: MODEL_ENVIRONMENT.map(owned).into_iter().chain([flags]).collect(),
    }
}

fn has_models(root: &Path, checker: &str) -> Result<bool> {
    for package in std::fs::read_dir(root.join("crates")).context("cannot list the crates")? {
        let Ok(tests) = std::fs::read_dir(package?.path().join("tests")) else {
            continue;
        };
        if tests.flatten().any(|test| is_model(&test.file_name().to_string_lossy(), checker)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_model(file: &str, checker: &str) -> bool {
    let name = file.strip_suffix(".rs").and_then(|name| name.strip_prefix(checker));
    name.is_some_and(|name| name.starts_with('_'))
}

fn documentation(root: &Path, surroundings: &Surroundings) -> Result<Vec<Outcome>> {
    let inner = cargo(root);
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=10", DOC_DEADLINE])
        .arg(inner.get_program())
        .args(["test", "--workspace", "--doc", "--quiet", "--", "--format=pretty"])
        .current_dir(root)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .envs(surroundings.variables());
    let output = command.output().context("cannot start cargo")?;
    let text = String::from_utf8_lossy(&output.stdout);
    print!("{text}");
    let mut outcomes = parse_libtest(&text);
    if !output.status.success() && outcomes.iter().all(|outcome| outcome.passed) {
        let why = format!("`cargo test --doc` ended with {}", output.status);
        outcomes.push(Outcome::check("documentation", vec![why]));
    }
    Ok(outcomes)
}

/// The lines `test NAME ... ok`. An ignored example counts as failed: nothing is skipped.
fn parse_libtest(text: &str) -> Vec<Outcome> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("test "));
    let verdicts = lines.filter_map(|line| line.rsplit_once(" ... "));
    verdicts.map(|(name, verdict)| Outcome::new(name, verdict == "ok", 0.0)).collect()
}

fn step(what: &str) {
    println!("\n── {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_that_fail_or_are_ignored_have_failed() {
        let text = "\nrunning 3 tests\ntest crates/a/src/lib.rs - a (line 3) ... ok\n\
            test crates/a/src/lib.rs - b (line 9) ... FAILED\ntest crates/a/src/lib.rs - c (line 12) ... ignored\n\
            test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n";
        let passed: Vec<_> = parse_libtest(text).iter().map(|outcome| outcome.passed).collect();
        assert_eq!(passed, [true, false, false]);
    }

    #[test]
    fn models_are_found_by_their_files_name() {
        let root = tempfile::tempdir().expect("a folder");
        assert!(models(root.path()).is_err());
        let tests = root.path().join("crates/ring/tests");
        std::fs::create_dir_all(&tests).expect("a folder");
        std::fs::write(tests.join("bloom_x.rs"), "").expect("a file");
        assert!(models(root.path()).expect("an answer").is_empty());
        std::fs::write(tests.join("loom_sleep.rs"), "").expect("a file");
        assert_eq!(models(root.path()).expect("an answer").len(), 1);
        std::fs::write(tests.join("shuttle_links.rs"), "").expect("a file");
        assert_eq!(models(root.path()).expect("an answer").len(), 2);
    }

    #[test]
    fn an_ordinary_users_run_has_walked_the_main_path_as_a_user() {
        let outcomes = [
            Outcome::new("sandbox::path::vm_main_path_boots", false, 1.0),
            Outcome::new("sandbox::path::vm_other", true, 1.0),
        ];
        let as_user = already_unprivileged(&outcomes);
        assert_eq!(as_user.len(), 1);
        assert_eq!((as_user[0].id.as_str(), as_user[0].passed), ("sandbox::path::vm_main_path_boots@user", false));
    }
}
