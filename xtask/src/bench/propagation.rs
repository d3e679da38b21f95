//! `cargo xtask bench propagation`: a gateway and a broker of its own, then `edd-bench`.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::child;
use crate::tools::Tools;
use crate::up::plan::Plan;
use crate::up::stack::{self, Binaries, STOP_GRACE};
use crate::workspace;

/// Starts nats-server and the gateway on a scratch folder, runs the benchmark with `args`, and
/// stops them.
pub(super) fn run(args: &[&str]) -> Result<()> {
    let tools = Tools::ensure()?;
    let binaries = Binaries::build(stack::PROFILE)?;
    let data = workspace::root().join("data/bench");
    let _lock = crate::tour::wipe(&data)?;
    let plan = Plan::scratch(data)?;
    for folder in [plan.logs(), plan.data.join("certs")] {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    plan.write_routes()?;
    let mut nats = stack::start_nats(&plan, &tools)?;
    let mut gateway = stack::start_gateway(&plan, &binaries, &tools)?;
    stack::healthy(&mut gateway, plan.ports.admin, "/readyz")?;
    let mut bench = Command::new(binaries.path("edd-bench")?);
    bench.args(["propagation", "--nats-url", &plan.nats_url()]);
    bench
        .args([
            "--https",
            &format!("127.0.0.1:{}", plan.ports.https),
            "--ca",
        ])
        .arg(plan.ca());
    let measured = child::run(bench.args(args), "edd-bench propagation");
    if measured.is_err() && !child::interrupted() {
        print!("{}", gateway.tail());
    }
    for daemon in [&mut gateway, &mut nats] {
        daemon.stop(STOP_GRACE)?;
    }
    measured
}
