//! A bundle's manifest from arbitrary bytes, as a file in a folder that somebody else made: nothing panics, and a
//! manifest that is accepted says the same when it is written again.

use std::fs;
use std::path::Path;

use throughline_sandbox::bundle::{Bundle, BundleError, MANIFEST, RAM, REGION, SIDECAR, STATE};

const FILES: [&str; 4] = [STATE, RAM, REGION, SIDECAR];

thread_local! {
    static FOLDER: tempfile::TempDir = folder();
}

/// A folder with all files but the manifest; empty ones, so that a manifest can be right about them.
fn folder() -> tempfile::TempDir {
    let shared = Path::new("/dev/shm");
    let parent = if shared.is_dir() { shared.to_path_buf() } else { std::env::temp_dir() };
    let folder = tempfile::Builder::new().prefix("throughline-fuzz-").tempdir_in(parent).expect("a folder");
    for file in FILES {
        fs::write(folder.path().join(file), b"").expect("an empty file");
    }
    folder
}

/// Opens a bundle with this manifest. The first byte says whether the bytes are the file, or a text that the
/// file's checksum is right for.
///
/// # Panics
/// When a manifest that was accepted is not accepted again, or says something else.
pub fn run(data: &[u8]) {
    let Some((sealed, bytes)) = data.split_first() else { return };
    FOLDER.with(|folder| {
        let sealed = sealed % 2 == 1;
        let opened = if sealed { open(folder.path(), &seal(bytes)) } else { open(folder.path(), bytes) };
        let Ok(bundle) = opened else { return };
        for file in FILES {
            // The file is there; whether its checksum is right is another matter.
            let checked = bundle.check(file);
            assert!(matches!(checked, Ok(()) | Err(BundleError::Damaged { .. })), "{checked:?}");
        }
        let text = serde_json::to_vec(bundle.manifest()).expect("plain data");
        let again = open(folder.path(), &seal(&text)).expect("it was accepted before");
        assert_eq!(again.manifest(), bundle.manifest());
    });
}

fn seal(text: &[u8]) -> Vec<u8> {
    let checksum = xxhash_rust::xxh3::xxh3_64(text);
    [b"{\"manifest\":", text, format!(",\"checksum\":{checksum}}}").as_bytes()].concat()
}

fn open(folder: &Path, manifest: &[u8]) -> Result<Bundle, BundleError> {
    fs::write(folder.join(MANIFEST), manifest).expect("the folder is this thread's own");
    let opened = Bundle::open(folder);
    let refused = matches!(opened, Ok(_) | Err(BundleError::Damaged { .. } | BundleError::Version(_)));
    assert!(refused, "{opened:?}");
    opened
}
