//! `cargo xtask up`: from a clean clone to a running product in one command.
//!
//! [`plan`] decides what runs where, [`stack`] builds and runs it, [`rest`] and [`demo`] fill it
//! through the services' own APIs. `--check` hands over to the tour.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::child;
use crate::report::{Parts, seconds};
use crate::tools::Tools;
use crate::workspace;

mod demo;
pub(crate) mod plan;
pub(crate) mod rest;
pub(crate) mod stack;

pub(crate) use demo::random_hex;
use plan::Plan;
use stack::{Binaries, Lock, STOP_GRACE, Stack};

/// How often a running stack is looked after.
const WATCH: Duration = Duration::from_millis(100);

/// The flags of `up`.
pub(crate) struct Options {
    /// Walk the tour instead.
    pub(crate) check: bool,
    /// The data folder, if not the usual one.
    pub(crate) data: Option<PathBuf>,
    /// The cargo profile to build with.
    pub(crate) profile: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            check: false,
            data: None,
            profile: stack::PROFILE.to_owned(),
        }
    }
}

/// Runs until Ctrl-C.
pub(crate) fn run(options: Options) -> Result<()> {
    let data = options
        .data
        .unwrap_or_else(|| workspace::root().join("data/dev"));
    let data = absolute(data)?;
    let started = Instant::now();
    let mut parts = Parts::new("up");
    let tools = parts.run("programs", Tools::ensure)?;
    let binaries = parts.run("build (minutes the first time)", || {
        Binaries::build(&options.profile)
    })?;
    let mut stack = parts.run("start nats-server, auth, compute, gateway", || {
        let lock = Lock::take(&data)?;
        Stack::start(Plan::preferred(data)?, lock, &binaries, &tools)
    })?;
    let filled = parts.run("demo user, key and container", || {
        demo::ensure(&stack, &tools)
    });
    let demo = filled.inspect_err(|_| eprint!("{}", stack.tails()))?;
    demo.print(&stack.plan, &tools)?;
    println!("(ready after {})", seconds(started.elapsed()));
    let ended = loop {
        if let Err(error) = stack.check_running().and_then(|()| child::pause(WATCH)) {
            break error;
        }
    };
    println!("\nstopping");
    stop(&mut stack);
    if ended.is::<child::Interrupted>() {
        Ok(())
    } else {
        Err(ended)
    }
}

/// Ends everything in order: the door first, then what is behind it, the broker last.
fn stop(stack: &mut Stack) {
    let daemons = [
        &mut stack.gateway,
        &mut stack.compute,
        &mut stack.auth,
        &mut stack.nats,
    ];
    for daemon in daemons {
        if daemon.check_running().is_ok()
            && let Err(error) = daemon.stop(STOP_GRACE)
        {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// Daemons run in other folders: their paths must not depend on ours.
pub(crate) fn absolute(path: PathBuf) -> Result<PathBuf> {
    std::path::absolute(&path).with_context(|| format!("{} is no path", path.display()))
}
