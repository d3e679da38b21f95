//! Containers, SSH keys and ingress requests: the service `edd-compute`.
//!
//! In the order a start, then a request, meets them: [`config`] checks flags,
//! [`app`] wires everything, `api` answers REST after [`auth`] said who asks,
//! [`input`] checks what a request says, [`store`] writes rows and outbox in one
//! transaction with the entries that `events` builds, `lifecycle` makes the
//! [`runtime`] follow the rows. `events` also hears of users and of confirmed
//! ingress rules. What every service does is in `edd_service`.
//!
//! This service owns containers, SSH keys and the *requests* for ingress rules.
//! The rules in force belong to the gateway, users to auth; nobody reads another
//! service's database.

#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

pub mod app;
pub mod auth;
pub mod config;
pub mod http;
pub mod input;
pub mod runtime;
pub mod store;

mod api;
mod digest;
mod events;
mod gateways;
mod lifecycle;
mod snapshot;

use anyhow::Context as _;
use edd_daemon::cli::{Exit, Problems};

use crate::{
    app::App,
    config::{Arguments, Command, Config, RebuildArguments},
    store::Store,
};

/// The daemon from its command line to the end of its drain; or, by its hidden
/// subcommand, one guest of the local runtime.
pub fn run(arguments: Arguments) -> Result<(), Exit> {
    match arguments.command {
        Some(Command::Guest(arguments)) => return runtime::guest::run(arguments),
        Some(Command::RebuildProjections(arguments)) => return rebuild(&arguments),
        None => {}
    }
    let config = Config::check(arguments)?;
    let (log, log_format) = (config.log.clone(), config.log_format);
    edd_service::run::run(&log, log_format, |shutdown| App::start(config, shutdown))
}

/// All at once, also while the daemon runs.
fn rebuild(arguments: &RebuildArguments) -> Result<(), Exit> {
    let mut problems = Problems::of::<Arguments>();
    let url = problems.check("--database-url", arguments.database_url.parse());
    let Some(url) = url else {
        return Err(problems.into_invalid().into());
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let events = runtime.block_on(async {
        let store = Store::open(&url, true).await?;
        let events = store.rebuild_users().await;
        store.database().sql().close().await;
        anyhow::Ok(events?)
    });
    let events = events.context("cannot rebuild the cache of users")?;
    println!("users rebuilt from {events} events");
    Ok(())
}
