//! `cargo xtask test`: everything that must hold before a change lands, in the order that fails
//! soonest. `.ci/run` calls this and nothing else.
//!
//! Plain `cargo test`, so that a machine with nothing but Rust can run it.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::child;
use crate::fuzz;
use crate::report::Parts;
use crate::test_programs::TestPrograms;
use crate::tools::Tools;
use crate::workspace::cargo;

/// Crates that must not be in the tree: one crypto provider (aws-lc-rs), one TLS library (rustls).
/// `deny.toml` says the same to cargo-deny; this holds where cargo-deny is not installed.
const BANNED: [&str; 4] = ["native-tls", "openssl", "openssl-sys", "ring"];

/// Folders of crates whose tests run a second time with their databases on PostgreSQL. Of the
/// gateway's, those of the control path do.
const ON_POSTGRES: [&str; 3] = ["services/auth", "services/compute", "events"];

/// The gateway's tests of the control path that are about SQLite's file.
const ABOUT_SQLITE: [&str; 3] = [
    "control::store::",
    "control::last_good::",
    "control::rebuild::",
];

/// Links that lead nowhere are errors. Angle brackets are not: clap shows the same comments as
/// help. Links to private items are not: the readers of these pages read the code too.
const RUSTDOC_FLAGS: &str =
    "-Dwarnings -Arustdoc::invalid_html_tags -Arustdoc::private_intra_doc_links";

/// Runs every part; the first that fails ends it.
pub(crate) fn run() -> Result<()> {
    let mut parts = Parts::new("test");
    let tools = parts.run("programs for the tests", Tools::ensure_for_tests)?;
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
    parts.run("cargo test on PostgreSQL", || {
        let programs = TestPrograms::of_workspace()?;
        let on_postgres = |test: &mut Command| {
            test.env("EDD_TEST_ENGINE", "postgres");
            tools.set_environment(test)
        };
        for folder in ON_POSTGRES {
            programs.run(folder, None, on_postgres)?;
        }
        programs.run("gateway", Some("it"), |test| {
            test.arg("control::");
            test.args(ABOUT_SQLITE.iter().flat_map(|name| ["--skip", name]));
            on_postgres(test)
        })
    })?;
    parts.run("cargo doc", || {
        let mut doc = cargo();
        doc.args(["doc", "--workspace", "--no-deps", "--locked"])
            .env("RUSTDOCFLAGS", RUSTDOC_FLAGS);
        child::run(&mut doc, "cargo doc")
    })?;
    parts.run("fuzz", || fuzz::run(&[], fuzz::SHORT, &host()?))?;
    parts.finish();
    Ok(())
}

/// `cargo xtask fuzz [SECONDS [TARGET..]]`.
pub(crate) fn fuzz(args: &[&str]) -> Result<()> {
    let (time, names) = match args {
        [] => (fuzz::SHORT, args),
        [seconds, names @ ..] => {
            let seconds = seconds.parse().context("how many seconds?")?;
            (Duration::from_secs(seconds), names)
        }
    };
    fuzz::run(names, time, &host()?)
}

/// Only the programs, and the variables under which `cargo test` alone finds them.
pub(crate) fn fetch() -> Result<()> {
    let tools = Tools::ensure_for_tests()?;
    let mut command = Command::new("cargo");
    tools.set_environment(&mut command)?;
    for (name, value) in command.get_envs() {
        let value = value.unwrap_or_default().to_string_lossy();
        println!("export {}='{value}'", name.to_string_lossy());
    }
    Ok(())
}

/// `cargo tree` resolves features as the build does; `cargo metadata` would also
/// list what only other platforms switch on.
fn no_banned_crates() -> Result<()> {
    let host = host()?;
    let mut tree = cargo();
    tree.args([
        "tree",
        "--workspace",
        "--locked",
        "--edges",
        "all",
        "--prefix",
        "none",
    ])
    .args(["--format", "{p}", "--target", &host]);
    let output = child::output(&mut tree, "cargo tree")?;
    let tree = String::from_utf8_lossy(&output.stdout);
    let found = banned(&tree);
    if found.is_empty() {
        return Ok(());
    }
    let found = found.into_iter().collect::<Vec<_>>().join(", ");
    bail!("banned crates in the tree for {host}: {found} (`cargo tree -i NAME` says who needs it)")
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

/// The banned crates among the lines `NAME VERSION …` of `cargo tree`.
fn banned(tree: &str) -> BTreeSet<&str> {
    tree.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| BANNED.contains(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_banned_crates_and_no_others() {
        let tree = "a v1.0.0 (/src/a)\nring v0.17.14\nring-like v1.0.0\nring v0.17.14 (*)\n\n";
        assert_eq!(banned(tree), BTreeSet::from(["ring"]));
        assert!(banned("rustls v0.23.46\nstring v1.0.0\n").is_empty());
    }
}
