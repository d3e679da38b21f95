//! `cargo xtask bench events`: the speed of the control path.

use std::process::Command;

use anyhow::Result;

use super::report::{commit, machine, time_now};
use crate::child;
use crate::tools::Tools;
use crate::up::plan::write_whole;
use crate::up::stack::{self, Binaries};
use crate::workspace::{self, cargo};

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
    let said = String::from_utf8_lossy(&said);
    print!("{said}");
    let text = format!(
        "# The speed of the control path\n\n\
         - Date: {}, commit {}, profile {}\n\
         - Machine: {}\n\
         - Command: cargo xtask bench events {}\n\n\
         ```\n{said}```\n\n\
         One change: reduction, plan, table, swap and revocation, without database and broker. \
         Catch-up: from the start of the process with an empty database until `/readyz` says \
         ready; the database of PostgreSQL is on this machine too, without fsync. Publish to \
         effect: from when the change was due until a request over a kept HTTPS connection is \
         answered as it wants; the oldest change is asked for, again and again, over one \
         connection. Requests: 1,000 a second over one kept HTTPS connection, from when each was \
         due. Publisher, client, broker, database, web server and gateway share the machine.\n",
        began.text(),
        commit(),
        stack::PROFILE,
        machine(),
        args.join(" ")
    );
    let name = format!("{}-events.md", began.file_stamp());
    let file = workspace::root().join("bench/results").join(name);
    write_whole(&file, text.as_bytes())?;
    println!("written to {}", file.display());
    Ok(())
}
