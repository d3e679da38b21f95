//! The commands of the README: `cargo xtask up` and `cargo xtask test`, and `cargo xtask bench` and `fuzz`.
//!
//! Owns the command line and the exit code, nothing else. Everything that a command needs is
//! found on the machine or fetched by [`tools`]; every process is started and ended by [`child`].
//!
//! Exit codes: 0 done, 1 a step failed (one clear line on stderr), 64 a bad command line,
//! 130 stopped by Ctrl-C or SIGTERM.

use std::path::PathBuf;
use std::process::ExitCode;

mod bench;
mod child;
mod daemon;
mod fuzz;
mod http;
mod report;
mod site;
mod test;
mod test_programs;
mod tools;
mod tour;
mod up;
mod workspace;

const USAGE: &str = "\
The commands of this repository.

Usage: cargo xtask <COMMAND>

Commands:
  up [--data DIR]           build and start everything on this machine, with a demo container;
                            Ctrl-C stops it (DIR: data/dev)
  up --check [--data DIR]   walk the tour with real clients on a stack of its own, beside a running
                            `up`, and exit 0 or 1 (DIR: data/check, wiped)
     --profile NAME         for both: build with this cargo profile (dev-release)
  test [--fetch]            fetch what the tests need, then format check, lints, all tests
                            (--fetch: only the first, and print where it lies)
  fuzz [SECONDS [TARGET..]] run the fuzz targets, each for that long (30; needs nightly and c++)
  bench                     measure the gateway beside other proxies: CPU time per request, in a
                            table and in bench/results (docs/benchmarks.md)
     --list                 the names of rows and peers
     --row A,B --peer A,B   only these (--peer none: the gateway alone)
     --gateway [NAME:]PATH  a gateway built elsewhere instead of this tree's; several are compared
     --tool PATH            an edd-bench built elsewhere
     --rounds N             measurements of each proxy in each row (3)
     --seconds N            the window of each (2)
     --quick                one round of 1.2 s
     --no-write, --note TEXT  no file in bench/results, a line in it
  bench events [...]        catch-up, publish to effect and request latency under 500 changes a
                            second; a result in bench/results (arguments: those of
                            `edd-bench events`)
  bench faults [SECONDS]    take NATS, databases and disk away for so long (300) under a load and
                            compare the end state; a result in bench/results
  bench propagation [...]   start a gateway and measure publish to first request (arguments are
                            those of `edd-bench propagation`)
  bench ssh [...]           measure SSH through the gateway beside the same straight to sshd; a
                            result in bench/results (arguments: those of `edd-bench ssh`)
  bench swaps [...]         change routes, certificates and the process under a load and count what
                            clients notice; a result in bench/results (arguments: those of
                            `edd-bench swaps`)
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = child::catch_signals().and_then(|()| match args.as_slice() {
        ["up", flags @ ..] => up(flags),
        ["test"] => test::run(),
        ["test", "--fetch"] => test::fetch(),
        ["fuzz", rest @ ..] => test::fuzz(rest),
        ["bench", rest @ ..] => bench::run(rest),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        _ => Err(BadCommandLine(args.join(" ")).into()),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<child::Interrupted>() => {
            eprintln!("xtask: stopped");
            ExitCode::from(130)
        }
        Err(error) if error.is::<BadCommandLine>() || error.is::<bench::BadOption>() => {
            eprintln!("xtask: {error:#}\n\n{USAGE}");
            ExitCode::from(64)
        }
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(mut flags: &[&str]) -> anyhow::Result<()> {
    let mut options = up::Options::default();
    loop {
        flags = match flags {
            [] => break,
            ["--check", rest @ ..] => {
                options.check = true;
                rest
            }
            ["--data", folder, rest @ ..] => {
                options.data = Some(PathBuf::from(folder));
                rest
            }
            ["--profile", profile, rest @ ..] => {
                options.profile = (*profile).to_owned();
                rest
            }
            _ => return Err(BadCommandLine(format!("up {}", flags.join(" "))).into()),
        }
    }
    if options.check {
        tour::run(options)
    } else {
        up::run(options)
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
