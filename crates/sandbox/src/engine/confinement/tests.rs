//! Shells in a monitor's place: each tries from inside what a monitor that a guest has taken over might.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use rustix::process::{Pid, WaitOptions, geteuid, waitpid};

use super::{Confinement, Limits, Measure, Plan, Shared, Started, Wanted};
use crate::engine::{Accelerator, Hardware, Net};

/// Runs a script confined, and the same without; what each printed.
fn inside_and_outside(script: &str, shared: &[(&File, Wanted)]) -> (String, String) {
    let inside = inside(script, shared);
    let mut outside = tempfile::tempfile().unwrap();
    shell(script, &outside).status().unwrap();
    let outside = text(&mut outside);
    println!("outside: {outside}");
    (inside, outside)
}

fn shell(script: &str, out: &File) -> Command {
    let mut command = Command::new("bash");
    command.args(["-c", script]).stdin(Stdio::null());
    command.stdout(out.try_clone().unwrap()).stderr(out.try_clone().unwrap());
    command
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

/// Runs a script confined; what it printed.
fn inside(script: &str, shared: &[(&File, Wanted)]) -> String {
    inside_with(Net::None, script, shared)
}

fn inside_with(net: Net, script: &str, shared: &[(&File, Wanted)]) -> String {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut printed = tempfile::tempfile().unwrap();
    let shared = shared.iter().map(|(file, wanted)| Shared { file: file.try_clone().unwrap(), wanted: *wanted });
    let limits = Limits::of(Hardware::default(), 0, Accelerator::Kvm);
    let plan = Plan {
        binary: "/bin/bash".as_ref(),
        folder: folder.path(),
        shared: shared.collect(),
        kvm: false,
        paper: None,
        net,
        limits,
    };
    let Started { pid, confinement, groups } = plan.spawn(&mut shell(script, &printed)).unwrap();
    // A shell has no filter of its own, and a host need not have control groups that its users may make.
    let theirs = [Measure::SystemCalls, Measure::MemoryGroup, Measure::ProcessorGroup];
    for outcome in &confinement.measures {
        assert!(
            outcome.in_force || outcome.waived || theirs.contains(&outcome.measure),
            "this host refuses: {outcome:?}"
        );
    }
    waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().expect("our child, whose end is told");
    super::remove_groups(&groups);
    assert!(groups.iter().all(|folder| !folder.exists()), "{groups:?}");
    let inside = text(&mut printed);
    println!("inside: {inside}");
    inside
}

#[test]
fn a_confinement_is_told_in_a_few_words() {
    let mut confinement = Confinement::default();
    assert_eq!(confinement.summary(), "none");
    for measure in Measure::ALL {
        confinement.record(measure, Ok(String::new()));
    }
    assert_eq!(confinement.summary(), "full");
    confinement.waive(Measure::NetworkNamespace, "asked for");
    assert_eq!(confinement.summary(), "full, but for the network namespace");
    confinement.record(Measure::ProcessorGroup, Err(String::new()));
    assert_eq!(confinement.summary(), "partial (no cpu cgroup), but for the network namespace");
    confinement.record(Measure::NetworkNamespace, Ok(String::new()));
    confinement.record(Measure::MemoryGroup, Err(String::new()));
    assert_eq!(confinement.summary(), "partial (no cgroup)");
    confinement.record(Measure::Files, Err(String::new()));
    assert_eq!(confinement.summary(), "partial (11 of 14)");
}

#[test]
fn a_confined_process_creates_no_file_and_reads_none_of_the_hosts() {
    let place = tempfile::tempdir().unwrap();
    // Open to all: what keeps the process out is not the mode.
    fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let secret = place.path().join("secret");
    fs::write(&secret, "secret").unwrap();
    fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let place = place.path().display();
    let script = format!(
        "for f in {place}/new /dev/shm/throughline-new-$$ /var/tmp/throughline-new-$$; do (: > $f) && echo created; rm -f $f; done; \
         (: < {place}/secret) && echo read; (: >> {place}/secret) && echo written; mv {place}/secret {place}/other && mv {place}/other {place}/secret && echo moved; \
         (: < /etc/passwd) && echo passwd; (: < /proc/1/cmdline) && echo proc"
    );
    let (inside, outside) = inside_and_outside(&script, &[]);
    for word in ["created", "read", "written", "moved", "passwd", "proc"] {
        let said = |text: &str| text.lines().any(|line| line == word);
        assert!(said(&outside), "{word}: nothing is shown if it does not work outside either: {outside}");
        assert!(!said(&inside), "{word}: {inside}");
    }
}

#[test]
fn a_confined_process_reaches_no_socket_and_no_process_of_the_hosts() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let victim = std::process::id();
    let script =
        format!("(: < /dev/tcp/127.0.0.1/{port}) && echo connected; kill -0 {victim} && echo signalled; echo pid $$");
    let (inside, outside) = inside_and_outside(&script, &[]);
    let said = |text: &str, word: &str| text.lines().any(|line| line == word);
    for word in ["connected", "signalled"] {
        assert!(said(&outside, word), "{word}: {outside}");
        assert!(!said(&inside, word), "{word}: {inside}");
    }
    assert!(said(&inside, "pid 1") && !said(&outside, "pid 1"), "{inside}");
}

/// The exception that was asked for, and no other.
#[test]
fn a_confined_process_with_a_network_connects_and_does_not_listen() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let script = format!(
        "(: < /dev/tcp/127.0.0.1/{port}) && echo connected; (: < /etc/resolv.conf) && echo resolves; (: < /etc/passwd) && echo passwd; \
         python3 -c 'import socket; socket.create_server((\"127.0.0.1\", 0))' && echo listens; kill -0 {} && echo signalled",
        std::process::id()
    );
    let inside = inside_with(Net::User, &script, &[]);
    let said = |word: &str| inside.lines().any(|line| line == word);
    assert!(said("connected") && said("resolves"), "{inside}");
    assert!(!said("passwd") && !said("listens") && !said("signalled"), "{inside}");
}

#[test]
fn a_confined_process_has_no_rights_and_gains_none() {
    let script = "id -u; chown 0:0 /proc/self/fd/1 && echo owned; unshare --mount true && echo mounted; \
                  mount -t tmpfs none /mnt && echo mounted; hostname throughline && echo renamed; ulimit -c; ulimit -n";
    let inside = inside(script, &[]);
    let lines: Vec<_> = inside.lines().collect();
    for word in ["owned", "mounted", "renamed"] {
        assert!(!lines.contains(&word), "{inside}");
    }
    assert!(lines.ends_with(&["0", "1024"]), "{inside}");
    assert!(lines[0].parse::<u32>().unwrap() > 0, "{inside}");
    assert!(!geteuid().is_root() || lines[0].parse::<u32>().unwrap() >= 0x7000_0000, "{inside}");
}

#[test]
fn a_confined_process_opens_what_it_is_handed_and_no_more_than_that() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| {
        fs::write(folder.path().join(name), "handed over\n").unwrap();
        fs::set_permissions(folder.path().join(name), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        File::options().read(true).write(true).open(folder.path().join(name)).unwrap()
    };
    let (read, write, neither) = (file("read"), file("write"), file("neither"));
    for file in [&read, &write, &neither] {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
    }
    let at = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    let script = format!(
        "(: < {read}) && echo reads; (: >> {read}) && echo overwrites; (: < {write}) && (: >> {write}) && echo writes; (: < {neither}) && echo sees",
        read = at(&read),
        write = at(&write),
        neither = at(&neither)
    );
    let inside = inside(&script, &[(&read, Wanted::Read), (&write, Wanted::Write)]);
    let said = |word: &str| inside.lines().any(|line| line == word);
    assert!(said("reads") && said("writes"), "{inside}");
    assert!(!said("overwrites") && !said("sees"), "{inside}");
}
