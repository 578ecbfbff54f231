//! Secrets, by the command.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::support::{Name, json, places, printed, refused, row, text, throughline};

const VALUE: &str = "a-value-that-nobody-else-has-81d0b3";

fn secrets_of(name: &str) -> String {
    printed(["exec", name, "--", "sh", "-c", "cd /run/secrets 2>/dev/null && head -n 9 * 2>/dev/null; :"])
}

#[test]
fn vm_main_path_secrets_are_given_by_the_command_and_told_to_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    fs::write(&file, VALUE).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let (name, child, restored) = (Name::new("secret"), Name::new("secret-child"), Name::new("secret-restored"));
    let from_file = format!("key=@{}", file.display());
    printed(["run", "--name", &name.0, "--secret", &from_file, "--secret", "two=2"]);
    let both = format!("==> key <==\n{VALUE}\n==> two <==\n2");
    assert_eq!(secrets_of(&name.0), both);

    // Its bytes are for the guest's programs: the agent keeps none that a snapshot could find.
    let copy =
        |source: &str| refused(&["--json", "cp", &format!("{}:{source}", name.0), folder.path().to_str().unwrap()]);
    for source in ["/run/secrets/key", "/run/secrets"] {
        let error = copy(source);
        assert!(error["message"].as_str().unwrap().contains("is a secret"), "{error}");
    }
    assert!(!folder.path().join("secrets/key").exists());

    // Neither on paper, nor in logs, nor where processes are listed.
    let shim = json(["--json", "inspect", &name.0])["shim"].as_u64().unwrap();
    let [_, runtime] = places(&name.0);
    let mut files = vec![format!("/proc/{shim}/cmdline").into(), format!("/proc/{shim}/environ").into()];
    files.extend(fs::read_dir(&runtime).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()));
    for file in files {
        assert!(!text(&fs::read(&file).unwrap()).contains(VALUE), "{}", file.display());
    }

    // The next shim has them, and hands them over again after a snapshot.
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(i32::try_from(shim).unwrap()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert_eq!(secrets_of(&name.0), both);
    let bundle = folder.path().join("bundle");
    printed(["snapshot", "create", &name.0, bundle.to_str().unwrap()]);
    assert_eq!(secrets_of(&name.0), both);

    printed(["snapshot", "restore", bundle.to_str().unwrap(), "--name", &restored.0]);
    assert_eq!(secrets_of(&restored.0), "");
    printed(["fork", &name.0, &child.0, "--secret", "two", "--secret", "three=3"]);
    assert_eq!(secrets_of(&child.0), "==> three <==\n3\n==> two <==\n2");
    let none = refused(&["--json", "fork", &child.0, "--secret", "key"]);
    assert!(none["message"].as_str().unwrap().contains("has no secret \"key\""), "{none}");
    let unknown = format!("secret-unknown-{}", std::process::id());
    for bad in ["key", "key=@/nonexistent", "../key=1"] {
        let error = throughline(["run", "--name", &unknown, "--secret", bad]);
        assert_eq!(error.status.code(), Some(125), "{}", text(&error.stdout));
    }
    assert!(row(&unknown).is_none());
}
