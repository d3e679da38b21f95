//! `cargo xtask bench faults`: the gateway's fault tests with long outages.

use anyhow::Result;

use super::BadOption;
use super::report::{commit, machine, time_now};
use crate::child;
use crate::tools::Tools;
use crate::up::plan::write_whole;
use crate::workspace::{self, cargo};

/// How long each outage is when nothing is said, in seconds.
const SECONDS: u64 = 300;

/// What begins the lines with figures, as the tests print them.
const FIGURES: &str = " of outage; ";

/// Runs the tests `faults` of the gateway and writes what they say to `bench/results/`.
pub(super) fn run(args: &[&str]) -> Result<()> {
    let seconds = match args {
        [] => SECONDS,
        [seconds] => seconds
            .parse()
            .map_err(|_| BadOption::new(format!("faults: {seconds:?} is no number of seconds")))?,
        _ => return Err(BadOption::new("faults takes a number of seconds".into()).into()),
    };
    let began = time_now::now()?;
    let tools = Tools::ensure_for_tests()?;
    let mut test = cargo();
    test.args(["test", "--locked", "--package", "edd-gateway"]);
    test.args(["--test", "it", "--", "faults::", "--nocapture"]);
    // Two at a time: all of them share this machine with what they measure.
    test.args(["--test-threads", "2"]);
    test.env("EDD_FAULT_SECONDS", seconds.to_string());
    tools.set_environment(&mut test)?;
    let said = child::stdout(&mut test, "cargo test faults")?;
    let said = String::from_utf8_lossy(&said);
    let told = |line: &&str| line.contains(FIGURES) || line.starts_with("SKIPPED");
    let lines: Vec<_> = said.lines().filter(told).collect();
    let text = format!(
        "# The world broken under a load\n\n\
         - Date: {}, commit {}, profile dev\n\
         - Machine: {}\n\
         - Command: cargo xtask bench faults {seconds}\n\n\
         ```\n{}\n```\n\n\
         200 requests per second on kept TLS connections, HTTP/1.1 and HTTP/2, half of them to a \
         static route and half to a container, throughout. Events go on being made and wait in \
         their publisher's outbox or in the stream. Right: the gateway's table is what all events \
         say and no outbox holds anything. The tests fail if a request failed, or if the gateway \
         closed a connection or reset a stream.\n",
        began.text(),
        commit(),
        machine(),
        lines.join("\n"),
    );
    let name = format!("{}-faults.md", began.file_stamp());
    let file = workspace::root().join("bench/results").join(name);
    write_whole(&file, text.as_bytes())?;
    println!("{}\nwritten to {}", lines.join("\n"), file.display());
    Ok(())
}
