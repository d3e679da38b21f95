//! One database, SQLite by default or PostgreSQL by URL.
//!
//! Owns: the URL, opening, schema steps, transactions, and statements that are
//! the same text for both engines. Schemas differ in their types and are given
//! per engine; statements keep to what both understand: `$1` parameters,
//! `RETURNING`, `ON CONFLICT … DO UPDATE`, `CAST`. Rows in bulk travel as one JSON
//! array ([`Rows`]). What the rows mean belongs to the services.
//!
//! Writers come one after the other, on both engines ([`Database::begin`]): rows
//! read in a transaction hold until its end, and what is written in ascending
//! order becomes visible in that order.

mod away;
mod checkpoint;
mod database;
mod open;
mod postgres;
mod query;
mod rows;
mod schema;
mod script;
mod sqlite;
#[cfg(feature = "testing")]
pub mod testing;
mod url;

pub use away::{is_about_values, is_away};
pub use database::{Database, Engine, Transaction};
pub use open::OpenError;
pub use query::{Executor, FromRow, FromValue, Query, Value, query, query_dynamic};
pub use rows::Rows;
pub use schema::{MigrateError, Schema, Step};
pub use script::Script;
pub use sqlx::Error;
pub use url::{DatabaseUrl, DatabaseUrlError};

/// Results of statements.
pub type Result<T> = std::result::Result<T, Error>;
