//! Load and scale benchmarks of the gateway, and the small clients that they and the tour need.
//!
//! Owns the command line; each subcommand is a module. Everything runs against a gateway that is
//! already there (`cargo xtask bench` starts one) and is bounded in time.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod client;
mod clock;
mod compare;
mod events;
mod first_answer;
mod guest;
mod propagation;
mod publisher;
mod site;
mod ssh;
mod stats;
mod swaps;
mod ws_echo;

#[derive(Parser)]
#[command(version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the certificate that all proxies of a comparison present
    Certificate(compare::certificate::Args),
    /// Publish a running container whose web server is an origin
    Container(compare::container::Args),
    /// Start gateways and measure catch-up, publish to effect and latency under many changes
    Events(events::Args),
    /// Poll a host until it answers well, and print the time since the events that made it so
    FirstAnswer(first_answer::Args),
    /// Put a load on a proxy and print what it cost the proxy
    Measure(compare::measure::Args),
    /// Answer every proxy of a comparison
    Origin(compare::origin::Args),
    /// Publish changes and measure the time until the first request is served under each
    Propagation(propagation::Args),
    /// Copy bytes between clients and the origin: the floor under every proxy
    Relay(compare::relay::Args),
    /// Measure SSH through a gateway beside the same straight to sshd
    Ssh(ssh::Args),
    /// Change routes, certificates and the process under a load, and count what clients notice
    Swaps(swaps::Args),
    /// Send a message over a WebSocket and expect it back
    WsEcho(ws_echo::Args),
}

fn main() -> ExitCode {
    let args = Args::parse();
    // One thread: a poller that shares the machine with what it measures must stay small.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| match args.command {
            Command::Certificate(args) => compare::certificate::run(args),
            Command::Container(args) => runtime.block_on(compare::container::run(args)),
            Command::Events(args) => runtime.block_on(events::run(args)),
            Command::FirstAnswer(args) => runtime.block_on(first_answer::run(args)),
            Command::Measure(args) => runtime.block_on(compare::measure::run(args)),
            Command::Origin(args) => runtime.block_on(compare::origin::run(args)),
            Command::Propagation(args) => runtime.block_on(propagation::run(args)),
            Command::Relay(args) => runtime.block_on(compare::relay::run(args)),
            Command::Ssh(args) => runtime.block_on(ssh::run(args)),
            Command::Swaps(args) => runtime.block_on(swaps::run(args)),
            Command::WsEcho(args) => runtime.block_on(ws_echo::run(args)),
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("edd-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
