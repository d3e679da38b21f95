//! `cargo xtask bench swaps`: changes under a load, and what clients notice of them.

use std::process::Command;

use anyhow::Result;

use super::report::{commit, machine, time_now};
use crate::child;
use crate::up::plan::write_whole;
use crate::up::stack::{self, Binaries};
use crate::workspace;

/// Builds, runs `edd-bench swaps` with `args`, and writes what it says to `bench/results/`.
pub(super) fn run(args: &[&str]) -> Result<()> {
    let began = time_now::now()?;
    let binaries = Binaries::build_some(stack::PROFILE, &["edd-gateway", "edd-bench"])?;
    let mut bench = Command::new(binaries.path("edd-bench")?);
    bench
        .arg("swaps")
        .arg("--gateway")
        .arg(binaries.path("edd-gateway")?)
        .arg("--folder")
        .arg(workspace::root().join("data/swaps"))
        .args(args);
    let said = child::stdout(&mut bench, "edd-bench swaps")?;
    let said = String::from_utf8_lossy(&said);
    print!("{said}");
    let text = format!(
        "# Routes, certificates and the process changed under a load\n\n\
         - Date: {}, commit {}, profile {}\n\
         - Machine: {}\n\
         - Command: cargo xtask bench swaps {}\n\n\
         ```\n{said}```\n\n\
         Failed: requests without a whole good answer. Closed: kept connections that the gateway \
         ended. Reset: streams that it reset. Again: HTTP/2 streams \
         that crossed the GOAWAY, which says that they were not looked at, and that were asked for \
         again. A restart closes connections, after an answer or \
         by GOAWAY; swaps close none.\n",
        began.text(),
        commit(),
        stack::PROFILE,
        machine(),
        args.join(" ")
    );
    let name = format!("{}-swaps.md", began.file_stamp());
    let file = workspace::root().join("bench/results").join(name);
    write_whole(&file, text.as_bytes())?;
    println!("written to {}", file.display());
    Ok(())
}
