//! The whole crate from outside: tables, every split, models, round trips, the corpus.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing
)]

mod chunked_model;
mod corpus;
mod requests;
mod responses;
mod round_trip;
mod splits;
mod translate;
