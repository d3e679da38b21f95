//! The last good table as bytes: what the gateway serves when everything else is gone.
//!
//! ```text
//! "edd-gateway table 2\n" | CRC-32 of the body, little endian | body (postcard)
//! ```
//!
//! Version 1, with one target for each route, is read too and never written.
//! Read whole or not at all: a bit that flipped or a file cut short is an error, never half a table.

use serde::{Deserialize, Serialize};

use crate::name::UserId;
use crate::snapshot_v1::{self, SnapshotV1};
use crate::spec::{ContainerSpec, KeySpec, StaticRouteSpec};
use crate::table::RouteTable;

const MAGIC: &[u8] = b"edd-gateway table 2\n";

/// Everything in a table, as plain data.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Snapshot {
    /// The table's revision.
    pub revision: u64,
    /// When it was taken, Unix milliseconds.
    pub taken_ms: u64,
    /// The static routes in the order of their file.
    pub statics: Vec<StaticRouteSpec>,
    /// The containers.
    pub containers: Vec<ContainerSpec>,
    /// The users' SSH keys.
    pub keys: Vec<(UserId, Vec<KeySpec>)>,
}

/// Why bytes are not a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The body does not have the checksum it was written with.
    #[error("checksum does not match")]
    Checksum,
    /// The body is not what this version writes.
    #[error("cannot be read: {0}")]
    Body(#[from] postcard::Error),
    /// Not a snapshot, or of another version.
    #[error("not a route table of this version")]
    Magic,
}

impl Snapshot {
    /// Takes everything out of `table`.
    pub fn of(table: &RouteTable, taken_ms: u64) -> Self {
        let mut containers: Vec<_> = table.containers().map(|c| c.to_spec()).collect();
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        let mut keys: Vec<_> = table
            .key_owners()
            .map(|(user, keys)| (user, keys.iter().map(|key| key.spec.clone()).collect()))
            .collect();
        keys.sort_by_key(|(user, _): &(UserId, Vec<KeySpec>)| *user);
        Self {
            revision: table.revision,
            taken_ms,
            statics: table.static_specs().cloned().collect(),
            containers,
            keys,
        }
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// None is known for these types.
    pub fn encode(&self) -> Result<Vec<u8>, SnapshotError> {
        Ok(closed(postcard::to_extend(self, begun())?))
    }

    /// The bytes of what [`Snapshot::of`] takes out of `table`, one entry at a time: a large
    /// table is not copied whole in between.
    ///
    /// # Errors
    /// As [`Snapshot::encode`].
    pub fn encode_table(table: &RouteTable, taken_ms: u64) -> Result<Vec<u8>, SnapshotError> {
        // The fields in their order; a list is its length and its entries.
        let mut bytes = postcard::to_extend(&(table.revision, taken_ms), begun())?;
        let statics: Vec<_> = table.static_specs().collect();
        bytes = postcard::to_extend(&statics, bytes)?;
        let mut containers: Vec<_> = table.containers().collect();
        containers.sort_by(|a, b| a.id.cmp(&b.id));
        bytes = postcard::to_extend(&containers.len(), bytes)?;
        for container in containers {
            bytes = postcard::to_extend(&container.to_spec(), bytes)?;
        }
        let mut owners: Vec<_> = table.key_owners().collect();
        owners.sort_by_key(|(user, _)| *user);
        bytes = postcard::to_extend(&owners.len(), bytes)?;
        for (user, keys) in owners {
            let keys: Vec<_> = keys.iter().map(|key| &key.spec).collect();
            bytes = postcard::to_extend(&(user, keys), bytes)?;
        }
        Ok(closed(bytes))
    }

    /// Reads the bytes of the file.
    pub fn decode(bytes: &[u8]) -> Result<Self, SnapshotError> {
        if let Some(rest) = bytes.strip_prefix(snapshot_v1::MAGIC) {
            let old: SnapshotV1 = postcard::from_bytes(whole(rest)?)?;
            return Ok(old.into());
        }
        let rest = bytes.strip_prefix(MAGIC).ok_or(SnapshotError::Magic)?;
        Ok(postcard::from_bytes(whole(rest)?)?)
    }
}

/// What stands in front of the body, the checksum still open.
fn begun() -> Vec<u8> {
    [MAGIC, &[0; 4]].concat()
}

/// With the checksum of the body.
fn closed(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some((front, body)) = bytes.split_at_mut_checked(MAGIC.len() + 4)
        && let Some(sum) = front.last_chunk_mut()
    {
        *sum = crc32fast::hash(body).to_le_bytes();
    }
    bytes
}

/// The body behind its checksum, if it is the one that was written.
fn whole(rest: &[u8]) -> Result<&[u8], SnapshotError> {
    let (sum, body) = rest
        .split_first_chunk::<4>()
        .ok_or(SnapshotError::Checksum)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return Err(SnapshotError::Checksum);
    }
    Ok(body)
}
