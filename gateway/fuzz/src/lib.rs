//! What the fuzz targets share: our reading of a connection's bytes, and hyper's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

pub mod hyper_reads;
pub mod ours;

/// A message as either of the two understood it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Message {
    /// Method and target, or status.
    pub start: String,
    /// Minor version.
    pub version: u8,
    /// Names in lower case and values, sorted by name; values of one name in order.
    pub fields: Vec<(Vec<u8>, Vec<u8>)>,
    /// The body's bytes.
    pub body: Vec<u8>,
    /// Trailers, likewise sorted.
    pub trailers: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Lower-case names, sorted; stable, so that values of one name keep their order.
pub fn sorted<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut fields: Vec<_> = fields
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()))
        .collect();
    fields.sort_by(|a, b| a.0.cmp(&b.0));
    fields
}
