//! Where routes come from.

pub mod routes_file;
mod yaml;
