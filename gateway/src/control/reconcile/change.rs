//! An event whose content is acceptable, in the words of the reduction.

use std::net::IpAddr;

use edd_route::{ContainerId, Origin, UserId};

use super::entity::Stamp;

/// One event, checked.
#[derive(Clone, Debug)]
pub struct Change {
    /// Orders it against other events on the same fact.
    pub stamp: Stamp,
    /// The event, for whoever asks where an entry comes from.
    pub origin: Origin,
    /// What it says.
    pub what: What,
}

/// What an event says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// A container exists.
    ContainerCreated {
        /// Its id.
        id: ContainerId,
        /// Whose it is.
        owner: UserId,
        /// Its name, for people.
        name: String,
    },
    /// A container is gone for ever.
    ContainerDeleted {
        /// Its id.
        id: ContainerId,
    },
    /// A container runs.
    ContainerStarted {
        /// Its id.
        id: ContainerId,
        /// Where it answers.
        address: IpAddr,
        /// Its SSH host key, an OpenSSH public key line.
        ssh_host_key: Option<String>,
    },
    /// A container does not run any more.
    ContainerStopped {
        /// Its id.
        id: ContainerId,
    },
    /// The public HTTPS port of a container is switched.
    HttpsToggled {
        /// Its id.
        id: ContainerId,
        /// On or off.
        on: bool,
    },
    /// An SSH key opens its owner's containers.
    KeyCreated {
        /// Its id.
        id: i64,
        /// Whose it is.
        user: UserId,
        /// OpenSSH's `SHA256:…`.
        fingerprint: String,
    },
    /// An SSH key is gone for ever.
    KeyDeleted {
        /// Its id.
        id: i64,
    },
    /// A rule is not wanted any more.
    RuleDeleted {
        /// The container.
        id: ContainerId,
        /// The public port.
        port: u16,
    },
    /// A rule is wanted.
    RuleRequested {
        /// The container.
        id: ContainerId,
        /// The public port.
        port: u16,
        /// The container's port.
        target: u16,
    },
    /// SSH to a container is switched.
    SshToggled {
        /// Its id.
        id: ContainerId,
        /// On or off.
        on: bool,
    },
    /// A user is gone for ever, with everything of his.
    UserDeleted {
        /// His id.
        id: UserId,
    },
    /// A user is new or has another name.
    UserNamed {
        /// His id.
        id: UserId,
        /// His log-in name; not unique here.
        username: String,
        /// His name for people.
        display_name: String,
    },
    /// Nothing that concerns the gateway.
    Nothing,
}
