//! Where containers run.
//!
//! A [`Runtime`] makes processes out of ids and says when they end; what should
//! run, and what others are told, is decided by `lifecycle` and the database.
//! `local` is for development: child processes on an address of their own.

pub mod address;
pub mod gateway_key;
pub mod guest;
pub mod local;
pub mod sshd;

mod processes;
mod supervise;

use std::{fmt, net::IpAddr};

use futures_util::future::BoxFuture;

/// What holds for all containers of a runtime.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Facts {
    /// Where a container that was told nothing else answers HTTP.
    pub http_port: u16,
    /// The only user that SSH lets in; `None`: root.
    pub login_user: Option<String>,
}

/// A container that runs.
pub struct Started {
    /// Where it can be reached.
    pub external_ip: IpAddr,
    /// The public key line of its SSH server, if it has one.
    pub ssh_host_key: Option<String>,
    /// Resolves when it ends: the reason if it ended by itself, `None` if that
    /// was asked for.
    pub ended: BoxFuture<'static, Option<String>>,
}

impl fmt::Debug for Started {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started")
            .field("external_ip", &self.external_ip)
            .field("ssh_host_key", &self.ssh_host_key)
            .finish_non_exhaustive()
    }
}

/// A container that does not start; the text is for its user.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime is being shut down: nothing is wrong with the container.
    #[error("the service is ending")]
    Closed,
    /// The database of the runtime failed: to be tried again.
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Runs containers. One call per container at a time; `lifecycle` sees to that.
pub trait Runtime: fmt::Debug + Send + Sync {
    /// What holds for all containers.
    fn facts(&self) -> Facts;

    /// Starts a container, which ends first if it runs, and returns once it
    /// answers. Bounded in time. Dropping the future ends what it began.
    fn start<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Started, StartError>>;

    /// Ends a container; one that does not run is none to end. Bounded in time.
    fn stop<'a>(&'a self, id: &'a str) -> BoxFuture<'a, ()>;

    /// Ends a container and gives back all that it had.
    fn remove<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<(), StartError>>;

    /// Ends all containers; none starts afterwards. Bounded in time.
    fn shutdown(&self) -> BoxFuture<'_, ()>;
}
