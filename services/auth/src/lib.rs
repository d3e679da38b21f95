//! Users, sessions and token validation: the service `edd-auth`.
//!
//! In the order a start, then a request, meets them: [`config`] checks flags,
//! [`app`] wires everything, `api` answers REST, `identity`, `password`, `token`
//! and `limit` are the rules it applies, [`store`] writes rows and outbox in one
//! transaction, `events` builds the entries, `validate` answers other services'
//! questions on NATS. What every service does is in `edd_service`.
//!
//! This service owns `users` and `sessions`. Nobody else reads its database;
//! others learn by events (`auth.user.*`, `auth.session.*`) and by asking.

pub mod app;
pub mod config;
pub mod identity;
pub mod limit;
pub mod password;
pub mod store;
pub mod token;

mod api;
mod events;
mod sagas;
mod validate;

use edd_daemon::cli::Exit;

use crate::{
    app::App,
    config::{Arguments, Config},
};

/// The daemon from its command line to the end of its drain.
pub fn run(arguments: Arguments) -> Result<(), Exit> {
    let config = Config::check(arguments)?;
    let (log, log_format) = (config.log.clone(), config.log_format);
    edd_service::run::run(&log, log_format, |shutdown| App::start(config, shutdown))
}
