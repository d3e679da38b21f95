//! What the events say: a pure reduction, no I/O and no clock.
//!
//! [`check`] turns a decoded event into a [`Change`] or refuses it, [`State`]
//! takes changes one by one and tells what they touched. The writer task stores
//! what was touched and brings the table up to date from it.
//!
//! Events arrive again, late and out of order. So every fact (run state with
//! address, SSH flag, HTTPS flag, each rule, each key, each user) carries its
//! own [`Stamp`], what was deleted leaves a tombstone, and what comes before
//! its container is kept. Any order and any duplication of the same events
//! gives the same state; the property test in `tests` holds that.

mod absent;
pub mod address;
pub mod change;
pub mod check;
mod digest;
pub mod entity;
pub mod record;
pub mod state;

#[cfg(test)]
mod tests;

pub use absent::absent;
pub use address::AddressPolicy;
pub use change::{Change, What};
pub use check::Checks;
pub use entity::{ContainerEntity, Created, Flag, KeyEntity, RuleEntity, Run, Stamp, UserEntity};
pub use record::Record;
pub use state::{Announcement, Effects, Outcome, State};
