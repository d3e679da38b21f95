//! The test programs that `cargo test --workspace` has built, to be run again otherwise.
//!
//! Another selection of packages would resolve to other features and compile half of the
//! tree again; what cargo names when it is asked to build the same lies there already.
//! Data in: cargo's messages. Each program runs in its package's folder, as cargo runs it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::child;
use crate::workspace::{cargo, root};

/// The test programs of the workspace.
pub(crate) struct TestPrograms(Vec<Program>);

/// One of them.
#[derive(Debug, Eq, PartialEq)]
struct Program {
    /// Where its package is.
    folder: PathBuf,
    /// The name of a library, a binary or an integration test.
    target: String,
    executable: PathBuf,
}

impl TestPrograms {
    /// Those of `cargo test --workspace`, which are built if need be.
    pub(crate) fn of_workspace() -> Result<Self> {
        let mut build = cargo();
        build.args(["test", "--workspace", "--locked", "--no-run"]);
        build.arg("--message-format=json-render-diagnostics");
        let messages = child::stdout(&mut build, "cargo test --no-run")?;
        let found = String::from_utf8_lossy(&messages)
            .lines()
            .filter_map(program)
            .collect();
        Ok(Self(found))
    }

    /// Runs those of the package in `folder` of the workspace, or only its `target`. None is an
    /// error, as is the first that fails.
    pub(crate) fn run(
        &self,
        folder: &str,
        target: Option<&str>,
        prepare: impl Fn(&mut Command) -> Result<()>,
    ) -> Result<()> {
        let folder = root().join(folder);
        let mut programs = self
            .0
            .iter()
            .filter(|program| program.folder == folder)
            .filter(|program| target.is_none_or(|target| program.target == target))
            .peekable();
        if programs.peek().is_none() {
            bail!("no test program in {}", folder.display());
        }
        for program in programs {
            let what = program.executable.display().to_string();
            eprintln!("     Running {what}");
            let mut run = Command::new(&program.executable);
            run.current_dir(&folder).env("CARGO_MANIFEST_DIR", &folder);
            prepare(&mut run)?;
            child::run(&mut run, &what)?;
        }
        Ok(())
    }
}

/// The test program that this message of cargo's is about.
fn program(message: &str) -> Option<Program> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let manifest = Path::new(message["manifest_path"].as_str()?);
    Some(Program {
        folder: manifest.parent()?.to_owned(),
        target: message["target"]["name"].as_str()?.to_owned(),
        executable: message["executable"].as_str()?.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_test_programs_and_nothing_else() {
        let message = |test: bool, executable: Value| {
            let message = serde_json::json!({
                "reason": "compiler-artifact",
                "manifest_path": "/src/events/Cargo.toml",
                "target": { "name": "it", "kind": ["test"] },
                "profile": { "test": test },
                "executable": executable,
            });
            message.to_string()
        };
        let found = Program {
            folder: "/src/events".into(),
            target: "it".into(),
            executable: "/target/debug/deps/it-1".into(),
        };
        let executable = Value::from("/target/debug/deps/it-1");
        assert_eq!(program(&message(true, executable.clone())), Some(found));
        assert_eq!(program(&message(false, executable)), None);
        assert_eq!(program(&message(true, Value::Null)), None);
        assert_eq!(program("{\"reason\":\"build-finished\"}"), None);
        assert_eq!(program("running 3 tests"), None);
    }
}
