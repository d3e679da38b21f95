//! The fuzz targets of `gateway/fuzz`, each for a while: a part of `cargo xtask test`, and `cargo xtask fuzz`.
//!
//! They need rustup's nightly (for the sanitizer) and a C++ compiler (for libFuzzer); where one is missing they are
//! skipped, which is said loudly. cargo-fuzz is not needed: its flags are below. What a run finds new goes under the
//! target folder, never into the committed seeds.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::child;
use crate::workspace::root;

/// Targets and the dictionary of each.
const TARGETS: [(&str, Option<&str>); 8] = [
    ("client_hello", None),
    ("detect", None),
    ("framing", Some("http.dict")),
    ("h1_request", Some("http.dict")),
    ("h1_response", Some("http.dict")),
    ("proxy", None),
    ("routes", Some("yaml.dict")),
    ("translate", Some("http.dict")),
];

/// How many run at once.
const AT_ONCE: usize = 2;

/// What `cargo fuzz` builds with: coverage for libFuzzer, the address sanitizer, debug assertions.
const RUSTFLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg fuzzing -Zsanitizer=address \
    -Cdebug-assertions -Ccodegen-units=1";

/// What `cargo xtask test` gives each target.
pub(crate) const SHORT: Duration = Duration::from_secs(30);

/// Runs the targets, all if `names` is empty, each for `time`. `host` is the platform.
pub(crate) fn run(names: &[&str], time: Duration, host: &str) -> Result<()> {
    if let Some(missing) = missing() {
        println!("**************************************************************");
        println!("** SKIPPED, NOT PASSED: the fuzz targets did not run.");
        println!("** {missing}");
        println!("**************************************************************");
        return Ok(());
    }
    let targets: Vec<_> = TARGETS
        .into_iter()
        .filter(|(name, _)| names.is_empty() || names.contains(name))
        .collect();
    if let Some(unknown) = names.iter().find(|n| !TARGETS.iter().any(|t| t.0 == **n)) {
        bail!("no fuzz target is called {unknown}");
    }
    let folder = folder();
    let mut build = nightly("cargo");
    build
        .args(["build", "--release", "--bins", "--locked", "--target", host])
        .args(["--manifest-path", "gateway/fuzz/Cargo.toml", "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", RUSTFLAGS);
    child::run(&mut build, "the build of the fuzz targets")?;
    let programs = folder.join(host).join("release");
    for group in targets.chunks(AT_ONCE) {
        let mut children = Vec::new();
        for (name, dictionary) in group {
            let place = folder.join("runs").join(name);
            let log = place.join("log");
            let mut fuzz = Command::new(programs.join(name));
            arguments(&mut fuzz, name, *dictionary, &place, time)?;
            let file = File::create(&log).context("cannot write a log")?;
            fuzz.stdout(Stdio::null()).stderr(file);
            let started = child::spawn(&mut fuzz, name);
            children.push((name, log, started));
        }
        let mut failed = Vec::new();
        for (name, log, child) in children {
            let output = child.and_then(|c| child::finish(c, name, time + Duration::from_secs(60)));
            let text = std::fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            match output {
                Ok(output) if output.status.success() => {
                    let done = text.lines().rfind(|line| line.starts_with("Done "));
                    println!("{name}: {}", done.unwrap_or("done"));
                }
                Ok(output) => failed.push(finding(name, &output.status.to_string(), &text)),
                Err(error) if error.is::<child::Interrupted>() => return Err(error),
                Err(error) => failed.push(finding(name, &error.to_string(), &text)),
            }
        }
        if !failed.is_empty() {
            bail!("{}", failed.join("\n"));
        }
    }
    Ok(())
}

/// What is missing, if anything.
fn missing() -> Option<&'static str> {
    let works = |command: &mut Command| {
        child::try_output(command, "a version", Some(Duration::from_secs(20)))
            .is_ok_and(|output| output.status.success())
    };
    if !works(nightly("rustc").arg("--version")) {
        return Some("`rustup toolchain install nightly` gives what they need.");
    }
    if !works(Command::new("c++").arg("--version")) {
        return Some("A C++ compiler gives what they need (`apt-get install g++`).");
    }
    None
}

/// A program of the nightly toolchain, whatever toolchain runs us.
fn nightly(program: &str) -> Command {
    let mut command = Command::new("rustup");
    command
        .args(["run", "nightly", program])
        .current_dir(root());
    for name in [
        "CARGO",
        "RUSTC",
        "RUSTDOC",
        "RUSTUP_TOOLCHAIN",
        "CARGO_TARGET_DIR",
    ] {
        command.env_remove(name);
    }
    command
}

/// Where everything is built and kept.
fn folder() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    target
        .map_or_else(|| root().join("target"), PathBuf::from)
        .join("fuzz")
}

fn arguments(
    fuzz: &mut Command,
    name: &str,
    dictionary: Option<&str>,
    place: &Path,
    time: Duration,
) -> Result<()> {
    let committed = root().join("gateway/fuzz");
    let corpus = place.join("corpus");
    std::fs::create_dir_all(&corpus).context("cannot make a folder")?;
    if let Some(dictionary) = dictionary {
        fuzz.arg(format!("-dict={}", committed.join(dictionary).display()));
    }
    fuzz.arg(format!("-max_total_time={}", time.as_secs()))
        .arg(format!("-artifact_prefix={}/", place.display()))
        .args(["-max_len=4096", "-timeout=20", "-rss_limit_mb=2048"])
        .arg(corpus)
        .arg(committed.join("seeds").join(name));
    Ok(())
}

/// What a target found: what it says about it, and where the input is.
fn finding(name: &str, status: &str, log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let is_telling = |line: &&&str| {
        [
            "panicked at",
            "ERROR:",
            "SUMMARY:",
            "Test unit written",
            "assertion",
            "  left:",
            " right:",
        ]
        .iter()
        .any(|words| line.contains(words))
    };
    let telling: Vec<&str> = lines.iter().filter(is_telling).copied().collect();
    format!("fuzz target {name}: {status}\n{}", telling.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_known_and_has_seeds() {
        let fuzz = root().join("gateway/fuzz");
        let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
        assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
        for (name, dictionary) in TARGETS {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            let seeds = std::fs::read_dir(fuzz.join("seeds").join(name)).unwrap();
            assert!(seeds.count() > 0, "{name}");
            assert!(dictionary.is_none_or(|file| fuzz.join(file).is_file()));
        }
    }
}
