//! Where things lie on the host.

use std::env;
use std::path::PathBuf;

/// What can be made again: `$XDG_CACHE_HOME/throughline`.
pub fn cache() -> PathBuf {
    base("XDG_CACHE_HOME", ".cache")
}

/// What cannot, and the images: `$XDG_DATA_HOME/throughline`.
pub fn data() -> PathBuf {
    base("XDG_DATA_HOME", ".local/share")
}

/// The specification of these variables says that a relative path is to be ignored.
fn base(variable: &str, below_home: &str) -> PathBuf {
    let absolute = |path: &PathBuf| path.is_absolute();
    let named = env::var_os(variable).map(PathBuf::from).filter(absolute);
    let home = || env::home_dir().filter(absolute).map(|home| home.join(below_home));
    named.or_else(home).unwrap_or_else(env::temp_dir).join("throughline")
}
