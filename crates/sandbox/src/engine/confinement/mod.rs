//! What keeps a monitor that a guest has taken over from reaching anything else.
//!
//! ```text
//!   starter                    between fork and exec                     monitor
//!   files shared with it  ──►  another user, namespaces,          ──►    its system call filter,
//!   rules about files          no rights, limits, rules                  cgroups (by the starter)
//! ```
//!
//! Everything that the monitor works with is handed over open, so it needs no path but its own program's. Not every host
//! allows every measure: what cannot be had is left out, and said. [`Confinement`] is what became of it.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

mod child;
mod files;
mod group;
mod start;
#[cfg(test)]
mod tests;

pub(super) use files::{Shared, Wanted};
pub(super) use group::Limits;
pub(crate) use group::remove as remove_groups;
pub(crate) use start::try_confinement;
pub(super) use start::{Plan, Started};

/// One thing that a monitor is kept from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Measure {
    /// It runs as a user that owns nothing, if root starts it.
    User,
    /// Rights that it may ever have end with it.
    UserNamespace,
    /// It sees no other process, so that it can signal none.
    PidNamespace,
    /// It has no network.
    NetworkNamespace,
    /// It shares no System V memory and no message queues.
    IpcNamespace,
    /// It cannot rename the host.
    UtsNamespace,
    /// Mounts that others make later are not its own.
    MountNamespace,
    /// It opens its program's files to read and its machine's own, and creates none (Landlock).
    Files,
    /// Programs that it might start gain no rights.
    NoNewPrivileges,
    /// It has no capability, and never gets one.
    Capabilities,
    /// It opens few files, starts few threads, leaves no image of its memory.
    Limits,
    /// It makes no system call that it does not need (seccomp).
    SystemCalls,
    /// It takes no more memory than its machine needs (cgroup).
    MemoryGroup,
    /// It takes no more of the processors' time than its machine needs (cgroup).
    ProcessorGroup,
}

impl Measure {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 14] = [
        Self::User,
        Self::UserNamespace,
        Self::PidNamespace,
        Self::NetworkNamespace,
        Self::IpcNamespace,
        Self::UtsNamespace,
        Self::MountNamespace,
        Self::Files,
        Self::NoNewPrivileges,
        Self::Capabilities,
        Self::Limits,
        Self::SystemCalls,
        Self::MemoryGroup,
        Self::ProcessorGroup,
    ];
}

impl fmt::Display for Measure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::User => "user",
            Self::UserNamespace => "user namespace",
            Self::PidNamespace => "pid namespace",
            Self::NetworkNamespace => "network namespace",
            Self::IpcNamespace => "ipc namespace",
            Self::UtsNamespace => "uts namespace",
            Self::MountNamespace => "mount namespace",
            Self::Files => "files",
            Self::NoNewPrivileges => "no new privileges",
            Self::Capabilities => "capabilities",
            Self::Limits => "limits",
            Self::SystemCalls => "system calls",
            Self::MemoryGroup => "memory cgroup",
            Self::ProcessorGroup => "cpu cgroup",
        })
    }
}

/// What became of one measure.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Which.
    pub measure: Measure,
    /// Whether it holds.
    pub in_force: bool,
    /// What holds, or why it does not: a phrase for people.
    pub detail: String,
    /// Whether it does not hold because the caller asked for what it forbids.
    #[serde(default)]
    pub waived: bool,
}

/// What a monitor is kept from, and what not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Confinement {
    /// Each measure once, in the order of [`Measure::ALL`]; empty where nobody confined the monitor.
    pub measures: Vec<Outcome>,
}

impl Confinement {
    /// What became of `measure`, if anybody knows.
    pub fn of(&self, measure: Measure) -> Option<&Outcome> {
        self.measures.iter().find(|outcome| outcome.measure == measure)
    }

    /// Whether `measure` holds.
    pub fn holds(&self, measure: Measure) -> bool {
        self.of(measure).is_some_and(|outcome| outcome.in_force)
    }

    /// In a few words: `full`, or what is missing; and what was waived, as the caller asked for what it forbids.
    pub fn summary(&self) -> String {
        const NAMED: usize = 2;
        let missing: Vec<_> = self
            .measures
            .iter()
            .filter(|outcome| !outcome.in_force && !outcome.waived)
            .map(|out| out.measure)
            .collect();
        let waived = self.measures.iter().filter(|outcome| outcome.waived).map(|outcome| outcome.measure);
        let waived = waived.fold(String::new(), |text, measure| format!("{text}, but for the {measure}"));
        let held = self.measures.len() - missing.len();
        match missing.as_slice() {
            [] if self.measures.is_empty() => "none".to_owned(),
            [] => format!("full{waived}"),
            [Measure::MemoryGroup, Measure::ProcessorGroup] => format!("partial (no cgroup){waived}"),
            few if few.len() <= NAMED => {
                let names: Vec<_> = few.iter().map(|measure| format!("no {measure}")).collect();
                format!("partial ({}){waived}", names.join(", "))
            }
            _ => format!("partial ({held} of {}){waived}", self.measures.len()),
        }
    }

    pub(super) fn record(&mut self, measure: Measure, outcome: Result<String, String>) {
        let in_force = outcome.is_ok();
        let detail = outcome.unwrap_or_else(|why| why);
        self.put(Outcome { measure, in_force, detail, waived: false });
    }

    fn waive(&mut self, measure: Measure, why: &str) {
        self.put(Outcome { measure, in_force: false, detail: why.to_owned(), waived: true });
    }

    fn put(&mut self, outcome: Outcome) {
        self.measures.retain(|known| known.measure != outcome.measure);
        self.measures.push(outcome);
        let place = |measure: Measure| Measure::ALL.iter().position(|known| *known == measure);
        self.measures.sort_by_key(|outcome| place(outcome.measure));
    }

    /// Looks whether the running monitor has installed its filter.
    pub(super) fn look_for_filter(&mut self, pid: i32) {
        let filtered = std::fs::read_to_string(format!("/proc/{pid}/status")).map(|status| {
            status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
        });
        self.record(
            Measure::SystemCalls,
            match filtered {
                Ok(true) => Ok("the monitor's own filter is installed".into()),
                Ok(false) => Err("the monitor has no filter; install a QEMU that is built with seccomp".into()),
                Err(error) => Err(format!("its state cannot be read: {error}")),
            },
        );
    }
}

/// A refusal, in words.
fn refused(what: &str, error: &io::Error) -> String {
    format!("{what}: {error}")
}
