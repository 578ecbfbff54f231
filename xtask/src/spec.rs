//! SPECIFICATION.md: every promise names the tests that enforce it, or says that it is pending.
//!
//! Each table has two columns. The second holds the names of tests in backticks, separated by commas, or the one word
//! `pending` without them. A name is a test's id (`crate::binary::module::test`) or any end of it that begins at a `::`
//! and fits one test only. `name@user` is the same test in the run as an ordinary user.

use std::path::Path;

use anyhow::{Context, Result};

use crate::report::Outcome;

/// Where the promises stand, from the root of the workspace.
pub const FILE: &str = "SPECIFICATION.md";

/// One promise.
#[derive(Debug, PartialEq)]
pub struct Promise {
    line: usize,
    text: String,
    enforcement: Enforcement,
}

#[derive(Debug, PartialEq)]
enum Enforcement {
    Pending,
    Tests(Vec<String>),
}

/// The promises, and what is wrong with how they are written.
#[derive(Debug, Default)]
pub struct Specification {
    pub promises: Vec<Promise>,
    pub findings: Vec<String>,
}

impl Specification {
    pub fn read(root: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(root.join(FILE)).with_context(|| format!("cannot read {FILE}"))?;
        Ok(Self::parse(&text))
    }

    pub fn parse(text: &str) -> Self {
        let mut specification = Self::default();
        let mut header_seen = false;
        for (index, line) in text.lines().enumerate() {
            let Some(row) = line.trim().strip_prefix('|') else {
                header_seen = false;
                continue;
            };
            // A table's first row names the columns, the one of dashes follows it.
            if !header_seen || row.chars().all(|c| "|-: ".contains(c)) {
                header_seen = true;
                continue;
            }
            match parse_row(row) {
                Ok((text, enforcement)) => specification.promises.push(Promise { line: index + 1, text, enforcement }),
                Err(why) => specification.findings.push(format!("{FILE}:{}: {why}", index + 1)),
            }
        }
        if specification.promises.is_empty() {
            specification.findings.push(format!("{FILE}: no promise found"));
        }
        specification
    }

    pub fn pending(&self) -> usize {
        let pending = |promise: &&Promise| promise.enforcement == Enforcement::Pending;
        self.promises.iter().filter(pending).count()
    }

    /// What the promises say of tests that this run does not bear out.
    pub fn unkept(&self, outcomes: &[Outcome]) -> Vec<String> {
        let mut findings = Vec::new();
        for promise in &self.promises {
            let Enforcement::Tests(names) = &promise.enforcement else {
                continue;
            };
            for why in names.iter().filter_map(|name| judge(name, outcomes).err()) {
                findings.push(format!("{FILE}:{}: \"{}\": {why}", promise.line, promise.text));
            }
        }
        findings
    }
}

/// A row without its first bar.
fn parse_row(row: &str) -> Result<(String, Enforcement), String> {
    let cells: Vec<_> = row.trim_end_matches('|').split('|').map(str::trim).collect();
    let [promise, tests] = cells.as_slice() else {
        return Err(format!("a row has two cells, a promise and its tests; here are {}", cells.len()));
    };
    if promise.is_empty() {
        return Err("an empty promise".to_owned());
    }
    if *tests == "pending" {
        return Ok(((*promise).to_owned(), Enforcement::Pending));
    }
    let names: Option<Vec<_>> = tests.split(',').map(|name| unquote(name.trim())).collect();
    match names {
        Some(names) => Ok(((*promise).to_owned(), Enforcement::Tests(names))),
        None => Err(format!("\"{promise}\" needs names of tests in backticks, or the word pending")),
    }
}

fn unquote(name: &str) -> Option<String> {
    let name = name.strip_prefix('`')?.strip_suffix('`')?;
    (!name.is_empty() && !name.contains(['`', ' '])).then(|| name.to_owned())
}

/// Whether exactly one test of that name ran, and passed.
fn judge(name: &str, outcomes: &[Outcome]) -> Result<(), String> {
    let fits = |id: &str| id.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with("::"));
    let fitting: Vec<_> = outcomes.iter().filter(|outcome| fits(&outcome.id)).collect();
    match fitting.as_slice() {
        [] => Err(format!("no test `{name}` ran")),
        [outcome] if outcome.passed => Ok(()),
        [outcome] => Err(format!("`{}` failed", outcome.id)),
        several => {
            let ids: Vec<_> = several.iter().map(|outcome| outcome.id.as_str()).collect();
            Err(format!("`{name}` fits several tests, say more of it: {}", ids.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn specification(rows: &str) -> Specification {
        Specification::parse(&format!("# Title\n\n| Promise | Tests |\n|---|---|\n{rows}"))
    }

    fn outcomes() -> Vec<Outcome> {
        vec![
            Outcome::new("ring::cursor::tests::wraps", true, 0.0),
            Outcome::new("link::kill::wraps", true, 0.0),
            Outcome::new("link::kill::survives", false, 0.0),
            Outcome::new("sandbox::path::vm_main_path", true, 0.0),
            Outcome::new("sandbox::path::vm_main_path@user", false, 0.0),
        ]
    }

    #[test]
    fn a_promise_holds_when_each_named_test_ran_and_passed() {
        let specification =
            specification("| It wraps. | `tests::wraps`, `path::vm_main_path` |\n| Later. | pending |\n");
        assert!(specification.findings.is_empty(), "{:?}", specification.findings);
        assert_eq!(specification.unkept(&outcomes()), Vec::<String>::new());
        assert_eq!((specification.promises.len(), specification.pending()), (2, 1));
    }

    #[test]
    fn a_test_that_did_not_run_or_failed_breaks_its_promise() {
        let specification = specification("| A. | `never` |\n| B. | `survives` |\n| C. | `vm_main_path@user` |\n");
        let unkept = specification.unkept(&outcomes());
        assert_eq!(unkept.len(), 3, "{unkept:?}");
        assert!(unkept[0].ends_with("no test `never` ran"), "{unkept:?}");
        assert!(unkept[1].starts_with("SPECIFICATION.md:6:"), "{unkept:?}");
    }

    #[test]
    fn a_name_that_fits_several_tests_or_ends_within_a_word_is_refused() {
        let specification = specification("| A. | `wraps` |\n| B. | `raps` |\n");
        let unkept = specification.unkept(&outcomes());
        assert!(unkept[0].contains("fits several"), "{unkept:?}");
        assert!(unkept[1].contains("no test `raps` ran"), "{unkept:?}");
    }

    #[test]
    fn a_row_with_neither_tests_nor_pending_is_a_finding() {
        for row in [
            "| A. | |",
            "| A. | soon |",
            "| A. | wraps |",
            "| A. | `a`, pending |",
            "| A. | `a b` |",
            "| A. |",
            "| A. | B. | `a` |",
            "| | pending |",
        ] {
            let specification = specification(&format!("{row}\n| B. | pending |\n"));
            assert_eq!(specification.findings.len(), 1, "{row}: {:?}", specification.findings);
            assert_eq!(specification.promises.len(), 1, "{row}");
        }
    }

    #[test]
    fn a_file_without_promises_is_a_finding() {
        assert_eq!(specification("").findings.len(), 1);
    }
}
