//! Which files a monitor may open, by rules of Landlock; and which it must be let open, as another user.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

use crate::engine::Net;

/// The newest rules that are asked for; older kernels keep what they know of.
const NEWEST: ABI = ABI::V6;
/// Where programs, libraries and firmware lie.
const SYSTEM: [&str; 9] = [
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/nix/store",
    "/gnu/store",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/dev/urandom",
];
/// Devices that are written as well.
const DEVICES: [&str; 2] = ["/dev/null", "/dev/kvm"];

/// What a monitor wants of a file that it is handed open, and opens again by its descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::engine) enum Wanted {
    /// To read it.
    Read,
    /// To read and write it.
    Write,
}

/// A file that the monitor opens again.
pub(in crate::engine) struct Shared {
    /// The file.
    pub(in crate::engine) file: File,
    /// What for.
    pub(in crate::engine) wanted: Wanted,
}

impl Shared {
    /// Lets `group` open the file. Its folder keeps all others away, as before.
    pub(super) fn open_to(&self, group: u32) -> io::Result<()> {
        let found = self.file.metadata()?;
        let bits = match self.wanted {
            Wanted::Read => 0o040,
            Wanted::Write => 0o060,
        };
        let open_to_all = found.mode() & (bits >> 3) == bits >> 3;
        if open_to_all || (found.gid() == group && found.mode() & bits == bits) {
            return Ok(());
        }
        std::os::unix::fs::fchown(&self.file, None, Some(group))?;
        self.file.set_permissions(Permissions::from_mode((found.mode() & 0o7777) | bits))
    }
}

/// What a network's resolver reads.
const RESOLVER: &str = "/etc/resolv.conf";

/// The rules for a monitor; why there are none, where the kernel does not know such.
pub(super) fn rules(binary: &Path, shared: &[Shared], net: Net) -> Result<OwnedFd, String> {
    let failed = |error: &dyn std::error::Error| format!("the rules could not be made: {error}");
    let created = create(binary, shared, net).map_err(|error| failed(&error))?;
    Option::<OwnedFd>::from(created).ok_or_else(|| "this kernel runs without Landlock (add it to lsm=)".into())
}

fn create(binary: &Path, shared: &[Shared], net: Net) -> Result<RulesetCreated, landlock::RulesetError> {
    let connections = match net {
        Net::None => AccessNet::from_all(NEWEST),
        // It connects, for its guest; nobody connects to it.
        Net::User => AccessNet::BindTcp.into(),
    };
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(connections)?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let beside = binary.canonicalize().ok().and_then(|path| path.parent().map(Path::to_path_buf));
    for path in SYSTEM.iter().map(PathBuf::from).chain(beside) {
        rules = allow_path(rules, &path, AccessFs::from_read(NEWEST))?;
    }
    for path in DEVICES {
        rules = allow_path(rules, Path::new(path), AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev)?;
    }
    if net == Net::User {
        rules = allow_path(rules, Path::new(RESOLVER), AccessFs::ReadFile.into())?;
    }
    for shared in shared {
        let access = match shared.wanted {
            Wanted::Read => AccessFs::ReadFile.into(),
            Wanted::Write => AccessFs::ReadFile | AccessFs::WriteFile,
        };
        rules = rules.add_rule(PathBeneath::new(shared.file.as_fd(), access))?;
    }
    Ok(rules)
}

fn allow_path(
    rules: RulesetCreated,
    path: &Path,
    access: landlock::BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    // What is not there needs no rule.
    match PathFd::new(path) {
        Ok(found) => {
            let whole = std::fs::metadata(path).is_ok_and(|data| data.is_dir());
            let access = if whole { access } else { access & AccessFs::from_file(NEWEST) };
            rules.add_rule(PathBeneath::new(found, access))
        }
        Err(_) => Ok(rules),
    }
}
