//! The SSH keys in force: from the state directory, or the same for all who share a database.
//!
//! With `--ssh-keys database` the keys of the database win. Whoever finds none
//! there puts its own, at once with others or not: one of them is kept, the
//! others take it. A copy stays in the state directory with a note that it is
//! one, so that a start needs no database; until the database has answered for
//! the first time, logins wait a moment for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use russh::keys::PrivateKey;
use russh::server;
use tokio::sync::{Mutex, watch};
use tracing::{info, warn};
use zeroize::Zeroizing;

use super::greeting::Offer;
use super::keys::{self, Keys};
use super::settings::{self, Limits};
use crate::config::Config;

/// A private key as it is stored: its name, and OpenSSH's text of it.
#[derive(Clone)]
pub struct StoredKey {
    /// `ssh_host_ed25519`, `ssh_host_rsa`, `ssh_client_ed25519`.
    pub name: String,
    /// A private key: not for any log.
    pub secret: Zeroizing<String>,
}

/// The keys of this process; clones share them.
#[derive(Clone)]
pub struct SshKeys(Arc<Ring>);

struct Ring {
    state_dir: PathBuf,
    host_rsa: bool,
    post_quantum_only: bool,
    from_database: bool,
    limits: Limits,
    /// Held while the files are read or written and what is in force follows them.
    turn: Mutex<()>,
    in_force: watch::Sender<Option<Arc<InForce>>>,
}

/// Keys that are used.
pub(crate) struct InForce {
    /// With the host keys, for clients that have AES-GCM.
    aes_gcm: Arc<server::Config>,
    /// And for all.
    everything: Arc<server::Config>,
    /// Logs in to containers.
    pub(crate) client: Arc<PrivateKey>,
    /// Its public line.
    pub(crate) client_line: String,
}

impl InForce {
    /// What a client is offered.
    pub(super) fn config(&self, client: Offer) -> Arc<server::Config> {
        Arc::clone(match client {
            Offer::AesGcm => &self.aes_gcm,
            Offer::Other => &self.everything,
        })
    }
}

/// How long own keys that the database has not confirmed wait for it, before they serve.
const UNCONFIRMED: Duration = Duration::from_secs(2);

impl SshKeys {
    /// Reads or makes the keys, unless they are another's business; then there may be none yet.
    pub(super) async fn open(config: &Config, limits: Limits) -> anyhow::Result<Self> {
        let keys = Self(Arc::new(Ring {
            state_dir: config.state_dir.clone(),
            host_rsa: config.ssh.host_rsa,
            post_quantum_only: config.ssh.post_quantum_only,
            from_database: config.ssh.keys_in_database,
            limits,
            turn: Mutex::default(),
            in_force: watch::Sender::new(None),
        }));
        let state_dir = config.state_dir.clone();
        let (copied, there) = blocking(move || {
            let copied = keys::is_copy(&state_dir);
            Ok((copied, keys::are_there(&state_dir)))
        })
        .await?;
        if !keys.0.from_database || copied {
            keys.load().await?;
        } else if there {
            let waiting = keys.clone();
            tokio::spawn(async move {
                let mut in_force = waiting.0.in_force.subscribe();
                let confirmed = in_force.wait_for(Option::is_some);
                if tokio::time::timeout(UNCONFIRMED, confirmed).await.is_err() {
                    let _turn = waiting.0.turn.lock().await;
                    // The database's may have come while this waited for its turn.
                    if waiting.in_force().is_some() {
                        return;
                    }
                    warn!("the database has not confirmed the SSH keys, those at hand serve");
                    if let Err(error) = waiting.load().await {
                        warn!(error = format!("{error:#}"), "no SSH keys");
                    }
                }
            });
        } else {
            info!("SSH logins wait for the keys in the database");
        }
        Ok(keys)
    }

    /// The keys in force, if there are any yet.
    pub(super) fn in_force(&self) -> Option<Arc<InForce>> {
        self.0.in_force.borrow().clone()
    }

    /// The keys, as soon as there are any. Cancellation safe.
    pub(super) async fn ready(&self) -> Option<Arc<InForce>> {
        let mut in_force = self.0.in_force.subscribe();
        let found = in_force.wait_for(Option::is_some).await;
        found.ok().and_then(|found| found.clone())
    }

    /// The line that containers put into `authorized_keys`, once it is known.
    pub fn public_key_line(&self) -> Option<String> {
        self.in_force().map(|keys| keys.client_line.clone())
    }

    /// Whether the database has a say.
    pub fn are_shared(&self) -> bool {
        self.0.from_database
    }

    /// The names of the keys that this gateway uses.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        keys::names(self.0.host_rsa)
    }

    /// The own keys, made if missing: what a database without keys is given.
    pub async fn offer(&self) -> anyhow::Result<Vec<StoredKey>> {
        let _turn = self.0.turn.lock().await;
        let (state_dir, host_rsa) = (self.0.state_dir.clone(), self.0.host_rsa);
        blocking(move || {
            Keys::load(&state_dir, host_rsa)?;
            keys::stored(&state_dir, host_rsa)
        })
        .await
    }

    /// Takes the database's keys: they are copied to the state directory and in force from then
    /// on. Open connections are not touched.
    pub async fn adopt(&self, shared: Vec<StoredKey>) -> anyhow::Result<()> {
        let _turn = self.0.turn.lock().await;
        let state_dir = self.0.state_dir.clone();
        blocking(move || keys::adopt(&state_dir, &shared)).await?;
        self.load().await
    }

    /// Puts the keys of the state directory in force. In one's turn only.
    async fn load(&self) -> anyhow::Result<()> {
        let (state_dir, host_rsa) = (self.0.state_dir.clone(), self.0.host_rsa);
        let keys = blocking(move || Keys::load(&state_dir, host_rsa)).await?;
        let (post_quantum_only, limits) = (self.0.post_quantum_only, &self.0.limits);
        let config = |host, ciphers| settings::downstream(host, ciphers, post_quantum_only, limits);
        self.0.in_force.send_replace(Some(Arc::new(InForce {
            aes_gcm: config(keys.host.clone(), settings::AES_GCM),
            everything: config(keys.host, settings::DOWNSTREAM_CIPHERS),
            client: Arc::new(keys.client),
            client_line: keys.client_line,
        })));
        Ok(())
    }
}

impl std::fmt::Debug for SshKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let line = self.public_key_line();
        f.debug_tuple("SshKeys").field(&line).finish()
    }
}

impl std::fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("StoredKey").field(&self.name).finish()
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, keys::KeyError> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("loading the SSH keys")?
        .context("the SSH keys cannot be used")
}

/// Where a note says that the keys beside it are copies.
pub(super) fn note_of(state_dir: &Path) -> PathBuf {
    state_dir.join("ssh_keys.of-database")
}
