//! The subcommands.

use clap::{Parser, Subcommand};

use crate::config::ServeArgs;

/// The edge gateway: TLS, HTTP, SSH and raw TCP, routed by one table that events change.
#[derive(Debug, Parser)]
#[command(name = "edd-gateway", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `serve` when left out
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `serve`
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What the program does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon (default)
    Serve(Box<ServeArgs>),
}
