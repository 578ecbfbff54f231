//! Kernel modules in a folder: which there are, what they need, and whether they fit the kernel.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::error::ImageError;
use super::package::output_of;

/// The list of what the kernel has without modules.
const BUILTIN: &str = "modules.builtin";
/// Deeper than any dependency goes.
const DEEPEST: usize = 32;

/// A module's name and content, uncompressed.
pub(super) struct Module {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
}

/// All modules of one kernel.
pub(super) struct Modules<'a> {
    folder: &'a Path,
    release: &'a str,
    files: HashMap<String, PathBuf>,
    builtin: HashSet<String>,
}

impl<'a> Modules<'a> {
    /// Looks for modules in `folder`, as deep as it goes.
    pub(super) fn scan(folder: &'a Path, release: &'a str) -> Result<Self, ImageError> {
        let failed = |path: &Path| {
            let path = path.to_path_buf();
            move |source| ImageError::io("read the kernel's modules in", &path, source)
        };
        let mut files = HashMap::new();
        let mut folders = vec![folder.to_path_buf()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).map_err(failed(&folder))? {
                let entry = entry.map_err(failed(&folder))?;
                let kind = entry.file_type().map_err(failed(&folder))?;
                // Links lead to the kernel's sources.
                if kind.is_dir() {
                    folders.push(entry.path());
                } else if let Some(name) = name_of(&entry.file_name().to_string_lossy()) {
                    files.insert(name, entry.path());
                }
            }
        }
        let builtin = fs::read_to_string(folder.join(BUILTIN)).unwrap_or_default();
        let builtin = builtin.lines().filter_map(|line| name_of(line.rsplit('/').next()?)).collect();
        Ok(Self { folder, release, files, builtin })
    }

    /// Whether the kernel comes with a module, in whatever way.
    pub(super) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name) || self.builtin.contains(name)
    }

    /// Adds `name`, after all that it needs, unless `to` has it. What the kernel has built in takes no module.
    pub(super) fn add(&self, name: &str, to: &mut Vec<Module>) -> Result<(), ImageError> {
        self.add_at(0, name, to)
    }

    fn add_at(&self, depth: usize, name: &str, to: &mut Vec<Module>) -> Result<(), ImageError> {
        if self.builtin.contains(name) || to.iter().any(|module| module.name == name) {
            return Ok(());
        }
        let missing = || ImageError::ModuleMissing {
            module: name.to_owned(),
            release: self.release.to_owned(),
            folder: self.folder.to_path_buf(),
        };
        let path = self.files.get(name).filter(|_| depth < DEEPEST).ok_or_else(missing)?;
        let bytes = read(path)?;
        let made_for = field(&bytes, "vermagic").and_then(|text| text.split(' ').next().map(str::to_owned));
        let made_for = made_for.unwrap_or_else(|| "no kernel at all".to_owned());
        if made_for != self.release {
            let (path, release) = (path.clone(), self.release.to_owned());
            return Err(ImageError::ModuleVersion { path, made_for, release });
        }
        let needs = field(&bytes, "depends").unwrap_or_default();
        for needed in needs.split(',').filter(|name| !name.is_empty()) {
            self.add_at(depth + 1, &plain(needed), to)?;
        }
        to.push(Module { name: name.to_owned(), bytes });
        Ok(())
    }
}

/// A module's name by its file's, if it is one.
fn name_of(file: &str) -> Option<String> {
    let (name, rest) = file.split_once(".ko")?;
    matches!(rest, "" | ".gz" | ".xz" | ".zst").then(|| plain(name))
}

/// The kernel makes no difference between the two.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let program = match path.extension().and_then(|extension| extension.to_str()) {
        Some("gz") => "gzip",
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).map_err(|source| ImageError::io("read", path, source)),
    };
    let mut unpack = Command::new(program);
    unpack.arg("-dc").arg(path);
    output_of(unpack, &path.display().to_string())
}

/// A field of what a module says of itself: `name=value`, between zeros.
fn field(module: &[u8], name: &str) -> Option<String> {
    let key = format!("\0{name}=");
    let start = module.windows(key.len()).position(|window| window == key.as_bytes())? + key.len();
    let value = module.get(start..)?.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(release: &str, depends: &str) -> Vec<u8> {
        format!("\x7fELF..\0license=GPL\0depends={depends}\0vermagic={release} SMP mod_unload \0..").into_bytes()
    }

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("deep")).unwrap();
        let files = [("a.ko", "b,c-d"), ("deep/b.ko", ""), ("deep/c-d.ko", "b,built_in"), ("wants.ko", "nobody")];
        for (file, depends) in files {
            fs::write(folder.path().join(file), module("6.1", depends)).unwrap();
        }
        fs::write(folder.path().join("old.ko"), module("5.10", "")).unwrap();
        fs::write(folder.path().join(BUILTIN), "kernel/x/built-in.ko\n").unwrap();
        let packed = Command::new("gzip").arg(folder.path().join("deep/b.ko")).status().unwrap();
        assert!(packed.success());
        folder
    }

    #[test]
    fn modules_come_after_all_that_they_need_and_once() {
        let folder = tree();
        let modules = Modules::scan(folder.path(), "6.1").unwrap();
        let mut found = Vec::new();
        for name in ["built_in", "a", "b"] {
            modules.add(name, &mut found).unwrap();
        }
        let names: Vec<_> = found.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["b", "c_d", "a"]);
        assert_eq!(found[0].bytes, module("6.1", ""), "it is unpacked");
        assert!(modules.has("c_d") && modules.has("built_in") && !modules.has("nobody"));
    }

    #[test]
    fn modules_that_are_missing_or_of_another_kernel_are_named() {
        let folder = tree();
        let modules = Modules::scan(folder.path(), "6.1").unwrap();
        let refused = |name| modules.add(name, &mut Vec::new()).unwrap_err().to_string();
        assert!(refused("wants").contains("nobody"), "{}", refused("wants"));
        assert!(refused("old").contains("5.10") && refused("old").contains("6.1"), "{}", refused("old"));
    }
}
