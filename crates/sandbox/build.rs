//! Builds the guest's agent, so that it can be embedded: one file is all there is to install.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The agent runs as process 1 of an initramfs that has no C library: it must be static.
const RUSTFLAGS: &str = "-C target-feature=+crt-static -C relocation-model=static";
const TARGET: &str = "x86_64-unknown-linux-gnu";
const PACKAGE: &str = "throughline-agent";
/// Names a ready-made agent, for packagers who build it apart.
const READY_MADE: &str = "THROUGHLINE_AGENT";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-env-changed={READY_MADE}");
    println!("cargo::rerun-if-changed=build.rs");
    let agent = match env::var_os(READY_MADE) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            path
        }
        None => build()?,
    };
    println!("cargo::rustc-env=THROUGHLINE_AGENT_BINARY={}", agent.display());
    Ok(())
}

fn build() -> Result<PathBuf, Box<dyn Error>> {
    let workspace = workspace()?;
    for source in ["agent", "files", "link", "ring", "shmem", "wire"] {
        for part in ["Cargo.toml", "src"] {
            let path = workspace.join("crates").join(source).join(part);
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    println!("cargo::rerun-if-changed={}", workspace.join("Cargo.lock").display());

    // A target folder of its own: the outer cargo holds the lock of the usual one.
    let target = PathBuf::from(env::var("OUT_DIR")?).join("agent");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(&workspace)
        .args(["build", "--quiet", "--locked", "--profile", "agent", "--package", PACKAGE])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target);
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(leaks) {
            cargo.env_remove(name);
        }
    }
    let status = cargo.env("RUSTFLAGS", RUSTFLAGS).status()?;
    if !status.success() {
        return Err(format!("building {PACKAGE} failed with {status}; see above").into());
    }
    Ok(target.join(TARGET).join("agent").join(PACKAGE))
}

/// Whether a variable describes the outer build and must not reach the inner one: flags of
/// clippy or a coverage tool would be compiled into the agent.
fn leaks(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CLIPPY_ARGS",
        "OUT_DIR",
        "PROFILE",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTDOC",
        "TARGET",
    ];
    const PREFIXES: [&str; 6] =
        ["CARGO_BIN_", "CARGO_BUILD_", "CARGO_CFG_", "CARGO_FEATURE_", "CARGO_MANIFEST_", "CARGO_PKG_"];
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

fn workspace() -> Result<PathBuf, Box<dyn Error>> {
    let own = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let root = own.ancestors().nth(2).map(Path::to_path_buf);
    root.ok_or_else(|| format!("{} is not two folders below the workspace", own.display()).into())
}
