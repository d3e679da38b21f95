//! `cargo xtask bench events`: the speed of the control path.

use std::process::Command;

use anyhow::Result;

use super::report::{measured, time_now};
use crate::child;
use crate::tools::Tools;
use crate::up::stack::{self, Binaries};
use crate::workspace::cargo;

/// Builds, runs the measurements with `args`, and writes what they say to `bench/results/`.
pub(super) fn run(args: &[&str]) -> Result<()> {
    let began = time_now::now()?;
    let tools = Tools::ensure_for_tests()?;
    let binaries = Binaries::build_some(stack::PROFILE, &["edd-gateway", "edd-bench"])?;
    let mut table = cargo();
    table.args(["run", "--quiet", "--locked", "--profile", stack::PROFILE]);
    table.args(["--package", "edd-gateway", "--example", "table_work"]);
    let mut said = child::stdout(&mut table, "the example table_work")?;
    let mut bench = Command::new(binaries.path("edd-bench")?);
    bench
        .args(["events", "--gateway"])
        .arg(binaries.path("edd-gateway")?)
        .args(args);
    tools.set_environment(&mut bench)?;
    said.extend(child::stdout(&mut bench, "edd-bench events")?);
    measured("events", &began, args, &said, ABOUT)
}

/// What the figures mean.
const ABOUT: &str = "\
    One change: reduction, plan, table, swap and revocation, without database and broker. \
    Catch-up: from the start of the process with an empty database until `/readyz` says \
    ready; the database of PostgreSQL is on this machine too, without fsync. Publish to \
    effect: from when the change was due until a request over a kept HTTPS connection is \
    answered as it wants; four connections look at a change each, asking again and again. \
    Requests: 1,000 a second over one kept HTTPS connection, from when each was due; other \
    messages are the same events in a stream that the gateway does not read. Several gateways: \
    all start at once on a full stream; then one change at a time, all of them asked without a \
    pause over a connection each, alone and beside so many other changes a second. Publisher, client, broker, database, web server and gateway share the machine.";
