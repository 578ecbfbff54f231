//! Kernel modules that the image brings along.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::finit_module;

/// A module that cannot be loaded.
#[derive(Debug, thiserror::Error)]
#[error("cannot load the kernel module {path}: {source}; was the image made for this kernel?")]
pub struct ModuleError {
    path: PathBuf,
    source: io::Error,
}

/// Where the image has them.
pub(super) const FOLDER: &str = "/lib/modules-throughline";
/// The list of those that every guest needs.
pub(super) const ALWAYS: &str = "modules.list";
/// The list of those for a network.
pub(super) const NETWORK: &str = "network.list";

/// Loads the modules that a list in `folder` names, one path below `folder` a line, in that order. An
/// image without the list has everything built in; a module that is loaded already is fine.
pub(super) fn load(folder: &Path, list: &str) -> Result<(), ModuleError> {
    let list = folder.join(list);
    let text = match fs::read_to_string(&list) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(ModuleError { path: list, source }),
    };
    for name in names(&text) {
        let path = folder.join(name);
        let loaded = File::open(&path).and_then(|file| match finit_module(&file, c"", 0) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        });
        loaded.map_err(|source| ModuleError { path, source })?;
    }
    Ok(())
}

fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_may_have_blank_lines_and_remarks() {
        let list = "# order matters\nvirtio.ko\n\n  a/b.ko \n";
        assert_eq!(names(list).collect::<Vec<_>>(), ["virtio.ko", "a/b.ko"]);
    }

    #[test]
    fn a_missing_list_is_fine_and_a_missing_module_is_named() {
        let folder = tempfile::tempdir().unwrap();
        load(folder.path(), ALWAYS).unwrap();
        fs::write(folder.path().join("modules.list"), "none.ko\n").unwrap();
        let error = load(folder.path(), ALWAYS).unwrap_err().to_string();
        assert!(error.contains("none.ko"), "{error}");
    }
}
