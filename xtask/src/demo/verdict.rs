//! The verdict, from what clients and guests wrote down, and from the bundles.
//!
//! A timeline's history is that of its ancestors up to their snapshots, and then its own. A source's own history after
//! its snapshot is a side line, judged up to where it was killed.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use throughline_sandbox::bundle::{REGION, SIDECAR};

use super::chain::{BUNDLES, RECORDS};
use super::history::History;
use super::record;
use super::rings::Rings;

/// What the judge is told.
#[derive(clap::Args)]
pub struct Arguments {
    /// The demo's folder
    #[arg(long)]
    folder: PathBuf,
    /// How many restores there were to be
    #[arg(long)]
    restores: usize,
}

/// What went wrong, in records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    pub lost: u64,
    pub doubled: u64,
    pub reordered: u64,
    /// Pieces that are no record.
    pub damaged: u64,
}

/// Unread bytes of a channel's two rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    pub to_guest: u64,
    pub to_host: u64,
}

/// The verdict on one timeline.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Timeline {
    pub number: usize,
    /// What its snapshot carried: messages, stream.
    pub carried: Vec<Carried>,
    /// Records that its client sent.
    pub sent: u64,
    /// Pieces that its client received.
    pub received: u64,
    /// What went wrong in it.
    pub figures: Figures,
    /// How long it went on after its snapshot.
    pub went_on_ms: Option<u64>,
    /// Pieces of those received after the snapshot.
    pub after: u64,
    /// Bytes of the command's output up to its end or its snapshot.
    pub heard: usize,
}

/// The verdict on the whole.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdict {
    pub timelines: Vec<Timeline>,
    pub figures: Figures,
    pub exec_complete: bool,
    /// Everything that is not as it must be.
    pub findings: Vec<String>,
}

impl Figures {
    pub fn plus(self, other: Self) -> Self {
        Self {
            lost: self.lost + other.lost,
            doubled: self.doubled + other.doubled,
            reordered: self.reordered + other.reordered,
            damaged: self.damaged + other.damaged,
        }
    }

    pub fn minus(self, other: Self) -> Self {
        Self {
            lost: self.lost.saturating_sub(other.lost),
            doubled: self.doubled.saturating_sub(other.doubled),
            reordered: self.reordered.saturating_sub(other.reordered),
            damaged: self.damaged.saturating_sub(other.damaged),
        }
    }
}

impl Verdict {
    /// Whether nothing was lost, and everything was put to the test.
    pub fn passed(&self) -> bool {
        self.findings.is_empty() && self.figures == Figures::default() && self.exec_complete
    }

    /// Unread bytes that all snapshots carried.
    pub fn carried_bytes(&self) -> u64 {
        let rings = self.timelines.iter().flat_map(|timeline| &timeline.carried);
        rings.map(|carried| carried.to_guest + carried.to_host).sum()
    }
}

/// Judges, and prints the verdict.
pub fn run(arguments: &Arguments) -> Result<bool> {
    let verdict = judge(&arguments.folder, arguments.restores);
    println!("{}", serde_json::to_string(&verdict)?);
    Ok(true)
}

fn judge(folder: &Path, restores: usize) -> Verdict {
    let mut verdict = Verdict::default();
    let mut history = History::default();
    for number in 0..=restores {
        let entries = record::read(&folder.join(RECORDS), number).unwrap_or_else(|error| {
            verdict.findings.push(format!("timeline {number}: {error:#}"));
            Vec::new()
        });
        let (timeline, findings) = history.timeline(number, number == restores, &entries);
        verdict.figures = verdict.figures.plus(timeline.figures);
        verdict.findings.extend(findings.into_iter().map(|finding| format!("timeline {number}: {finding}")));
        let over = timeline.carried.is_empty();
        verdict.timelines.push(timeline);
        if number > 0 {
            verdict.findings.extend(leaks(folder, number));
        }
        if over {
            break;
        }
    }
    verdict.exec_complete = history.command_complete();
    verdict
}

/// What a bundle holds that had been read before.
fn leaks(folder: &Path, number: usize) -> Option<String> {
    let bundle = folder.join(BUNDLES).join(number.to_string());
    let leaked = Rings::open(&bundle.join(REGION), &bundle.join(SIDECAR)).and_then(|rings| rings.leaked());
    match leaked {
        Ok(0) => None,
        Ok(bytes) => Some(format!("bundle {number}: {bytes} bytes that had been read leaked into it")),
        Err(error) => Some(format!("bundle {number}: {error:#}")),
    }
}
