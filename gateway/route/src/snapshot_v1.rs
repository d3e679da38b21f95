//! The last good table as version 1 of its file has it, for the first start of a newer gateway.

use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use crate::name::UserId;
use crate::origin::Origin;
use crate::snapshot::Snapshot;
use crate::spec::{ContainerSpec, KeySpec, StaticRouteSpec};
use crate::target::TargetSpec;

pub(crate) const MAGIC: &[u8] = b"edd-gateway table 1\n";

#[derive(Deserialize)]
pub(crate) struct SnapshotV1 {
    revision: u64,
    taken_ms: u64,
    statics: Vec<StaticRouteV1>,
    containers: Vec<ContainerSpec>,
    keys: Vec<(UserId, Vec<KeySpec>)>,
}

/// One target, plain HTTP.
#[derive(Deserialize)]
struct StaticRouteV1 {
    host: String,
    path: String,
    target: String,
    strip_prefix: bool,
    timeout: Option<Duration>,
    allow: Vec<IpNet>,
    deny: Vec<IpNet>,
    origin: Origin,
}

impl From<StaticRouteV1> for StaticRouteSpec {
    fn from(old: StaticRouteV1) -> Self {
        let targets = vec![TargetSpec::http(&old.target)];
        Self {
            strip_prefix: old.strip_prefix,
            timeout: old.timeout,
            allow: old.allow,
            deny: old.deny,
            ..Self::new(&old.host, &old.path, targets, old.origin)
        }
    }
}

impl From<SnapshotV1> for Snapshot {
    fn from(old: SnapshotV1) -> Self {
        Self {
            revision: old.revision,
            taken_ms: old.taken_ms,
            statics: old.statics.into_iter().map(Into::into).collect(),
            containers: old.containers,
            keys: old.keys,
        }
    }
}
