//! The main path once more as an ordinary user: no rights of root's, no KVM, nothing but what such a user may read.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::nextest::{Built, Case};
use crate::report::Outcome;
use crate::surroundings::{FRESH, KEPT, Surroundings, private_folder, variables};

/// The tests that run a second time start with this.
pub const MAIN_PATH: &str = "vm_main_path";

/// Added to the id of a test that ran as an ordinary user.
pub const MARK: &str = "@user";

/// `nobody`: a user without a name, a home or rights would do as well, but this one is on every system.
const USER: u32 = 65534;

/// A watchdog, as in the runner's profile.
const DEADLINE: &str = "300";

const KVM: &str = "/dev/kvm";

/// Runs the main path's tests as another user; the caller must be root.
pub fn run(built: &Built, surroundings: &Surroundings) -> Result<Vec<Outcome>> {
    let cases: Vec<_> = built.cases_starting(MAIN_PATH).collect();
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    let home = prepare(built, &cases, surroundings)?;
    cases.iter().map(|case| run_case(case, built, &home)).collect()
}

/// The user's folders, with the tests in them: the checkout may lie where the user may not look.
fn prepare(built: &Built, cases: &[Case], surroundings: &Surroundings) -> Result<PathBuf> {
    let home = surroundings.of_user();
    let folders: Vec<_> = ["", "bin"].iter().chain(&FRESH).chain(&KEPT).map(|name| home.join(name)).collect();
    for folder in &folders {
        private_folder(folder)?;
    }
    let programs: Vec<_> = built.programs().map(|(_, file)| file).collect();
    let files: BTreeSet<_> =
        cases.iter().map(|case| case.binary).chain(programs.iter().map(PathBuf::as_path)).collect();
    for file in files {
        let copy = copy_of(file, &home);
        fs::copy(file, &copy).with_context(|| format!("cannot copy {}", file.display()))?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    }
    for folder in &folders {
        std::os::unix::fs::chown(folder, Some(USER), Some(USER))
            .with_context(|| format!("cannot give {} to user {USER}", folder.display()))?;
    }
    Ok(home)
}

fn copy_of(file: &Path, home: &Path) -> PathBuf {
    home.join("bin").join(file.file_name().unwrap_or_default())
}

fn run_case(case: &Case, built: &Built, home: &Path) -> Result<Outcome> {
    let id = format!("{}::{}{MARK}", case.suite, case.name);
    let start = Instant::now();
    let mut command = as_user(fs::metadata(KVM).is_ok_and(|kvm| open_to_all(kvm.permissions().mode())));
    command
        .arg(copy_of(case.binary, home))
        .args(["--exact", case.name])
        .current_dir(home)
        .stdin(Stdio::null())
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", home)
        .env("RUST_BACKTRACE", "1")
        .envs(variables(home, home));
    for (name, file) in built.programs() {
        command.env(format!("CARGO_BIN_EXE_{name}"), copy_of(&file, home));
    }
    let output = command.output().with_context(|| format!("cannot start {id}"))?;
    let seconds = start.elapsed().as_secs_f64();
    let text = String::from_utf8_lossy(&output.stdout);
    // A name that fits no test is a success of zero tests.
    let passed = output.status.success() && text.contains("test result: ok. 1 passed;");
    let mut outcome = Outcome::new(id, passed, seconds);
    if !passed {
        outcome.details.push(format!("as user {USER}: {}", output.status));
        outcome.details.extend(text.lines().map(str::to_owned));
        outcome.details.extend(String::from_utf8_lossy(&output.stderr).lines().map(str::to_owned));
    }
    println!("{:>12} [{seconds:>8.3}s] {}", if passed { "PASS" } else { "FAIL" }, outcome.id);
    Ok(outcome)
}

/// The beginning of a command line that ends in the program to run as the user, under a deadline.
fn as_user(hide_kvm: bool) -> Command {
    let user = USER.to_string();
    let mut command = Command::new("timeout");
    command.args(["--kill-after=10", DEADLINE]);
    if hide_kvm {
        // In a mount namespace of its own the device's place is taken by one that runs no guest.
        let hide = format!("mount --bind /dev/null {KVM} && exec \"$@\"");
        command.args(["unshare", "--mount", "sh", "-c", &hide, "sh"]);
    }
    command.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"]);
    command
}

/// Whether anyone may open a file of this mode to read and write.
fn open_to_all(mode: u32) -> bool {
    mode & 0o006 == 0o006
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_is_hidden_only_from_whom_it_is_open_to() {
        assert!(open_to_all(0o666));
        assert!(!open_to_all(0o660));
        let command = as_user(false);
        assert!(!command.get_args().any(|argument| argument == "unshare"));
    }

    #[test]
    fn the_user_has_no_rights_of_roots_and_only_root_becomes_another() {
        let script = "id -u; id -G; grep CapEff /proc/self/status";
        let output = as_user(false).args(["sh", "-c", script]).output().expect("a shell");
        assert_eq!(output.status.success(), rustix::process::geteuid().is_root(), "{output:?}");
        if output.status.success() {
            assert_eq!(String::from_utf8_lossy(&output.stdout), "65534\n65534\nCapEff:\t0000000000000000\n");
        }
    }
}
