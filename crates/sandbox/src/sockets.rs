//! Unix sockets in folders of any depth.
//!
//! A socket's path may have 107 bytes; a folder's may have 4095. So sockets are named through the
//! folder's descriptor, as `/proc/self/fd/N/name`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Listens on `folder/name`, replacing a socket that a dead monitor left there.
pub fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let folder = File::open(folder)?;
    let path = short(&folder, name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

/// Connects to `folder/name`. Never waits: a listener's backlog takes the connection.
pub fn connect(folder: &Path, name: &str) -> io::Result<UnixStream> {
    let folder = File::open(folder)?;
    UnixStream::connect(short(&folder, name))
}

fn short(folder: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))
}
