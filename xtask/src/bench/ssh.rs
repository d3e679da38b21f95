//! `cargo xtask bench ssh`: SSH through the gateway beside the same straight to sshd.

use std::process::Command;

use anyhow::Result;

use super::report::{measured, time_now};
use crate::child;
use crate::tools::Tools;
use crate::up::stack::{self, Binaries};

/// Builds, runs the measurements with `args`, and writes what they say to `bench/results/`.
pub(super) fn run(args: &[&str]) -> Result<()> {
    let began = time_now::now()?;
    let tools = Tools::ensure_for_tests()?;
    let binaries = Binaries::build_some(stack::PROFILE, &["edd-gateway", "edd-bench"])?;
    let mut bench = Command::new(binaries.path("edd-bench")?);
    bench
        .args(["ssh", "--gateway"])
        .arg(binaries.path("edd-gateway")?)
        .args(args);
    tools.set_environment(&mut bench)?;
    let said = child::stdout(&mut bench, "edd-bench ssh")?;
    measured("ssh", &began, args, &said, ABOUT)
}

/// What the figures mean.
const ABOUT: &str = "\
    Client, gateway and the container's sshd share the machine. Straight, a byte is encrypted once \
    and decrypted once; through the gateway twice each, on the same cores. Where the processor \
    times of all, which stand beside each row, fill the machine, the ratio is that of their sums \
    and says more about the machine than about the way; over links of a given speed the network \
    decides. Ratios are of the medians, and of the best beside it; of the commands the median \
    counts. Beyond a second log-in: what a command over a new connection takes longer through \
    the gateway, less what a log-in takes.";
