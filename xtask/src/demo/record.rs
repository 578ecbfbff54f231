//! What a client writes down: one append-only file per timeline.
//!
//! Each entry is one `write`, and so is in the kernel's hands before the next step is taken: SIGKILL loses no entry,
//! and tears at most the last.
//!
//! *Exactness.* A piece is received in three steps: peek, entry, commit. Whoever is killed or frozen between entry and
//! commit has written down a piece that was not consumed. It is told apart by its position: what a snapshot carries is
//! exactly what lies behind the position that the channel reports at that moment, and a timeline's own history are its
//! entries before it. So each byte counts once in each timeline.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use throughline::{ChannelInfo, Link};
use throughline_wire::report;

use super::course::Course;

/// Where a channel stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Which channel.
    pub course: Course,
    /// Seed of what it carries.
    pub seed: u64,
    /// Position at which the host's bytes began.
    pub sent_from: u64,
    /// End of the host's bytes.
    pub sent: u64,
    /// Of those, unread by the guest.
    pub sent_unread: u64,
    /// Position at which the guest's bytes began.
    pub received_from: u64,
    /// End of the guest's bytes that were read.
    pub received: u64,
    /// The guest's bytes that wait.
    pub unread: u64,
}

impl Mark {
    /// Of a channel of the demo; `None` for any other.
    pub fn of(info: &ChannelInfo) -> Option<Self> {
        let (course, seed) = Course::from_label(&info.label)?;
        Some(Self {
            course,
            seed,
            sent_from: info.sent_from,
            sent: info.sent,
            sent_unread: info.sent_unread,
            received_from: info.received_from,
            received: info.received,
            unread: info.unread,
        })
    }

    /// Of all of the demo's channels.
    pub fn all(link: &Link) -> Vec<Self> {
        let mut marks: Vec<_> = link.channels().iter().filter_map(Self::of).collect();
        marks.sort_by_key(|mark| mark.course);
        marks
    }
}

/// Something that a client did or saw.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The timeline began: where its channels stood, before anybody took them.
    Began {
        /// This timeline.
        timeline: u128,
        /// In the order of the courses.
        marks: Vec<Mark>,
    },
    /// A piece is about to be sent at this position.
    Sending {
        /// On which channel.
        course: Course,
        /// End of what was sent before.
        at: u64,
        /// Bytes of it.
        len: u64,
    },
    /// A piece was received; it is consumed when the next entry of this channel exists, or a mark says so.
    Received {
        /// On which channel.
        course: Course,
        /// End of what was received before.
        at: u64,
        /// The piece.
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// A snapshot: where the channels stood while everything stood still.
    Frozen(Vec<Mark>),
    /// The source goes on after a snapshot.
    GoesOn,
    /// What the guest had written down.
    Guest(Vec<report::Channel>),
    /// A channel failed.
    Failed {
        /// Which.
        course: Course,
        /// How.
        error: String,
    },
    /// Both ends of every channel have come to their end.
    Finished,
}

/// An event and its time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Milliseconds since the client began.
    pub ms: u64,
    /// What happened.
    pub event: Event,
}

/// The file of a timeline.
pub fn path(folder: &Path, timeline: usize) -> PathBuf {
    folder.join(format!("timeline-{timeline}"))
}

/// Writes entries. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Writer {
    file: Arc<Mutex<File>>,
    started: Instant,
}

impl Writer {
    /// Begins the record of a timeline.
    pub fn create(folder: &Path, timeline: usize) -> Result<Self> {
        let path = path(folder, timeline);
        let file = File::options().append(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self { file: Arc::new(Mutex::new(file)), started: Instant::now() })
    }

    /// Adds an entry; it is safe when this returns.
    pub fn add(&self, event: Event) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry { ms: self.started.elapsed().as_millis() as u64, event };
        let body = postcard::to_stdvec(&entry)?;
        let mut bytes = (body.len() as u32).to_le_bytes().to_vec();
        bytes.extend(body);
        file.write_all(&bytes).context("cannot write the client's record")
    }
}

/// Reads a timeline's entries; a torn last one is left out.
pub fn read(folder: &Path, timeline: usize) -> Result<Vec<Entry>> {
    let path = path(folder, timeline);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rest = bytes.as_slice();
    let mut entries = Vec::new();
    while let Some((length, behind)) = rest.split_first_chunk() {
        let Some((body, behind)) = behind.split_at_checked(u32::from_le_bytes(*length) as usize) else { break };
        entries.push(postcard::from_bytes(body).with_context(|| format!("{} is damaged", path.display()))?);
        rest = behind;
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_last_entry_is_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let writer = Writer::create(folder.path(), 3).expect("a record");
        let piece = |at| Event::Received { course: Course::Stream, at, bytes: vec![1; 50] };
        writer.add(piece(0)).expect("an entry");
        writer.add(piece(50)).expect("an entry");
        let path = path(folder.path(), 3);
        let length = std::fs::metadata(&path).expect("a file").len();
        File::options().write(true).open(&path).and_then(|file| file.set_len(length - 1)).expect("a torn file");
        let entries = read(folder.path(), 3).expect("entries");
        assert_eq!(entries.into_iter().map(|entry| entry.event).collect::<Vec<_>>(), [piece(0)]);
    }
}
