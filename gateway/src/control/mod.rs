//! The control path: sources, reconciliation, storage, publication.
