//! Clocks that jump, in the guest and on the host: nothing is disturbed, and guests are given the host's.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::dying::{checkpoints, kill_machine};
use crate::support::{Name, command, json, printed, text, until};

const YEAR: i64 = 365 * 24 * 3600;
/// What a test may take, in seconds: far less than any jump.
const CLOSE: i64 = 600;

/// Shows processes another clock than the system's.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// A host's clock that jumps, for commands and the shims that they start. Deadlines are measured by another one, which
/// never jumps.
struct Clock(tempfile::TempDir);

impl Clock {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        this.jump(0);
        this
    }

    /// From here on it is off by so many years.
    fn jump(&self, years: i64) {
        let (new, offset) = (self.0.path().join("new"), self.0.path().join("offset"));
        fs::write(&new, format!("{:+}d\n", 365 * years)).unwrap();
        fs::rename(new, offset).unwrap();
    }

    fn start(&self, arguments: &[&str]) -> Child {
        assert!(Path::new(FAKETIME).exists(), "{FAKETIME} is missing: install libfaketime");
        let mut start = Command::new(command());
        start.env("LD_PRELOAD", FAKETIME).env("FAKETIME_TIMESTAMP_FILE", self.0.path().join("offset"));
        for switch in ["FAKETIME_NO_CACHE", "FAKETIME_DISABLE_SHM", "DONT_FAKE_MONOTONIC", "NO_FAKE_STAT"] {
            start.env(switch, "1");
        }
        with(start, arguments)
    }

    fn printed(&self, arguments: &[&str]) -> String {
        let output = self.start(arguments).wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Milliseconds, in the eyes of `ls`, since a sandbox was made.
    fn age_ms(&self, name: &Name) -> i64 {
        // For people, too.
        assert!(self.printed(&["ls"]).contains(&name.0));
        let listed: serde_json::Value = serde_json::from_str(&self.printed(&["ls", "--json"])).unwrap();
        let row = listed.as_array().unwrap().iter().find(|row| row["name"] == name.0.as_str()).unwrap();
        row["age_ms"].as_i64().unwrap()
    }
}

fn with(mut command: Command, arguments: &[&str]) -> Child {
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// By how many seconds the guest's clock is off.
fn off(name: &Name) -> i64 {
    printed(["exec", &name.0, "--", "date", "+%s"]).trim().parse::<i64>().unwrap() - now()
}

#[test]
fn vm_a_clock_that_jumps_disturbs_nothing_and_is_right_after_the_next_restore() {
    let name = Name::new("clock");
    printed(["run", "--memory", "128M", "--name", &name.0]);
    let script = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let expected: String = (0..60).fold(String::new(), |text, i| text + &format!("line {i}\n"));
    // In the guest, forwards and backwards, while something flows.
    for jump in ["2040-01-01 00:00", "1999-01-01 00:00"] {
        let follow = with(Command::new(command()), &["exec", &name.0, "--", "sh", "-c", script]);
        printed(["exec", &name.0, "--", "date", "-s", jump]);
        let followed = follow.wait_with_output().unwrap();
        assert_eq!(text(&followed.stdout), expected, "{}", text(&followed.stderr));
    }
    assert!(off(&name).abs() > YEAR, "it is off");
    // A snapshot of a clock that is wrong.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let place = folder.path().join("bundle");
    printed(["snapshot", "create", &name.0, place.to_str().unwrap()]);
    let restored = Name::new("clock-right");
    printed(["snapshot", "restore", place.to_str().unwrap(), "--name", &restored.0]);
    assert!(off(&restored).abs() < CLOSE, "{}", off(&restored));
}

#[test]
fn vm_a_host_clock_that_jumps_by_a_year_disturbs_nothing_and_is_what_guests_are_given() {
    let (name, clock) = (Name::new("host-clock"), Clock::new());
    clock.printed(&["run", "--memory", "128M", "--checkpoint", "300ms", "--name", &name.0]);
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let script = "i=0; while [ $i -lt 60 ]; do echo line $i; i=$((i+1)); sleep 0.02; done";
    let expected: String = (0..60).fold(String::new(), |text, i| text + &format!("line {i}\n"));
    for years in [1, -1] {
        let place = folder.path().join(years.to_string()).to_str().unwrap().to_owned();
        let is_off = |seconds: i64| (seconds - years * YEAR).abs() < CLOSE;
        let follow = clock.start(&["exec", &name.0, "--", "sh", "-c", script]);
        let create = clock.start(&["snapshot", "create", &name.0, &place]);
        clock.jump(years);
        for under_way in [follow, create] {
            let ended = under_way.wait_with_output().unwrap();
            assert!(ended.status.success(), "{years}: {}", text(&ended.stderr));
            assert!([&expected, &format!("{place}\n")].contains(&&text(&ended.stdout)), "{years}");
        }
        // Checkpoints go on being taken, by the new clock.
        until(|| is_off(checkpoints(&name)["last"]["taken_ms"].as_i64().unwrap_or(0) / 1000 - now()));
        assert!(off(&name).abs() < CLOSE, "a guest that runs has its own");
        let [restored, child] = [Name::new("host-clock-restored"), Name::new("host-clock-child")];
        clock.printed(&["snapshot", "restore", &place, "--name", &restored.0]);
        clock.printed(&["fork", &name.0, &child.0]);
        for new in [&restored, &child] {
            assert!(is_off(off(new)), "{years}: {} is off by {}", new.0, off(new));
            assert!(clock.age_ms(new) < CLOSE * 1000, "{years}: {}", clock.age_ms(new));
        }
        let age = clock.age_ms(&name) / 1000;
        assert!(if years > 0 { is_off(age) } else { age == 0 }, "{years}: {age}");
        clock.printed(&["snapshot", "verify", &place]);
    }
    // Back it comes with the clock of now.
    kill_machine(&name);
    until(|| checkpoints(&name)["times"] == 1);
    assert!((off(&name) + YEAR).abs() < CLOSE);
    clock.jump(0);
    assert_eq!(json(["--json", "kill", &name.0])["state"], "exited");
}
