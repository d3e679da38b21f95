//! What every daemon of this project does the same way.
//!
//! In the order a process meets them: [`cli`] reads the command line and reports
//! every mistake at once, [`telemetry`] starts the logs, in which [`mask`] leaves
//! no secrets, [`shutdown`] turns signals into one token, [`net`] binds listeners,
//! [`server`] serves HTTP on a listener, [`api`] is the common behaviour of the
//! services' REST interfaces and [`admin`] the endpoint with health and metrics.
//!
//! Nothing here knows what a service is about: no routes, users or containers.

pub mod admin;
pub mod api;
pub mod cli;
pub mod mask;
pub mod net;
pub mod server;
pub mod shutdown;
pub mod telemetry;
