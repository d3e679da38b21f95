//! Which container an SSH user may log in to.

use std::net::IpAddr;
use std::sync::Arc;

use crate::fact::Admission;
use crate::name::{ContainerId, UserId};
use crate::origin::Origin;
use crate::table::RouteTable;

/// A login that is allowed. Only the decision makes one.
#[derive(Clone, Debug)]
pub struct SshMatch {
    /// The container.
    pub id: ContainerId,
    /// Whose it is.
    pub owner: UserId,
    /// The Unix user to log in as.
    pub unix_user: String,
    /// The container's address.
    pub address: IpAddr,
    /// Its host key, an OpenSSH public key line, if the events said.
    pub host_key: Option<Arc<str>>,
    /// Which start of it; with the id, what a pinned host key belongs to.
    pub start: u64,
    /// The owner's key that opened it.
    pub key_id: i64,
    /// What the session depends on.
    pub admission: Admission,
    /// The event that started the container.
    pub run_origin: Arc<Origin>,
}

/// Why a login is refused. The client never learns which.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SshRefusal {
    /// The user name names no container.
    #[error("the user name names no container")]
    BadName,
    /// The container does not run.
    #[error("the container is not running")]
    NotRunning,
    /// SSH is switched off.
    #[error("ssh is switched off for the container")]
    Off,
    /// No such container.
    #[error("no such container")]
    Unknown,
    /// Not a key of the container's owner.
    #[error("not a key of the container's owner")]
    WrongKey,
}

/// Longest Unix user name that is passed on (`useradd`'s limit).
const UNIX_USER_MAX: usize = 32;

/// Splits `<id>` (Unix user root) or `<user>.<id>`; the last dot splits.
pub(crate) fn split_name(name: &str) -> Option<(&str, &str)> {
    let (user, id) = name.rsplit_once('.').unwrap_or(("root", name));
    let first = user.bytes().next()?;
    let fits = user.len() <= UNIX_USER_MAX
        && (first.is_ascii_alphanumeric() || first == b'_')
        && user
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    (fits && !id.is_empty()).then_some((user, id))
}

impl RouteTable {
    /// Decides whether the key with this `SHA256:…` fingerprint logs in under this user name.
    pub fn decide_ssh(&self, name: &str, fingerprint: &str) -> Result<SshMatch, SshRefusal> {
        let (unix_user, id) = split_name(name).ok_or(SshRefusal::BadName)?;
        let container = self.containers.get(id).ok_or(SshRefusal::Unknown)?;
        let run = container.running.as_ref().ok_or(SshRefusal::NotRunning)?;
        let ssh = container.ssh.as_ref().ok_or(SshRefusal::Off)?;
        let key = self
            .keys(container.owner)
            .iter()
            .find(|key| key.spec.fingerprint == fingerprint)
            .ok_or(SshRefusal::WrongKey)?;
        Ok(SshMatch {
            id: container.id.clone(),
            owner: container.owner,
            unix_user: unix_user.to_owned(),
            address: run.address,
            host_key: run.ssh_host_key.clone(),
            start: run.start,
            key_id: key.spec.id,
            admission: Admission::new([run.fact.clone(), ssh.clone(), key.fact.clone()]),
            run_origin: Arc::clone(&run.origin),
        })
    }
}
