//! routes.yaml: text in, checked routes or every mistake out.
//!
//! Pure: no I/O, no clock, nothing of the gateway but the routes' types, so
//! that it can be fuzzed and used by `check` and `explain` alike. Reading and
//! watching the file is the gateway's. What each key means is in docs/routes.md.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)
)]

mod check;
mod duration;
mod fields;
mod hosts;
mod options;
mod target;
#[cfg(test)]
mod tests;
mod yaml;

use std::fmt;

pub use check::parse;

/// What a file is read with.
pub struct Context<'c> {
    /// The name that entries remember as their origin.
    pub file: &'c str,
    /// In lower case; hosts under `compute.` it are the containers'.
    pub platform_domain: &'c str,
    /// Reads a file of `ca`, named relative to the routes file, and checks that
    /// it has certificates: its text, or why it cannot be used.
    pub read_ca: &'c dyn Fn(&str) -> Result<String, String>,
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("file", &self.file)
            .field("platform_domain", &self.platform_domain)
            .finish_non_exhaustive()
    }
}

/// One mistake, by line and column (from 1).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Mistake {
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.message)
    }
}
