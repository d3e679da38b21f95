//! Upstreams that break the rules on purpose, and what clients of both versions see of it.
//!
//! Each fault is a script ([`script`]) that a raw upstream plays for one path. After every fault
//! the same client connection (if it goes on) and a new one ask again and must get their own
//! answer: a fault never poisons what comes after it.

mod bodies;
mod h2c;
mod heads;
mod reuse;
mod script;
mod told;
mod uploads;
