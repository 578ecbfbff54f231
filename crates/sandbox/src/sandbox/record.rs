//! `sandbox.json`: what is known of a sandbox without asking anybody, and what a new process needs to take it over.
//!
//! It is renamed into place before what it says becomes true: whoever dies in between leaves an intention that the
//! next process carries out. The first one makes the sandbox: what died before it is wiped by whoever comes next.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use throughline::Link;

use super::About;
use crate::SandboxError;
use crate::bundle::{Bundle, BundleError, FileEntry};
use crate::engine::{Exit, Hardware, VmRecord};
use crate::image::Rootfs;
use crate::places::RECORD;
use crate::steps::step;

/// Its version. A reader refuses another one.
const VERSION: u32 = 2;

/// The next one, until it has its name.
const NEW: &str = "sandbox.json.new";

/// How often a sandbox goes back to one checkpoint: what ends its machine every time is not helped by it.
const MOST_TRIES: u32 = 5;

/// How often a sandbox comes back in a row to die again before it is [steady](STEADY): a guest that ends its machine soon
/// after each start would otherwise take a checkpoint, die and come back for ever.
const MOST_SHORT_LIVES: u32 = 5;

/// A timeline that lives for so long is no short life: longer than coming back takes, its checkpoint included, and than
/// most of what goes wrong soon after a start; shorter than most periods of checkpoints.
pub(super) const STEADY: Duration = Duration::from_secs(30);

/// Whether the guest is meant to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// It runs.
    Running,
    /// Somebody paused it.
    Paused,
    /// Somebody ended it.
    Ended,
}

/// The moment that a sandbox goes back to when its machine dies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Its bundle's name, beside `current`.
    pub folder: String,
    /// When it was taken, in milliseconds since 1970.
    pub taken_ms: u64,
}

/// Checkpoints, and what came of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoints {
    /// How often one is to be taken, in milliseconds; `None` for never.
    pub every_ms: Option<u64>,
    /// The last one.
    pub last: Option<Checkpoint>,
    /// A process is going back to it, or has died while it was.
    pub going_back: bool,
    /// How often the guest was let run from the last one, or that was damaged. What fails before, for
    /// want of an emulator or of memory, say, is no fault of the checkpoint's.
    pub tries: u32,
    /// How many of these have come to nothing since it came back last.
    #[serde(default)]
    pub vain_tries: u32,
    /// Why it did not come back when that was tried last.
    #[serde(default)]
    pub vain_error: Option<String>,
    /// How often it has come back since one of its timelines lived for half a minute: five times at most.
    #[serde(default)]
    pub short_lives: u32,
    /// How often the sandbox has come back in all.
    pub times: u32,
    /// How the machine ended that was lost last, if somebody saw it.
    pub lost: Option<Exit>,
}

impl Checkpoints {
    /// Another one was taken, by a timeline of this age. What came of older ones no longer matters, but for how soon
    /// those died that came back from them.
    pub(super) fn taken(&mut self, checkpoint: Checkpoint, age: Duration) {
        self.last = Some(checkpoint);
        (self.tries, self.vain_tries) = (0, 0);
        if age >= STEADY {
            self.short_lives = 0;
        }
    }
}

/// A sandbox on paper.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form.
    pub version: u32,
    /// The name.
    pub name: String,
    /// When it was created or restored, in milliseconds since 1970.
    pub created_ms: u64,
    /// The image's id.
    pub image: String,
    /// The image's root file system, if it has one.
    pub rootfs: Option<Rootfs>,
    /// The kernel's version.
    pub kernel: String,
    /// What the machine has.
    #[serde(flatten)]
    pub hardware: Hardware,
    /// The agent's protocol version.
    pub agent: u32,
    /// The image under its RAM, if it was loaded from one: what is known of it.
    #[serde(default)]
    pub ram: Option<FileEntry>,
    /// The timeline that runs.
    pub timeline: String,
    /// The one machine that may run.
    pub machine: VmRecord,
    /// Whether it is meant to.
    pub wanted: Wanted,
    /// The draft of a snapshot under way: nobody's, once the process that takes it has died.
    pub snapshot: Option<PathBuf>,
    /// The bundle with which the sandbox is to end: once it is there, the machine must not run.
    #[serde(default)]
    pub stopping: Option<PathBuf>,
    /// What it goes back to when its machine dies.
    #[serde(default)]
    pub checkpoints: Checkpoints,
    /// Whether name and logs vanish when the machine ends.
    pub rm: bool,
    /// How it ended, if it has.
    pub exit: Option<Exit>,
}

impl Record {
    pub(super) fn new(name: &str, about: &About, link: &Link, machine: &VmRecord) -> Self {
        let About { image, rootfs, kernel, hardware, agent, ram, .. } = about.clone();
        Self {
            version: VERSION,
            name: name.to_owned(),
            created_ms: now_ms(),
            image,
            rootfs,
            kernel,
            hardware,
            agent,
            ram,
            timeline: format!("{:032x}", link.timeline()),
            machine: machine.clone(),
            wanted: Wanted::Running,
            snapshot: None,
            stopping: None,
            checkpoints: Checkpoints::default(),
            rm: false,
            exit: None,
        }
    }

    /// The same sandbox in another timeline, on another machine.
    pub(super) fn gone_back(mut self, about: &About, link: &Link, machine: &VmRecord) -> Self {
        // It has come from another image, perhaps.
        self.ram = about.ram;
        self.timeline = format!("{:032x}", link.timeline());
        self.machine = machine.clone();
        self.checkpoints.going_back = false;
        (self.checkpoints.vain_tries, self.checkpoints.vain_error) = (0, None);
        self.checkpoints.times += 1;
        self.checkpoints.short_lives += 1;
        self
    }

    /// One more try to go back, from here on in vain unless it [comes to its end](Self::gone_back).
    pub(super) fn count_try(&mut self) {
        self.checkpoints.tries += 1;
        self.checkpoints.vain_tries += 1;
    }

    /// Puts on paper why it does not come back.
    pub(super) fn not_back(&mut self, error: &SandboxError, runtime: &Path) {
        self.checkpoints.vain_error = Some(error.to_string());
        if let Err(unwritten) = self.write(runtime) {
            tracing::warn!(%error, %unwritten, "it is not on paper why this sandbox does not come back");
        }
    }

    /// How it ended, if it did not come back.
    pub(super) fn in_vain(&self, exit: Exit) -> Exit {
        let Checkpoints { going_back, vain_tries, vain_error, short_lives, .. } = &self.checkpoints;
        if *going_back {
            return Exit { vain_tries: *vain_tries, vain_error: vain_error.clone(), ..exit };
        }
        if *short_lives < MOST_SHORT_LIVES || self.wanted == Wanted::Ended || !exit.reason.is_death() {
            return exit;
        }
        let vain_error = format!(
            "it came back from its last checkpoint {short_lives} times in a row, and each time its machine died within {} s",
            STEADY.as_secs()
        );
        Exit { vain_error: Some(vain_error), ..exit }
    }

    /// Whether there is a checkpoint to go back to, and nobody wanted the machine to end.
    pub fn may_go_back(&self) -> bool {
        let Checkpoints { last, tries, short_lives, .. } = &self.checkpoints;
        last.is_some()
            && *tries < MOST_TRIES
            && *short_lives < MOST_SHORT_LIVES
            && self.wanted != Wanted::Ended
            && self.exit.is_none()
    }

    /// Whether the bundle with which the sandbox was to end is there.
    pub(super) fn has_stopped(&self) -> bool {
        match self.stopping.as_deref().map(Bundle::open) {
            None | Some(Err(BundleError::Absent(_))) => false,
            Some(Ok(bundle)) => bundle.manifest().timeline == self.timeline,
            // It cannot be told: the machine must not change what may be a bundle's RAM.
            Some(Err(_)) => true,
        }
    }

    pub(super) fn about(&self) -> About {
        About {
            image: self.image.clone(),
            rootfs: self.rootfs.clone(),
            kernel: self.kernel.clone(),
            hardware: self.hardware,
            agent: self.agent,
            ram: self.ram,
            timings: super::Timings::default(),
        }
    }

    /// Puts it into a sandbox's runtime folder, in one step.
    pub(super) fn write(&self, runtime: &Path) -> Result<(), SandboxError> {
        // Only who drives the sandbox writes it, one at a time; what one who died left half-written is overwritten.
        let new = runtime.join(NEW);
        let write = || {
            let encoded = serde_json::to_vec(self)?;
            let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(&encoded)?;
            step("record");
            fs::rename(&new, runtime.join(RECORD))?;
            step("recorded");
            Ok(())
        };
        write().map_err(SandboxError::io("write sandbox.json"))
    }

    /// Reads the one in a runtime folder; `None` where there is none.
    pub(crate) fn read(runtime: &Path) -> Result<Option<Self>, SandboxError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let bytes = match fs::read(runtime.join(RECORD)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(SandboxError::io("read sandbox.json")(error)),
        };
        let damaged = |error: serde_json::Error| SandboxError::Record(error.to_string());
        let Version { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(SandboxError::Record(format!(
                "it has version {version}, and this program knows {VERSION}: use the release that made the sandbox"
            )));
        }
        serde_json::from_slice(&bytes).map(Some).map_err(damaged)
    }
}

/// Milliseconds since 1970; zero for a clock before that.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_forgets_how_often_others_were_tried_and_a_steady_timelines_how_often_it_came_back() {
        let checkpoint = Checkpoint { folder: "checkpoint-1".to_owned(), taken_ms: 1 };
        let mut known = Checkpoints { tries: 4, vain_tries: 3, short_lives: 2, ..Checkpoints::default() };
        known.taken(checkpoint.clone(), Duration::from_secs(STEADY.as_secs() - 1));
        assert_eq!((known.tries, known.vain_tries, known.short_lives), (0, 0, 2));
        known.taken(checkpoint, STEADY);
        assert_eq!(known.short_lives, 0);
    }
}
