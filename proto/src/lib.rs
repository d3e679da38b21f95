//! The cloud's event messages, one module per `.proto` package.
//!
//! The `.proto` files beside this crate are the contract between the services:
//! messages, packages and field numbers are frozen, additions only take new
//! numbers (`tests/it` holds the list). The Rust types are generated at build
//! time; nothing generated is checked in.

#![allow(
    missing_docs,
    reason = "generated from the .proto files, which carry the comments"
)]

/// Types shared by all packages: timestamps and event metadata.
pub mod common {
    include!(concat!(env!("OUT_DIR"), "/common.rs"));
}

/// Users, sessions and token validation.
pub mod auth {
    include!(concat!(env!("OUT_DIR"), "/auth.rs"));
}

/// Containers, SSH keys and ingress requests.
pub mod compute {
    include!(concat!(env!("OUT_DIR"), "/compute.rs"));
}

/// What the gateway announces: ingress rules, static routes, new tables.
pub mod gateway {
    include!(concat!(env!("OUT_DIR"), "/gateway.rs"));
}

/// Namespaces and files.
pub mod sfs {
    include!(concat!(env!("OUT_DIR"), "/sfs.rs"));
}
