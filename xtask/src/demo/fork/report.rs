//! What people and programs see of it.

use anyhow::Result;
use serde::Serialize;

use super::super::output::{Spread, tenths};
use super::check::{Forked, Source, Verdict};

/// The last line of `--json`. Times in milliseconds.
#[derive(Debug, Serialize)]
pub struct Summary {
    children: usize,
    /// Children with nothing wrong of their own; different answers among theirs.
    right: usize,
    different: usize,
    passed: bool,
    /// Until the first guest was ready, and until the process in it was prepared.
    boot_ms: f64,
    afresh_ms: f64,
    /// The fork, and how long the source stood still for it.
    fork_ms: f64,
    stand_still_ms: f64,
    /// Of each child, from its call.
    ready_ms: Spread,
    answer_ms: Spread,
    /// From the first call to the last answer.
    all_ms: f64,
    /// Preparing afresh against a child's first answer.
    ratio: f64,
    /// Of all children; of the frozen moment, some of which the children's count as well; of as many prepared afresh.
    children_bytes: u64,
    zygote_bytes: u64,
    afresh_bytes: u64,
}

/// A line of `--json` about a child.
#[derive(Debug, Serialize)]
struct Row {
    child: u16,
    ready_ms: f64,
    answer_ms: f64,
    memory_bytes: u64,
    from_byte: Option<u64>,
    /// The line before which it answered.
    line: u64,
    answer: u64,
    machine: String,
}

impl Row {
    fn new(child: &Forked) -> Self {
        Self {
            child: child.index,
            ready_ms: tenths(child.ready_ms),
            answer_ms: tenths(child.answer_ms),
            memory_bytes: child.memory_bytes,
            from_byte: child.from,
            line: child.answer.line,
            answer: child.answer.found,
            machine: child.answer.machine.clone(),
        }
    }
}

/// All of it.
pub struct Report<'a> {
    summary: Summary,
    rows: Vec<Row>,
    verdict: &'a Verdict,
}

impl<'a> Report<'a> {
    pub fn new(source: &Source, children: &[Forked], verdict: &'a Verdict) -> Self {
        let answer_ms = Spread::of(children.iter().map(|child| child.answer_ms));
        let summary = Summary {
            children: children.len(),
            right: verdict.right,
            different: verdict.different,
            passed: verdict.passed(),
            boot_ms: tenths(source.boot_ms),
            afresh_ms: tenths(source.afresh_ms),
            fork_ms: tenths(source.fork.total_ms),
            stand_still_ms: tenths(source.fork.stand_still_ms),
            ready_ms: Spread::of(children.iter().map(|child| child.ready_ms)),
            answer_ms,
            all_ms: tenths(source.all_ms),
            ratio: tenths(source.afresh_ms / answer_ms.median),
            children_bytes: children.iter().map(|child| child.memory_bytes).sum(),
            zygote_bytes: source.fork.memory_bytes,
            afresh_bytes: source.memory_bytes * children.len() as u64,
        };
        Self { summary, rows: children.iter().map(Row::new).collect(), verdict }
    }

    /// One object per child and finding, and the result.
    pub fn json(&self) -> Result<()> {
        for row in &self.rows {
            println!("{}", serde_json::to_string(row)?);
        }
        for finding in &self.verdict.findings {
            println!("{}", serde_json::json!({ "finding": finding }));
        }
        println!("{}", serde_json::to_string(&self.summary)?);
        Ok(())
    }

    /// A table, what was found, and the result.
    pub fn table(&self) {
        println!("child │ ms to ready  answer │ PSS MB │ from byte  line │ answer             machine-id");
        for row in &self.rows {
            let Row { child, ready_ms, answer_ms, line, answer, machine, .. } = row;
            let from = row.from_byte.map_or_else(|| "–".to_owned(), |byte| byte.to_string());
            let memory = megabytes(row.memory_bytes);
            println!(
                "{child:5} │ {ready_ms:11.1} {answer_ms:7.1} │ {memory:6.1} │ {from:>9} {line:5} │ {answer:<18} {machine}"
            );
        }
        let Summary { children, right, different, ready_ms: ready, answer_ms: answer, .. } = &self.summary;
        let Summary { boot_ms, afresh_ms, fork_ms, stand_still_ms, all_ms, ratio, .. } = &self.summary;
        println!("afresh {afresh_ms} ms, {boot_ms} of them to boot; fork {fork_ms} ms, stand-still {stand_still_ms}");
        println!(
            "a child is ready after {} ms (worst {}) and has answered after {} (worst {}): {ratio} times sooner; all after {all_ms}",
            ready.median, ready.worst, answer.median, answer.worst
        );
        let Summary { children_bytes, zygote_bytes, afresh_bytes, .. } = &self.summary;
        println!(
            "memory of {children} children {:.0} MB, and of what they share at most {:.0}; afresh {:.0}",
            megabytes(*children_bytes),
            megabytes(*zygote_bytes),
            megabytes(*afresh_bytes)
        );
        for finding in &self.verdict.findings {
            println!("✗ {finding}");
        }
        println!(
            "{right} of {children} went on at the same byte and answered right from one preparation; {different} different answers"
        );
        println!("{}", if self.summary.passed { "all as it must be" } else { "FAILED" });
    }
}

fn megabytes(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) * 1.024e-3
}
