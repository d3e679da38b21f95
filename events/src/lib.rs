//! How the services of the cloud tell each other what happened.
//!
//! In the order an event meets them:
//!
//! - [`subject`]: the names of all events, built and parsed in one place;
//! - [`envelope`]: a message gets its id, time, version and cause;
//! - [`outbox`]: it waits in its service's database and is relayed to JetStream;
//! - [`bus`]: what carries it, NATS or a memory with the same semantics;
//! - [`stream`], [`connect`]: where it is kept, and how to get there;
//! - [`event`]: it is decoded and checked on the other side;
//! - [`signature`]: that its source said so is proved, if keys are configured;
//! - [`consumer`]: a durable pull consumer hands it over in batches;
//! - [`inbox`]: the ids of what was handled, so that it is handled once;
//! - [`event_store`]: an archive that outlives the streams;
//! - [`dead_letter`]: where it goes when nobody can use it;
//! - [`trial`]: whether a database takes any of it;
//! - [`saga`]: state machines that wait for what others announce;
//! - [`request`]: the requests that are no events;
//! - [`snapshot`]: all that compute knows, for who cannot hear it any more;
//! - [`digest`]: what a state comes to, for who wants to know whether his is the same;
//! - [`metrics`]: all of this in numbers.
//!
//! Nothing here knows what an event means: whether a port or an address is
//! acceptable is decided by the consumer's handler.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod bus;
pub mod connect;
pub mod consumer;
pub mod dead_letter;
pub mod digest;
pub mod envelope;
pub mod event;
pub mod event_store;
pub mod inbox;
pub mod metrics;
pub mod outbox;
pub mod request;
pub mod saga;
pub mod signature;
pub mod snapshot;
pub mod stream;
pub mod subject;
#[cfg(feature = "testing")]
pub mod testing;
pub mod trial;

mod backoff;
mod secret_file;
mod words;

pub use metrics::Metrics;
