//! The routing table and the decisions made from it.
//!
//! Everything that decides where a connection goes is here, and nothing else:
//! no sockets, no clock, no YAML, no event bus. The control path builds a
//! [`RouteTable`] through the one [`TableWriter`]; the data path reads it and
//! asks it the four questions of the `decide` modules. `explain` asks the same
//! functions, so what it says is what happens.
//!
//! In the order a connection, then a change, meets them:
//! [`name`] and [`path`] read what the client wrote, [`decide`] answers,
//! [`table`] holds what is in force, [`fact`] tells a live connection that what
//! admitted it is gone; [`spec`] is what should be in force, [`writer`] turns
//! one into the other, [`snapshot`] keeps it on disk.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

pub mod decide;
pub mod explain;
pub mod fact;
pub mod name;
pub mod origin;
pub mod path;
pub mod snapshot;
mod snapshot_v1;
pub mod spec;
pub mod statics;
pub mod table;
pub mod target;
pub mod writer;

pub use decide::Door;
pub use fact::{Admission, Fact, Revoked};
pub use name::{ContainerId, Host, UserId};
pub use origin::Origin;
pub use spec::{ContainerSpec, KeySpec, RuleSpec, RunSpec, StaticRouteSpec};
pub use statics::{StaticRoute, StaticRoutes};
pub use table::{Container, RouteTable, Settings};
pub use target::{CaSpec, HealthSpec, ProxyHeader, Scheme, TargetSpec};
pub use writer::{Published, TableWriter};
