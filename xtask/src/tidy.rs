//! The tree's own rules, those that no compiler and no linter checks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::prove::mutants;
use crate::spec::Specification;

/// A longer file has more than one purpose.
const MOST_LINES: usize = 400;

/// What does not belong into finished code. Written in two halves, or this file would find itself.
const UNFINISHED: &[(&str, &str)] = &[
    (concat!("todo", "!("), "finish it, or leave it out"),
    (concat!("unimplemented", "!("), "finish it, or leave it out"),
    (concat!("#[", "ignore"), "a test that cannot run fails; it never skips"),
    (concat!("#[", "allow("), "use #[expect(…, reason = \"…\")]"),
    (concat!("#![", "allow("), "use #![expect(…, reason = \"…\")]"),
];

/// Everything in the tree that breaks a rule, a line for each.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let own_path = own_path(root);
    let mut findings = Specification::read(root)?.findings;
    findings.extend(mutants::findings(root)?);
    for path in files(root)? {
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        // Anything else is data, a picture or a test's input.
        if let Ok(text) = str::from_utf8(&bytes) {
            findings.extend(check_text(&name, text, own_path.as_deref()));
        }
    }
    Ok(findings)
}

/// Where this checkout lies: a path that no file of the project may name. A folder right below `/` proves nothing, its
/// name may be a word of the project.
fn own_path(root: &Path) -> Option<String> {
    (root.components().count() > 2).then(|| root.display().to_string())
}

/// All files but the build's, git's and the lock file, which is cargo's.
pub fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    collect(root, &mut paths)?;
    Ok(paths)
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if kind.is_dir() && name != "target" && name != ".git" {
            collect(&entry.path(), paths)?;
        } else if kind.is_file() && name != "Cargo.lock" && name != ".git" {
            paths.push(entry.path());
        }
    }
    Ok(())
}

fn check_text(name: &str, text: &str, own_path: Option<&str>) -> Vec<String> {
    let rust = Path::new(name).extension().is_some_and(|extension| extension == "rs");
    let mut findings = Vec::new();
    let lines = text.lines().count();
    if rust && lines > MOST_LINES {
        findings.push(format!("{name}: {lines} lines; over {MOST_LINES} a file has more than one purpose"));
    }
    for (index, line) in text.lines().enumerate() {
        let at = format!("{name}:{}", index + 1);
        if rust && !line.trim_start().starts_with("//") {
            let found = UNFINISHED.iter().filter(|(sign, _)| line.contains(sign));
            findings.extend(found.map(|(sign, advice)| format!("{at}: `{sign}`: {advice}")));
        }
        if own_path.is_some_and(|path| line.contains(path)) {
            findings.push(format!("{at}: this checkout's own path, which is nobody else's"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sign_of_unfinished_code_is_found_in_rust_only_and_not_in_comments() {
        for (sign, _) in UNFINISHED {
            assert_eq!(check_text("a.rs", &format!("ok\n  {sign}x)]"), None).len(), 1, "{sign}");
            assert!(check_text("a.rs", &format!("  // {sign}"), None).is_empty(), "{sign}");
            assert!(check_text("a.md", sign, None).is_empty(), "{sign}");
        }
    }

    #[test]
    fn a_long_file_is_found() {
        assert!(check_text("a.rs", &"x\n".repeat(MOST_LINES), None).is_empty());
        assert_eq!(check_text("a.rs", &"x\n".repeat(MOST_LINES + 1), None).len(), 1);
    }

    #[test]
    fn the_checkouts_own_path_is_found_in_any_file() {
        let own = own_path(Path::new("/somewhere/tree"));
        let findings = check_text("a.md", "one\nsee /somewhere/tree/x\n", own.as_deref());
        assert_eq!(findings, ["a.md:2: this checkout's own path, which is nobody else's"]);
        assert_eq!(own_path(Path::new("/tree")), None);
    }

    #[test]
    fn a_tree_is_walked_without_what_is_built_in_it() {
        let root = tempfile::tempdir().expect("a folder");
        let root = root.path();
        for folder in ["src", "target"] {
            fs::create_dir(root.join(folder)).expect("a folder");
            fs::write(root.join(folder).join("a.rs"), UNFINISHED[0].0).expect("a file");
        }
        fs::create_dir(root.join("proof")).expect("a folder");
        fs::write(root.join(mutants::LIST), "mutant = []").expect("a file");
        fs::write(root.join("SPECIFICATION.md"), "| P | T |\n|---|---|\n| A. | pending |\n").expect("a file");
        let findings = check(root).expect("an answer");
        assert_eq!(findings.len(), 1, "{findings:?}");
        assert!(findings[0].starts_with("src/a.rs:1:"), "{findings:?}");
    }
}
