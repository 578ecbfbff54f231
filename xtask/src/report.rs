//! What ran and how it ended: for a person at the end of the run, for a program in a file.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// One test that ran, or one of the checks around the tests.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// Crate, test binary and path of the test, joined by `::`.
    pub id: String,
    pub passed: bool,
    pub seconds: f64,
    /// Why it failed; empty when it passed, or when the runner has shown it already.
    pub details: Vec<String>,
}

impl Outcome {
    pub fn new(id: impl Into<String>, passed: bool, seconds: f64) -> Self {
        Self { id: id.into(), passed, seconds, details: Vec::new() }
    }

    /// A check that passes when it found nothing.
    pub fn check(name: &str, findings: Vec<String>) -> Self {
        Self { id: format!("xtask::{name}"), passed: findings.is_empty(), seconds: 0.0, details: findings }
    }
}

/// Everything that one run of the tests found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub passed: usize,
    pub failed: usize,
    pub promises_enforced: usize,
    pub promises_pending: usize,
    pub seconds: f64,
    pub outcomes: Vec<Outcome>,
}

impl Report {
    pub fn add(&mut self, outcomes: impl IntoIterator<Item = Outcome>) {
        for outcome in outcomes {
            if outcome.passed {
                self.passed += 1;
            } else {
                self.failed += 1;
            }
            self.outcomes.push(outcome);
        }
    }

    pub fn all_passed(&self) -> bool {
        self.failed == 0 && self.passed > 0
    }

    /// Failures first, the plain closing line last.
    pub fn to_text(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        for outcome in self.outcomes.iter().filter(|outcome| !outcome.passed) {
            let _ = writeln!(text, "FAILED {}", outcome.id);
            for detail in &outcome.details {
                let _ = writeln!(text, "    {detail}");
            }
        }
        let _ = writeln!(
            text,
            "{} promises named their tests, {} are pending; {:.0} s",
            self.promises_enforced, self.promises_pending, self.seconds
        );
        let _ = writeln!(text, "{} passed, {} failed", self.passed, self.failed);
        text
    }

    pub fn write_json(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let json = serde_json::to_vec_pretty(self)?;
        std::fs::write(path, json).with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_named_and_counted_and_fails_the_run() {
        let mut report = Report::default();
        report.add([Outcome::new("a::b", true, 0.1)]);
        assert!(report.all_passed());
        report.add([Outcome::check("leftovers", vec!["process 7".to_owned()])]);
        assert!(!report.all_passed());
        let text = report.to_text();
        assert!(text.contains("FAILED xtask::leftovers\n    process 7\n"), "{text}");
        assert!(text.ends_with("\n1 passed, 1 failed\n"), "{text}");
    }

    #[test]
    fn a_run_without_tests_is_no_success() {
        assert!(!Report::default().all_passed());
    }
}
