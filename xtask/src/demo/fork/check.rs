//! The verdict: each child held against the source, and all of them against each other.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result};
use throughline_sandbox::Zygote;

use super::transcript::{Answer, Preparation, Prepared};

/// What is known of the guest that was prepared.
#[derive(Debug)]
pub struct Source {
    pub timeline: u128,
    pub preparation: Preparation,
    /// Bytes of its output that were read before the fork.
    pub from: u64,
    /// From the call until the guest was ready, and until the process in it was prepared.
    pub boot_ms: f64,
    pub afresh_ms: f64,
    pub memory_bytes: u64,
    pub fork: Fork,
    /// From the first child's call to the last child's answer.
    pub all_ms: f64,
    /// After the fork.
    pub answer: Option<Answer>,
    pub findings: Vec<String>,
}

/// What the fork came to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fork {
    pub total_ms: f64,
    pub stand_still_ms: f64,
    /// What the frozen moment takes on tmpfs.
    pub memory_bytes: u64,
}

impl Fork {
    /// Of this zygote.
    pub fn of(zygote: &Zygote) -> Result<Self> {
        let report = zygote.report().context("the zygote does not tell what it cost")?;
        let files = std::fs::read_dir(zygote.bundle().folder()).context("cannot look into the zygote")?;
        let blocks = files.map(|file| Ok(file?.metadata()?.blocks())).sum::<Result<u64>>()?;
        Ok(Self {
            total_ms: report.total.as_secs_f64() * 1e3,
            stand_still_ms: report.stand_still.as_secs_f64() * 1e3,
            memory_bytes: blocks * 512,
        })
    }
}

/// What is known of a child.
#[derive(Debug)]
pub struct Forked {
    pub index: u16,
    /// From the call until its guest was ready, and until it had answered.
    pub ready_ms: f64,
    pub answer_ms: f64,
    pub memory_bytes: u64,
    pub timeline: u128,
    /// The timeline that its owner was told it is forked from, and its number.
    pub lineage: Option<(u128, u64)>,
    /// The first byte of its output that was read.
    pub from: Option<u64>,
    pub answer: Answer,
    /// What was wrong with its output.
    pub findings: Vec<String>,
}

impl Forked {
    /// What is wrong with it.
    fn findings(&self, source: &Source, prepared: &Prepared) -> Vec<String> {
        let mut findings = self.findings.clone();
        if self.from != Some(source.from) {
            findings
                .push(format!("its output goes on at byte {:?}, its parent's stopped at {}", self.from, source.from));
        }
        if self.lineage != Some((source.timeline, self.index.into())) {
            findings.push("its owner was not told whose child it is, and which".to_owned());
        }
        findings.extend(self.answer.findings(prepared, &source.preparation, self.timeline));
        findings
    }
}

/// Everything that is not as it must be.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub findings: Vec<String>,
    /// Children with nothing wrong of their own.
    pub right: usize,
    /// Different answers among theirs.
    pub different: usize,
}

impl Verdict {
    pub fn passed(&self) -> bool {
        self.findings.is_empty()
    }
}

/// Judges all of them.
pub fn judge(prepared: &Prepared, source: &Source, children: &[Forked]) -> Verdict {
    let mut verdict = Verdict::default();
    let answer = source.answer.as_ref();
    let own = answer.map(|answer| answer.findings(prepared, &source.preparation, source.timeline));
    let own = own.unwrap_or_else(|| vec!["it does not answer".to_owned()]);
    verdict.findings.extend(source.findings.iter().chain(&own).map(|finding| format!("source: {finding}")));
    for child in children {
        let findings = child.findings(source, prepared);
        verdict.right += usize::from(findings.is_empty());
        verdict.findings.extend(findings.into_iter().map(|finding| format!("child {}: {finding}", child.index)));
    }
    let children = children.iter().map(|child| (format!("child {}", child.index), &child.answer));
    let all: Vec<_> = answer.map(|answer| ("source".to_owned(), answer)).into_iter().chain(children).collect();
    let answers = alike("answer", all.iter().map(|(who, answer)| (who, answer.found)));
    // The source's is not counted.
    let distinct = all.len() - answers.iter().map(|(_, doubles)| doubles).sum::<usize>();
    verdict.different = distinct.saturating_sub(usize::from(answer.is_some()));
    let machines = alike("machine-id", all.iter().map(|(who, answer)| (who, &answer.machine)));
    let random = alike("random bytes", all.iter().map(|(who, answer)| (who, format!("{:032x}", answer.random))));
    verdict.findings.extend([answers, machines, random].into_iter().flatten().map(|(finding, _)| finding));
    verdict
}

/// Who has the same as somebody else, and how many too many there are of it.
fn alike<'a, T: Ord + Display>(what: &str, all: impl Iterator<Item = (&'a String, T)>) -> Vec<(String, usize)> {
    let mut owners: BTreeMap<T, Vec<&str>> = BTreeMap::new();
    all.for_each(|(who, value)| owners.entry(value).or_default().push(who));
    let several = owners.into_iter().filter(|(_, who)| who.len() > 1);
    several.map(|(value, who)| (format!("alike, {what} {value}: {}", who.join(", ")), who.len() - 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(prepared: &Prepared, number: u64) -> Answer {
        let (epoch, random) = (u128::from(number) << 64, u128::from(number) << 32);
        let preparation = Preparation { nonce: "00ff".to_owned(), at: 17, preparations: 1 };
        let found = prepared.answer(epoch ^ random);
        Answer { found, line: 9, epoch, machine: format!("machine-{number}"), random, preparation }
    }

    fn source(prepared: &Prepared) -> Source {
        let answer = answer(prepared, 1);
        Source {
            timeline: answer.epoch,
            preparation: answer.preparation.clone(),
            from: 1000,
            boot_ms: 1.0,
            afresh_ms: 2.0,
            memory_bytes: 3,
            fork: Fork::default(),
            all_ms: 4.0,
            answer: Some(answer),
            findings: Vec::new(),
        }
    }

    fn child(prepared: &Prepared, index: u16) -> Forked {
        let answer = answer(prepared, u64::from(index) + 2);
        Forked {
            index,
            ready_ms: 1.0,
            answer_ms: 2.0,
            memory_bytes: 3,
            timeline: answer.epoch,
            lineage: Some((1 << 64, index.into())),
            from: Some(1000),
            answer,
            findings: Vec::new(),
        }
    }

    /// What is found when this is done to one of three children.
    fn found(change: impl FnOnce(&mut Source, &mut [Forked])) -> Verdict {
        // No family is empty.
        let prepared = Prepared::below(100_000);
        let mut source = source(&prepared);
        let mut children = [0, 1, 2].map(|index| child(&prepared, index));
        change(&mut source, &mut children);
        judge(&prepared, &source, &children)
    }

    #[test]
    fn children_that_are_right_and_differ_pass() {
        assert_eq!(found(|_, _| {}), Verdict { findings: vec![], right: 3, different: 3 });
    }

    #[test]
    fn whatever_is_wrong_with_one_child_is_found_and_says_with_which() {
        type Change = fn(&mut Forked);
        let changes: [(Change, &str); 6] = [
            (|child| child.from = Some(999), "goes on at byte"),
            (|child| child.from = None, "goes on at byte"),
            (|child| child.lineage = Some((1 << 64, 9)), "whose child"),
            (|child| child.timeline += 1, "believes to be"),
            (|child| child.answer.found += 1, "is right"),
            (|child| child.findings.push("a byte is missing".to_owned()), "a byte is missing"),
        ];
        for (change, expected) in changes {
            let verdict = found(|_, children| change(&mut children[1]));
            let [finding] = &verdict.findings[..] else { panic!("{verdict:?}") };
            assert!(finding.starts_with("child 1: ") && finding.contains(expected), "{finding}");
            assert_eq!((verdict.right, verdict.passed()), (2, false));
        }
    }

    #[test]
    fn children_that_are_alike_are_found() {
        let machine = found(|_, children| children[2].answer.machine = children[0].answer.machine.clone());
        assert_eq!(machine.findings, ["alike, machine-id machine-2: child 0, child 2"]);
        let twins = found(|_, children| {
            let twin = children[0].answer.clone();
            (children[1].timeline, children[1].answer) = (children[0].timeline, twin);
        });
        assert_eq!((twins.right, twins.different, twins.findings.len()), (3, 2, 3), "{twins:?}");
    }

    #[test]
    fn the_source_must_go_on_too() {
        assert_eq!(found(|source, _| source.answer = None).findings, ["source: it does not answer"]);
        let wrong = found(|source, _| source.findings.push("its output ends".to_owned()));
        assert_eq!((wrong.findings, wrong.different), (vec!["source: its output ends".to_owned()], 3));
    }
}
