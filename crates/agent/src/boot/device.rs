//! Finding the doorbell's port.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name of the doorbell's port, given by the host.
const NAME: &str = "throughline.bell";

/// How long the port may take to appear: its driver learns the names of ports from the host, one by one.
const LIMIT: Duration = Duration::from_secs(10);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);

/// There is no doorbell.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// It did not appear.
    #[error("no virtio port named {NAME} appeared within {} s; is virtio_console loaded, and does the VMM have the port?", .0.as_secs())]
    Missing(Duration),
    /// It cannot be looked for.
    #[error("cannot look for the doorbell in {path}: {source}")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Waits for the port, and returns its device below `dev`.
pub(super) fn find(class: &Path, dev: &Path) -> Result<PathBuf, DeviceError> {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look(class, dev)? {
            return Ok(found);
        }
        if Instant::now() >= deadline {
            return Err(DeviceError::Missing(LIMIT));
        }
        // Nothing else runs yet, so blocking is fine.
        std::thread::sleep(PAUSE);
    }
}

/// Looks once.
fn look(class: &Path, dev: &Path) -> Result<Option<PathBuf>, DeviceError> {
    let entries = match fs::read_dir(class) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(DeviceError::Read { path: class.to_owned(), source }),
    };
    for entry in entries.flatten() {
        // A port whose name has not come yet has no such file.
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        let device = dev.join(entry.file_name());
        if name.trim_end() == NAME && device.exists() {
            return Ok(Some(device));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_found_by_name_once_it_has_a_device() {
        let folder = tempfile::tempdir().unwrap();
        let (class, dev) = (folder.path().join("class"), folder.path().join("dev"));
        assert_eq!(look(&class, &dev).unwrap(), None);
        for (port, name) in [("vport0p1", "other\n"), ("vport0p2", "throughline.bell\n")] {
            fs::create_dir_all(class.join(port)).unwrap();
            fs::write(class.join(port).join("name"), name).unwrap();
        }
        fs::create_dir_all(class.join("vport0p3")).unwrap();
        assert_eq!(look(&class, &dev).unwrap(), None);
        fs::create_dir_all(&dev).unwrap();
        fs::write(dev.join("vport0p2"), "").unwrap();
        assert_eq!(find(&class, &dev).unwrap(), dev.join("vport0p2"));
    }
}
