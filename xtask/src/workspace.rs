//! Where things are: the root of the repository, the folder of builds, the folder of data.
//!
//! Data in: the environment that `cargo run` sets. Committed files are never
//! written: all that xtask makes lies under `data/` and cargo's target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where fetched programs are unpacked.
pub(crate) fn tools_dir() -> PathBuf {
    root().join("data/dev/tools")
}

/// The cargo that runs us, so that the pinned toolchain stays the same in every step.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    // Set by `cargo run` for us, not meant for what we build: a changed value would rebuild crates.
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| {
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        }) {
            command.env_remove(name);
        }
    }
    command
}
