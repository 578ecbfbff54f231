//! What can go wrong, in words.

use rustix::io::Errno;
use throughline_wire::files::{Failure, FailureKind};

/// A failure at a path.
pub fn failure(kind: FailureKind, path: &[u8], message: impl Into<String>) -> Failure {
    Failure { kind, path: String::from_utf8_lossy(path).into_owned(), message: message.into() }
}

/// A system call that failed at a path; `doing` completes "cannot …".
pub(crate) fn system(path: &[u8], doing: &'static str) -> impl FnOnce(Errno) -> Failure {
    let path = path.to_vec();
    move |errno| {
        let kind = kind(errno);
        let message = match kind {
            FailureKind::Refused => {
                format!("cannot {doing}: the path leaves its root, or goes through a symbolic link")
            }
            FailureKind::NoSpace => format!("cannot {doing}: no space is left there"),
            FailureKind::ReadOnly => format!("cannot {doing}: the file system is read-only"),
            FailureKind::Special => format!("cannot {doing}: a device, socket or pipe is there"),
            FailureKind::IsAFolder => format!("cannot {doing}: a folder is there"),
            FailureKind::NotFound => format!("cannot {doing}: no such file or folder"),
            FailureKind::NotAFolder => format!("cannot {doing}: a part of the path is no folder"),
            _ => format!("cannot {doing}: {}", std::io::Error::from(errno)),
        };
        failure(kind, &path, message)
    }
}

fn kind(errno: Errno) -> FailureKind {
    match errno {
        Errno::NOENT => FailureKind::NotFound,
        Errno::NOTDIR => FailureKind::NotAFolder,
        Errno::ISDIR => FailureKind::IsAFolder,
        Errno::NOSPC | Errno::DQUOT => FailureKind::NoSpace,
        Errno::ROFS => FailureKind::ReadOnly,
        Errno::ACCESS | Errno::PERM => FailureKind::Denied,
        Errno::LOOP | Errno::XDEV => FailureKind::Refused,
        Errno::NXIO => FailureKind::Special,
        _ => FailureKind::Other,
    }
}
