//! Set-up: which programs of the system are needed, which are missing, and how they come onto the machine.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The release of the test runner that gets installed where there is none.
const NEXTEST_VERSION: &str = "0.9.143";

/// Where apt keeps what it knows of the distribution's packages.
const PACKAGE_LISTS: &str = "/var/lib/apt/lists";

/// Where its package puts the library that shows processes another clock.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// Something that must be on the machine.
struct Requirement {
    what: &'static str,
    package: &'static str,
    present: fn() -> bool,
}

const REQUIREMENTS: &[Requirement] = &[
    Requirement {
        what: "qemu-system-x86_64",
        package: "qemu-system-x86",
        present: || runs("qemu-system-x86_64", &["--version"]),
    },
    Requirement {
        what: "busybox, statically linked (it goes into the guest's image)",
        package: "busybox-static",
        present: || find_program("busybox").is_some_and(|path| is_static(&path)),
    },
    Requirement {
        what: "dpkg-deb (it unpacks the guest's kernel)",
        package: "dpkg",
        present: || runs("dpkg-deb", &["--version"]),
    },
    Requirement {
        what: "mmdebstrap (it makes the demo's Debian)",
        package: "mmdebstrap",
        present: || runs("mmdebstrap", &["--version"]),
    },
    Requirement {
        what: "fakechroot (so that it needs no rights)",
        package: "fakechroot",
        present: || runs("fakechroot", &["--version"]),
    },
    Requirement {
        what: "mkfs.erofs (it makes file systems of userlands)",
        package: "erofs-utils",
        present: || runs("mkfs.erofs", &["--help"]),
    },
    Requirement {
        what: "fakeroot (it keeps the owners in archives of userlands)",
        package: "fakeroot",
        present: || runs("fakeroot", &["--version"]),
    },
    Requirement {
        what: "libfaketime (it lets the host's clock jump in a test)",
        package: "libfaketime",
        present: || Path::new(FAKETIME).exists(),
    },
    Requirement { what: "xz (it unpacks archives)", package: "xz-utils", present: || runs("xz", &["--version"]) },
];

/// What has to be done to complete the machine.
#[derive(Debug, PartialEq)]
struct Plan {
    update_lists: bool,
    packages: Vec<&'static str>,
}

impl Plan {
    fn new(packages: Vec<&'static str>, lists_present: bool) -> Option<Self> {
        // The guest's kernel is downloaded from the same lists later on, so they are needed in any case.
        let update_lists = !lists_present;
        (update_lists || !packages.is_empty()).then_some(Self { update_lists, packages })
    }

    /// The one line that a person without root's rights is asked to run.
    fn as_line(&self) -> String {
        if self.packages.is_empty() {
            return "sudo apt-get update".to_owned();
        }
        let packages = self.packages.join(" ");
        format!("sudo apt-get update && sudo apt-get install --yes --no-install-recommends {packages}")
    }
}

/// Completes the machine as root; as anyone else, says what to run.
pub fn ensure() -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("Throughline runs on x86_64 Linux only");
    }
    let Some(plan) = Plan::new(missing(), package_lists_present(Path::new(PACKAGE_LISTS))) else {
        return Ok(());
    };
    if find_program("apt-get").is_none() {
        let wanted: Vec<_> = REQUIREMENTS.iter().map(|requirement| requirement.what).collect();
        bail!("no apt-get here; install these by the means of your distribution: {}", wanted.join(", "));
    }
    if !rustix::process::geteuid().is_root() {
        bail!("something of the system is missing. Run this line, then try again:\n\n    {}\n", plan.as_line());
    }
    carry_out(&plan)?;
    let still = missing();
    if !still.is_empty() {
        bail!(
            "installed {}, yet it still cannot be used: is another program of that name first in PATH?",
            still.join(", ")
        );
    }
    Ok(())
}

/// The test runner: each test in a process of its own, with a deadline.
pub fn ensure_nextest() -> Result<()> {
    if runs("cargo-nextest", &["nextest", "--version"]) {
        return Ok(());
    }
    println!("The test runner cargo-nextest is missing: building it once, into cargo's own folder (some minutes)");
    let version = format!("cargo-nextest@{NEXTEST_VERSION}");
    let mut install = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Half the time to build: unoptimised (the tests do the work), and without what updates itself over the network.
    install
        .args(["install", "--locked", "--debug", &version])
        .args(["--no-default-features", "--features", "default-no-update"])
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    run(&mut install)
}

fn missing() -> Vec<&'static str> {
    REQUIREMENTS
        .iter()
        .filter(|requirement| !(requirement.present)())
        .inspect(|requirement| println!("missing: {}", requirement.what))
        .map(|requirement| requirement.package)
        .collect()
}

fn carry_out(plan: &Plan) -> Result<()> {
    if plan.update_lists {
        run(apt_get().arg("update"))?;
    }
    if plan.packages.is_empty() {
        return Ok(());
    }
    println!("installing {}", plan.packages.join(" "));
    let install = || run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(&plan.packages));
    if install().is_err() {
        // Lists that are too old name files that the mirror has dropped.
        run(apt_get().arg("update"))?;
        install()?;
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // A lock held by another apt is waited for, five minutes at most.
    command
        .args(["--quiet", "--option", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(std::process::Stdio::null());
    command
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("`{command:?}` failed ({status})");
    }
    Ok(())
}

/// Whether the program is there *and* works: an installed package may have lost its file, or a library.
fn runs(program: &str, arguments: &[&str]) -> bool {
    let output = Command::new(program).args(arguments).output();
    output.is_ok_and(|output| output.status.success())
}

/// The first executable of that name in PATH, or in the folders that an ordinary user's PATH may lack.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|folder| folder.join(name)).find(|path| {
        fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    })
}

fn package_lists_present(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
}

/// Whether an ELF file of this machine's kind asks for no dynamic loader.
fn is_static(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| program_header_types(&bytes).is_some_and(|types| !types.contains(&PT_INTERP)))
}

/// The program header that names the dynamic loader.
const PT_INTERP: u32 = 3;

/// The types of the program headers of a 64-bit little-endian ELF file.
fn program_header_types(elf: &[u8]) -> Option<Vec<u32>> {
    let halfword = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let offset = u64::from_le_bytes(elf.get(0x20..0x28)?.try_into().ok()?);
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (size, count) = (halfword(0x36)?, halfword(0x38)?);
    (0..usize::from(count))
        .map(|index| {
            let at = usize::try_from(offset).ok()?.checked_add(index * usize::from(size))?;
            let word = elf.get(at..at.checked_add(4)?)?;
            Some(u32::from_le_bytes(word.try_into().ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_missing_is_nothing_to_do() {
        assert_eq!(Plan::new(vec![], true), None);
    }

    #[test]
    fn missing_package_lists_are_fetched_even_if_no_program_is_missing() {
        let plan = Plan::new(vec![], false).expect("a plan");
        assert!(plan.update_lists);
        assert_eq!(plan.as_line(), "sudo apt-get update");
    }

    #[test]
    fn the_line_to_run_names_every_missing_package() {
        let plan = Plan::new(vec!["one", "two"], true).expect("a plan");
        let line = plan.as_line();
        assert!(line.ends_with("install --yes --no-install-recommends one two"), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }

    #[test]
    fn package_lists_are_seen_and_missed() {
        let folder = tempfile::tempdir().expect("a folder");
        assert!(!package_lists_present(folder.path()));
        fs::write(folder.path().join("mirror_dists_main_Packages.lz4"), "").expect("a file");
        assert!(package_lists_present(folder.path()));
        assert!(!package_lists_present(&folder.path().join("absent")));
    }

    #[test]
    fn a_program_that_needs_a_loader_is_not_static() {
        // This test itself is linked dynamically, and no source file is an ELF file.
        assert!(!is_static(&env::current_exe().expect("this test's file")));
        assert!(!is_static(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))));
        assert!(program_header_types(b"\x7fELF\x02\x01 and no more").is_none());
    }

    #[test]
    fn a_program_that_needs_no_loader_is_static() {
        let busybox = find_program("busybox").expect("busybox, which `cargo xtask setup` installs");
        assert!(is_static(&busybox), "{} is not static", busybox.display());
    }

    #[test]
    fn a_program_that_is_absent_or_fails_does_not_run() {
        assert!(runs("true", &[]));
        assert!(!runs("false", &[]));
        assert!(!runs("throughline-no-such-program", &[]));
        assert!(find_program("throughline-no-such-program").is_none());
    }
}
