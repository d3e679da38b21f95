//! What auth begins and others finish: a user's registration and deletion.
//!
//! `confirmed` has the state machine, pure; `store::sagas` keeps it in the same
//! transactions as users and events; here are the task that drives deadlines and
//! the consumer of compute's confirmations.

pub(crate) mod confirmed;
mod hear;
mod timer;

pub(crate) use hear::{Confirmations, SPEC};
pub(crate) use timer::{Timer, router};
