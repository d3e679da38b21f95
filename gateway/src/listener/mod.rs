//! Listeners and the data-plane threads behind them.

mod gate;
mod prefixed;

use std::sync::Arc;

use crate::shared::Shared;
use crate::upstream::Pool;

pub use gate::{Gate, Permit, Refused};
pub use prefixed::Prefixed;

/// What one data-plane thread works with.
#[derive(Debug)]
pub struct Worker {
    /// The process.
    pub shared: Arc<Shared>,
    /// This thread's upstream connections.
    pub pool: Pool,
}
