//! The world breaks while requests are served and events pile up: no request
//! fails, and the end state is right.
//!
//! Short here; `EDD_FAULT_SECONDS=300` makes each outage five minutes long
//! (`--nocapture` shows the figures).

mod cluster;
mod database;
mod disk;
mod nats;
mod site;

use std::time::Duration;

/// How long what is broken stays so.
fn outage() -> Duration {
    let seconds = std::env::var("EDD_FAULT_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("EDD_FAULT_SECONDS is a number"));
    Duration::from_secs(seconds.unwrap_or(8))
}
