//! The command line and the environment: checked in two steps, reported at once.
//!
//! clap reads flags and variables as plain strings, then each daemon turns them
//! into checked values through [`Problems`], so that a start with three bad
//! values names all three. [`run`] maps the end of a daemon to its exit code.

use std::{fmt::Display, net::SocketAddr, process::ExitCode, time::Duration};

use clap::{Command, CommandFactory, Parser};

/// Exit code of a bad command line or configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Exit code of a failure at run time.
pub const EXIT_FAILURE: u8 = 1;

/// How a daemon ends other than by a clean drain.
#[derive(Debug)]
pub enum Exit {
    /// The environment or the machine failed: one line on stderr, exit code 1.
    Failure(anyhow::Error),
    /// The command line or configuration is wrong: one line per mistake, exit code 64.
    Usage(Vec<String>),
}

impl From<Invalid> for Exit {
    fn from(invalid: Invalid) -> Self {
        Self::Usage(invalid.problems)
    }
}

impl From<anyhow::Error> for Exit {
    fn from(error: anyhow::Error) -> Self {
        Self::Failure(error)
    }
}

/// Parses the command line, runs `main` and maps its end to an exit code.
///
/// `--help` and `--version` exit 0, anything clap refuses exits 64. Errors are
/// written to stderr, one line each, prefixed with the program's name.
pub fn run<A: Parser>(main: impl FnOnce(A) -> Result<(), Exit>) -> ExitCode {
    let name = A::command().get_name().to_owned();
    let arguments = match A::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are asked for and go to stdout. When nobody can
            // read the message there is nothing left to do about it.
            let _ = error.print();
            return if error.use_stderr() {
                EXIT_USAGE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match main(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit::Usage(problems)) => {
            for problem in problems {
                eprintln!("{name}: {}", one_line(&problem));
            }
            EXIT_USAGE.into()
        }
        Err(Exit::Failure(error)) => {
            eprintln!("{name}: {}", one_line(&format!("{error:#}")));
            EXIT_FAILURE.into()
        }
    }
}

/// Every mistake found so far in flags and variables.
#[derive(Debug, Default)]
pub struct Problems {
    flags: Vec<(String, String)>,
    problems: Vec<String>,
}

/// A configuration with at least one mistake, all of them listed.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("; "))]
pub struct Invalid {
    /// One line per mistake, each naming its flag.
    pub problems: Vec<String>,
}

impl Problems {
    /// Starts with no mistakes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Like [`Problems::new`], and names the environment variable beside the flag.
    pub fn of<A: CommandFactory>() -> Self {
        let mut flags = Vec::new();
        collect_variables(&A::command(), &mut flags);
        Self {
            flags,
            problems: Vec::new(),
        }
    }

    /// Keeps the value of a good result, remembers the error of a bad one.
    pub fn check<T, E: Display>(&mut self, flag: &str, value: Result<T, E>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(error) => {
                self.push(flag, error);
                None
            }
        }
    }

    /// Checks each entry of a comma-separated list; empty entries are skipped.
    ///
    /// Bad entries are remembered one by one, the good ones are returned.
    pub fn check_list<T, E: Display>(
        &mut self,
        flag: &str,
        list: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Vec<T> {
        list.split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .filter_map(|entry| self.check(flag, parse(entry)))
            .collect()
    }

    /// Remembers a mistake.
    pub fn push(&mut self, flag: &str, message: impl Display) {
        let variable = self.flags.iter().find(|(known, _)| known == flag);
        self.problems.push(match variable {
            Some((_, variable)) => format!("{flag} (or {variable}): {message}"),
            None => format!("{flag}: {message}"),
        });
    }

    /// Ends the check: an error if there was any mistake.
    pub fn finish(self) -> Result<(), Invalid> {
        if self.problems.is_empty() {
            Ok(())
        } else {
            Err(self.into_invalid())
        }
    }

    /// The mistakes found so far, for a caller that already knows there are some:
    /// the `else` of a `let Some(..) = problems.check(..)`.
    pub fn into_invalid(self) -> Invalid {
        Invalid {
            problems: self.problems,
        }
    }
}

fn collect_variables(command: &Command, flags: &mut Vec<(String, String)>) {
    for argument in command.get_arguments() {
        if let (Some(flag), Some(variable)) = (argument.get_long(), argument.get_env()) {
            flags.push((format!("--{flag}"), variable.to_string_lossy().into_owned()));
        }
    }
    for subcommand in command.get_subcommands() {
        collect_variables(subcommand, flags);
    }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Why a text is no duration.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum DurationError {
    /// No whole number followed by a known unit.
    #[error("{0:?} is not a duration such as 500ms, 10s, 5m or 1h")]
    Syntax(String),
    /// Longer than any wait can be.
    #[error("{0:?} is too long")]
    TooLong(String),
}

/// Reads a duration: a whole number and one of the units `ms`, `s`, `m`, `h`.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let syntax = || DurationError::Syntax(text.to_owned());
    let unit_at = text
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(syntax)?;
    let (number, unit) = text.split_at(unit_at);
    let unit_millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(syntax()),
    };
    if number.is_empty() {
        return Err(syntax());
    }
    // Ten years: far beyond any use, and safe to add to a clock.
    const LONGEST_MILLIS: u64 = 10 * 366 * 24 * 3_600_000;
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit_millis))
        .filter(|millis| *millis <= LONGEST_MILLIS)
        .map(Duration::from_millis)
        .ok_or_else(|| DurationError::TooLong(text.to_owned()))
}

/// Reads `ADDRESS:PORT`; names are not resolved.
pub fn parse_addr(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not ADDRESS:PORT such as 127.0.0.1:9090"))
}

/// Reads `on` or `off`.
pub fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{text:?} is neither on nor off")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[arg(long, env = "EDD_TEST_ADDR", default_value = "")]
        addr: String,
    }

    #[test]
    fn durations_have_one_number_and_one_unit() {
        let good = [
            ("500ms", Duration::from_millis(500)),
            ("10s", Duration::from_secs(10)),
            ("5m", Duration::from_secs(300)),
            ("1h", Duration::from_secs(3600)),
            ("0s", Duration::ZERO),
        ];
        for (text, expected) in good {
            assert_eq!(parse_duration(text), Ok(expected), "{text}");
        }
        for text in [
            "", "10", "s", "ms", "-1s", "1.5s", "10 s", "1d", "10S", "1h30m", "+1s", "٣s",
        ] {
            assert_eq!(
                parse_duration(text),
                Err(DurationError::Syntax(text.into())),
                "{text}"
            );
        }
        for text in ["99999999999999999999s", "18446744073709551615h", "1000000h"] {
            assert_eq!(
                parse_duration(text),
                Err(DurationError::TooLong(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn every_mistake_is_reported_with_flag_and_variable() {
        let mut problems = Problems::of::<Arguments>();
        assert_eq!(problems.check("--addr", parse_addr("nowhere")), None);
        assert_eq!(problems.check("--other", parse_switch("on")), Some(true));
        assert_eq!(problems.check("--other", parse_switch("yes")), None);
        let numbers = problems.check_list("--list", "1, x,,3,y", |n| n.parse::<u8>());
        assert_eq!(numbers, [1, 3]);
        let invalid = problems.finish().expect_err("there were mistakes");
        assert_eq!(invalid.problems.len(), 4, "{invalid}");
        assert!(invalid.problems[0].starts_with("--addr (or EDD_TEST_ADDR): \"nowhere\""));
        assert!(invalid.problems[1].starts_with("--other: \"yes\""));
        assert!(invalid.problems[2].starts_with("--list: "));
    }

    #[test]
    fn no_mistake_no_error() {
        assert!(Problems::new().finish().is_ok());
    }

    #[test]
    fn messages_stay_on_one_line() {
        assert_eq!(one_line("first\nsecond\r\n third"), "first second third");
    }
}
