//! The control path: sources, reconciliation, storage, publication.

pub mod sources;
