//! `cargo xtask bench`: measurements on this machine, with everything they need started and ended.
//!
//! `events`, `faults`, `propagation`, `ssh` and `swaps` are of their own; without a subcommand the gateway
//! is measured beside other proxies. The measuring itself is in the crate `edd-bench`.

use anyhow::Result;

mod compare;
mod events;
mod faults;
mod options;
mod peers;
mod propagation;
mod report;
mod rows;
mod ssh;
mod swaps;

pub(crate) use options::BadOption;

/// Runs the benchmark that `args` name.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    match args {
        ["events", rest @ ..] => events::run(rest),
        ["faults", rest @ ..] => faults::run(rest),
        ["propagation", rest @ ..] => propagation::run(rest),
        ["ssh", rest @ ..] => ssh::run(rest),
        ["swaps", rest @ ..] => swaps::run(rest),
        flags => match options::parse(flags)? {
            options::Wanted::List => {
                options::list();
                Ok(())
            }
            options::Wanted::Run(options) => compare::run(&options),
        },
    }
}
