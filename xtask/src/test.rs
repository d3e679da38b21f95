//! `cargo xtask test`: everything that must hold before a change lands, in the order that fails
//! soonest. `.ci/run` calls this and nothing else.
//!
//! Plain `cargo test`, so that a machine with nothing but Rust can run it.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::child;
use crate::report::Parts;
use crate::tools::Tools;
use crate::workspace::{self, cargo};

/// Crates that must not be in the tree: one crypto provider (aws-lc-rs), one TLS library (rustls).
/// `deny.toml` says the same to cargo-deny; this holds where cargo-deny is not installed.
const BANNED: [&str; 4] = ["native-tls", "openssl", "openssl-sys", "ring"];

/// Runs every part; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    let mut parts = Parts::new("test");
    let tools = parts.run("programs for the tests", Tools::ensure)?;
    parts.run("cargo fmt --check", || {
        child::run(
            cargo().args(["fmt", "--all", "--check"]),
            "`cargo fmt --all --check` (`cargo fmt --all` mends it)",
        )
    })?;
    parts.run("no ring, no openssl", no_banned_crates)?;
    parts.run("cargo clippy", || {
        let args = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        child::run(cargo().args(args), "cargo clippy")
    })?;
    parts.run("cargo test", || {
        let mut test = cargo();
        test.args(["test", "--workspace", "--locked"]);
        tools.set_environment(&mut test)?;
        child::run(&mut test, "cargo test")
    })?;
    parts.run("cargo doc", || {
        let mut doc = cargo();
        doc.args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", "-Dwarnings");
        child::run(&mut doc, "cargo doc")
    })?;
    parts.finish();
    Ok(())
}

fn no_banned_crates() -> Result<()> {
    let host = host()?;
    let metadata = workspace::metadata(&["--filter-platform", &host])?;
    let found = banned(&metadata)?;
    if found.is_empty() {
        return Ok(());
    }
    let found: Vec<String> = found
        .into_iter()
        .map(|(name, users)| {
            format!(
                "{name} (needed by {})",
                users.into_iter().collect::<Vec<_>>().join(", ")
            )
        })
        .collect();
    bail!("banned crates in the tree for {host}: {}", found.join("; "))
}

/// The platform that is built for.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = child::output(Command::new(rustc).arg("-vV"), "rustc -vV")?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .map(str::to_owned)
        .context("rustc -vV names no host")
}

/// The banned crates of a resolved tree, each with the packages that need it.
fn banned(metadata: &Value) -> Result<BTreeMap<&str, BTreeSet<&str>>> {
    let names: BTreeMap<&str, &str> = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
        .collect();
    let nodes = metadata["resolve"]["nodes"]
        .as_array()
        .context("cargo metadata resolved nothing")?;
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for node in nodes {
        let user = node["id"]
            .as_str()
            .and_then(|id| names.get(id))
            .copied()
            .unwrap_or("?");
        for dependency in node["dependencies"].as_array().into_iter().flatten() {
            let name = dependency.as_str().and_then(|id| names.get(id)).copied();
            if let Some(name) = name.filter(|name| BANNED.contains(name)) {
                found.entry(name).or_default().insert(user);
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_a_banned_crate_and_who_needs_it() {
        let metadata = json!({
            "packages": [{"id": "a 1", "name": "a"}, {"id": "r 1", "name": "ring"}],
            "resolve": {"nodes": [
                {"id": "a 1", "dependencies": ["r 1"]},
                {"id": "r 1", "dependencies": []},
            ]},
        });
        let found = banned(&metadata).expect("resolved");
        assert_eq!(found, BTreeMap::from([("ring", BTreeSet::from(["a"]))]));
    }

    #[test]
    fn a_crate_that_is_only_in_the_lock_file_is_no_fault() {
        let metadata = json!({
            "packages": [{"id": "a 1", "name": "a"}, {"id": "r 1", "name": "ring"}],
            "resolve": {"nodes": [{"id": "a 1", "dependencies": []}]},
        });
        assert!(banned(&metadata).expect("resolved").is_empty());
    }
}
