//! The commands of the README: `cargo xtask up` and `cargo xtask test`, and `cargo xtask bench`.
//!
//! Owns the command line and the exit code, nothing else. Everything that a command needs is
//! found on the machine or fetched by [`tools`]; every process is started and ended by [`child`].
//!
//! Exit codes: 0 done, 1 a step failed (one clear line on stderr), 64 a bad command line,
//! 130 stopped by Ctrl-C or SIGTERM.

use std::process::ExitCode;

mod child;
mod report;
mod test;
mod tools;
mod workspace;

const USAGE: &str = "\
The commands of this repository.

Usage: cargo xtask <COMMAND>

Commands:
  test   fetch what the tests need, then format check, lints, dependency check, all tests
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = child::catch_signals().and_then(|()| match args.as_slice() {
        ["test"] => test::run(),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => Err(anyhow::Error::new(BadCommandLine(args.join(" ")))),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<child::Interrupted>() => {
            eprintln!("xtask: stopped");
            ExitCode::from(130)
        }
        Err(error) if error.is::<BadCommandLine>() => {
            eprintln!("xtask: {error:#}\n\n{USAGE}");
            ExitCode::from(64)
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A command line that names no command of ours.
#[derive(Debug)]
struct BadCommandLine(String);

impl std::fmt::Display for BadCommandLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "no such command or flag: {}", self.0)
    }
}

impl std::error::Error for BadCommandLine {}
