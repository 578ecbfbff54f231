//! What the tests left behind: processes, mounts, and files in the places where Throughline keeps its own.
//!
//! The run makes itself the *subreaper* of all it starts: an orphan becomes its child, not process 1's. So every
//! process that a test left is found among its descendants, whatever it calls itself, and nobody else's is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, WaitOptions, getpid, kill_process, set_child_subreaper, wait};

/// What was there before the tests.
pub struct Watch {
    folders: Vec<PathBuf>,
    before: BTreeSet<String>,
}

impl Watch {
    /// Starts watching: the given folders, and those that every run shares.
    pub fn begin(mut folders: Vec<PathBuf>) -> Result<Self> {
        adopt_orphans()?;
        folders.push(PathBuf::from("/run/throughline"));
        let mut watch = Self { folders, before: BTreeSet::new() };
        watch.before = watch.look()?;
        Ok(watch)
    }

    /// What is there now, was not there before, and does not go by itself within the grace period (a killed process
    /// takes a moment). Its processes are then ended.
    pub fn end(self, grace: Duration) -> Result<Vec<String>> {
        let mut left = Vec::new();
        wait_until(grace, || {
            left = self.look()?.difference(&self.before).cloned().collect();
            Ok(left.is_empty())
        })?;
        wait_until(grace, || {
            let mut remaining = descendants()?;
            remaining.retain(|process| left.contains(&process.to_string()));
            for process in &remaining {
                // It may have ended since; then there is nothing to end.
                let _ = kill_process(process.pid, Signal::KILL);
            }
            Ok(remaining.is_empty())
        })?;
        Ok(left)
    }

    fn look(&self) -> Result<BTreeSet<String>> {
        let mut seen: BTreeSet<_> = descendants()?.iter().map(ToString::to_string).collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read the list of mounts")?;
        seen.extend(mounts_of_ours(&mounts));
        for folder in &self.folders {
            files(folder, 2, &mut seen);
        }
        groups(Path::new("/sys/fs/cgroup"), 0, &mut seen);
        for root in entries(Path::new("/dev/shm")) {
            if named_after_project(&root) {
                shared_memory(&root, &mut seen);
            }
        }
        Ok(seen)
    }
}

/// Makes this process the parent of all orphans among its descendants.
pub fn adopt_orphans() -> Result<()> {
    set_child_subreaper(Some(getpid())).context("cannot become the parent of orphans")
}

/// Kills every descendant, and waits until they are gone and waited for; for long only where one cannot be killed.
pub fn end_descendants() -> Result<()> {
    // Twice: one look may miss whoever is just going over to another parent.
    let mut quiet = 0;
    wait_until(Duration::from_secs(10), || {
        let remaining = family()?;
        for process in &remaining {
            // It may have ended since; then there is nothing to end.
            let _ = kill_process(process.pid, Signal::KILL);
        }
        quiet = if remaining.is_empty() { quiet + 1 } else { 0 };
        Ok(quiet == 2)
    })
}

/// Asks until the answer is yes or time is up, taking the exit codes of orphans meanwhile.
///
/// Called when no child of its own is running.
fn wait_until(longest: Duration, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + longest;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if done()? || Instant::now() >= deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that descends from this one.
struct Process {
    pid: Pid,
    command: String,
    zombie: bool,
}

impl std::fmt::Display for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {}: {}", self.pid, self.command)
    }
}

/// All living descendants of this process.
fn descendants() -> Result<Vec<Process>> {
    let mut all = family()?;
    all.retain(|process| !process.zombie);
    Ok(all)
}

/// All descendants of this process, those included that have ended and were not waited for.
fn family() -> Result<Vec<Process>> {
    let mut children: BTreeMap<i32, Vec<(i32, char)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("cannot list processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // A process that ended meanwhile has no file any more.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((state, parent)) = state_and_parent(&stat) {
            children.entry(parent).or_default().push((pid, state));
        }
    }
    let mut found = Vec::new();
    let mut open = vec![getpid().as_raw_nonzero().get()];
    while let Some(parent) = open.pop() {
        for (child, state) in children.remove(&parent).unwrap_or_default() {
            // Also through a zombie: other threads of it may still be going, and keep its children.
            open.push(child);
            if let Some(pid) = Pid::from_raw(child) {
                let command = command_of(child);
                found.push(Process { pid, command, zombie: state == 'Z' });
            }
        }
    }
    Ok(found)
}

/// State and parent from a line of `/proc/PID/stat`; the name before them may hold anything, brackets too.
fn state_and_parent(stat: &str) -> Option<(char, i32)> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

/// The beginning of a process's command line.
fn command_of(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    line.trim_end().chars().take(160).collect()
}

/// The mounts that carry the project's name, from `/proc/self/mountinfo`.
fn mounts_of_ours(mountinfo: &str) -> impl Iterator<Item = String> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = points.filter(|point| point.contains("throughline"));
    ours.map(|point| format!("mount {point}"))
}

/// Names the control groups that carry the project's name, in every hierarchy.
fn groups(folder: &Path, depth: usize, seen: &mut BTreeSet<String>) {
    const DEEPEST: usize = 12;
    for path in entries(folder).into_iter().filter(|path| path.is_dir() && !path.is_symlink()) {
        if named_after_project(&path) {
            seen.insert(format!("control group {}", path.display()));
        } else if depth < DEEPEST {
            groups(&path, depth + 1, seen);
        }
    }
}

/// Names what lies in a folder, some levels deep.
fn files(folder: &Path, depth: usize, seen: &mut BTreeSet<String>) {
    for path in entries(folder) {
        seen.insert(format!("file {}", path.display()));
        // A link is a file that was left; what it leads to is none of this folder's.
        if depth > 1 && !path.is_symlink() {
            files(&path, depth - 1, seen);
        }
    }
}

/// A user's folder in shared memory stays for ever, empty; anything else with the project's name is a leftover.
fn shared_memory(root: &Path, seen: &mut BTreeSet<String>) {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let uid = name.strip_prefix("throughline-").unwrap_or_default();
    if !uid.chars().all(|digit| digit.is_ascii_digit()) {
        seen.insert(format!("file {}", root.display()));
    }
    files(root, 2, seen);
}

fn named_after_project(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("throughline"))
}

/// What lies in a folder; nothing where there is no folder, or none that may be read.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[test]
    fn an_orphan_in_a_session_of_its_own_is_found_and_ended() {
        let watch = Watch::begin(vec![]).expect("watching");
        // The shell starts a sleeper with an empty environment in a session of its own, and ends.
        let script = "setsid --fork env -i sleep 600 >/dev/null 2>&1";
        let status = Command::new("sh").args(["-c", script]).status().expect("a shell");
        assert!(status.success());
        let left = watch.end(SHORT).expect("an answer");
        assert!(left.iter().any(|item| item.ends_with("sleep 600")), "{left:?}");
        let living: Vec<_> = descendants().expect("a list").iter().map(ToString::to_string).collect();
        assert!(living.is_empty(), "{living:?}");
    }

    #[test]
    fn files_and_sockets_left_in_a_watched_folder_are_found() {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("old"), "").expect("a file");
        let watch = Watch::begin(vec![folder.path().to_path_buf()]).expect("watching");
        let sandbox = folder.path().join("sandbox");
        fs::create_dir(&sandbox).expect("a folder");
        let socket = std::os::unix::net::UnixListener::bind(sandbox.join("api")).expect("a socket");
        drop(socket);
        let mut left = watch.end(SHORT).expect("an answer");
        // Other tests run meanwhile, and what they have in shared memory is seen too.
        left.retain(|item| item.contains(&*folder.path().to_string_lossy()));
        let expected = [sandbox.clone(), sandbox.join("api")].map(|path| format!("file {}", path.display()));
        assert_eq!(left, expected);
    }

    #[test]
    fn shared_memory_is_watched_except_for_a_users_empty_folder() {
        let folder = tempfile::tempdir().expect("a folder");
        let (user, stray) = (folder.path().join("throughline-1000"), folder.path().join("throughline-x"));
        fs::create_dir_all(user.join("sandbox")).expect("a folder");
        fs::write(&stray, "").expect("a file");
        let mut seen = BTreeSet::new();
        shared_memory(&user, &mut seen);
        shared_memory(&stray, &mut seen);
        let expected = [user.join("sandbox"), stray].map(|path| format!("file {}", path.display()));
        assert_eq!(seen, BTreeSet::from(expected));
    }

    #[test]
    fn control_groups_are_found_in_any_depth() {
        let folder = tempfile::tempdir().expect("a folder");
        let left = folder.path().join("memory/service/throughline-1-2-3");
        fs::create_dir_all(&left).expect("a folder");
        let mut seen = BTreeSet::new();
        groups(folder.path(), 0, &mut seen);
        assert_eq!(seen, BTreeSet::from([format!("control group {}", left.display())]));
    }

    #[test]
    fn mounts_with_the_projects_name_are_found() {
        let table = "36 35 0:1 / /proc rw - proc proc rw\n37 35 0:2 / /tmp/throughline-a/tmp/m rw - tmpfs none rw\n";
        let mounts: Vec<_> = mounts_of_ours(table).collect();
        assert_eq!(mounts, ["mount /tmp/throughline-a/tmp/m"]);
    }

    #[test]
    fn a_process_named_with_brackets_keeps_its_parent() {
        assert_eq!(state_and_parent("12 (a) S (b) R 7 12 12 0"), Some(('R', 7)));
        assert_eq!(state_and_parent("12 (broken"), None);
    }
}
