//! Places without room: a clear error, nothing is left, and the sandbox goes on.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use crate::dying::{checkpoints, entries, kill_machine, kill_shim, no_zygote_is_left};
use crate::pools::{Pool, standing};
use crate::support::{Name, places, printed, refused, row, until};

const SMALL: &str = "THROUGHLINE_TEST_SMALL";
/// What is left free, in bytes: enough for what runs, and not for any RAM image.
const LITTLE: u64 = 12 << 20;

/// A file that takes nearly all of a file system, until this is dropped.
struct Ballast(PathBuf);

impl Ballast {
    fn new(folder: &Path) -> Self {
        let ballast = Self(folder.join("ballast"));
        let space = statvfs(folder).unwrap();
        let length = space.f_bavail * space.f_frsize - LITTLE;
        fallocate(File::create(&ballast.0).unwrap(), FallocateFlags::empty(), 0, length).unwrap();
        ballast
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
    }
}

/// Runs a test once more, in a mount namespace of its own, with a small `/dev/shm`.
fn inside(test: &str) {
    let folder = tempfile::tempdir().unwrap();
    // A mount is for root to make: here it is root of a namespace, where that is needed.
    let outside: &[&str] = if rustix::process::getuid().is_root() { &[] } else { &["--user", "--map-root-user"] };
    let script = "mkdir \"$1/run\" \"$1/small\" && export XDG_RUNTIME_DIR=\"$1/run\" && \
                  mount -t tmpfs -o size=600m none /dev/shm && mount -t tmpfs -o size=16m none \"$1/small\" && exec \"$2\" --exact \"$3\" --nocapture";
    let mut run = Command::new("unshare");
    run.args(outside).args(["--mount", "sh", "-c", script, "sh"]).arg(folder.path());
    run.arg(std::env::current_exe().unwrap()).arg(test).env(SMALL, folder.path().join("small"));
    let output = run.output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.contains("1 passed"), "{words}");
}

/// The command fails for want of room in this folder, and says so.
fn no_space(arguments: &[&str], place: &str) {
    let error = refused(&[&["--json"], arguments].concat());
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("no space") && message.contains("make room"), "{arguments:?}: {error}");
    assert!(message.contains(place), "{arguments:?}: {error}");
}

#[test]
fn vm_commands_for_which_there_is_no_room_say_where_and_leave_nothing_and_the_sandbox_goes_on() {
    let Some(small) = std::env::var_os(SMALL).map(PathBuf::from) else {
        return inside(
            "space::vm_commands_for_which_there_is_no_room_say_where_and_leave_nothing_and_the_sandbox_goes_on",
        );
    };
    let (name, child, shm) = (Name::new("full"), Name::new("full-child"), Path::new("/dev/shm"));
    let pool = Pool(format!("full-pool-{}", std::process::id()));
    printed(["run", "--memory", "128M", "--name", &name.0, "--checkpoint", "1h"]);
    until(|| !checkpoints(&name)["last"].is_null());
    let [memory, runtime] = places(&name.0);
    let log = || fs::read_to_string(runtime.join("shim.log")).unwrap();
    let goes_on = || {
        assert_eq!(printed(["exec", &name.0, "--", "echo", "on"]), "on\n");
        assert_eq!(row(&name.0).unwrap()["state"], "running");
    };
    let place = small.join("bundle");
    no_space(&["snapshot", "create", &name.0, "--stop", place.to_str().unwrap()], small.to_str().unwrap());
    assert!(entries(&small).is_empty(), "{:?}", entries(&small));
    goes_on();
    let full = Ballast::new(shm);
    no_space(&["fork", &name.0, &child.0], "/dev/shm/");
    assert!(row(&child.0).is_none());
    no_space(&["pool", "create", &name.0, &pool.0], "/dev/shm/");
    assert!(standing(&pool.0).is_none());
    assert!(!runtime.with_file_name("+pools").join(&pool.0).exists());
    no_zygote_is_left();
    goes_on();
    // One more checkpoint, a new shim's first, is not taken; the last one stays.
    let (told, last) = (log().len(), checkpoints(&name)["last"].clone());
    kill_shim(&name);
    goes_on();
    until(|| log()[told..].contains("a checkpoint was not taken"));
    let why = log()[told..].to_owned();
    assert!(why.contains("no space") && why.contains(memory.to_str().unwrap()), "{why}");
    assert_eq!(checkpoints(&name)["last"], last);
    let kept = last["folder"].as_str().unwrap();
    until(|| entries(&memory) == ["current", "runtime", kept].map(str::to_owned).into());
    goes_on();
    drop(full);

    // With room, all of them are there.
    until(|| checkpoints(&name)["last"] != last);
    printed(["fork", &name.0, &child.0]);
    printed(["rm", "--force", &child.0]);
    printed(["pool", "create", &name.0, &pool.0, "-n", "1"]);
    printed(["pool", "take", &pool.0, &child.0]);
    assert_eq!(printed(["exec", &child.0, "--", "echo", "here"]), "here\n");
    printed(["rm", "--force", &child.0]);
    printed(["pool", "rm", &pool.0]);
    kill_machine(&name);
    until(|| checkpoints(&name)["times"] == 1);
    goes_on();
}
