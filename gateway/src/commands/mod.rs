//! The subcommands: the daemon itself, and what operators ask it or the files.

mod check;
mod client;
mod dlq;
mod explain;
mod rebuild;
mod serve;
mod table;

use clap::{Parser, Subcommand};
use edd_daemon::cli::Exit;

use crate::config::ServeArgs;

/// The edge gateway: TLS, HTTP, SSH and raw TCP, routed by one table that events change.
#[derive(Debug, Parser)]
#[command(name = "edd-gateway", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `serve` when left out
    #[command(subcommand)]
    command: Option<Command>,
    /// Flags of `serve`
    #[command(flatten)]
    serve: ServeArgs,
}

/// What the program does.
#[derive(Debug, Subcommand)]
enum Command {
    /// Check routes.yaml: every mistake as FILE:LINE:COL, exit 1; else a summary, exit 0
    Check(check::CheckArgs),
    /// List, show, replay or drop the events that nobody could use
    Dlq(dlq::DlqArgs),
    /// List the containers in force, or as they were
    Containers(table::TableArgs),
    /// Say where a request, a login or a raw connection goes, and why
    Explain(explain::ExplainArgs),
    /// Say what happened to a container or host: when, by which event, from whom
    Log(table::LogArgs),
    /// List the static routes in force, or as they were
    Routes(table::TableArgs),
    /// Replay the streams into an empty database
    Rebuild(Box<rebuild::RebuildArgs>),
    /// Run the daemon (default)
    Serve(Box<ServeArgs>),
}

impl Cli {
    /// Does what was asked for.
    pub fn run(self) -> Result<(), Exit> {
        match self.command {
            Some(Command::Check(args)) => check::run(&args),
            Some(Command::Dlq(args)) => dlq::run(&args),
            Some(Command::Containers(args)) => table::containers(&args),
            Some(Command::Explain(args)) => explain::run(&args),
            Some(Command::Log(args)) => table::log(&args),
            Some(Command::Routes(args)) => table::routes(&args),
            Some(Command::Rebuild(args)) => rebuild::run(*args),
            Some(Command::Serve(args)) => serve::run(*args),
            None => serve::run(self.serve),
        }
    }
}
