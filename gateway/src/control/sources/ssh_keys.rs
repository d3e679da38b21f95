//! Shares the SSH keys with other replicas, if that is wanted.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::control::store::SqlStore;
use crate::ssh::SshKeys;

/// Pause after an attempt that failed.
const RETRY: Duration = Duration::from_secs(2);

/// Offers the own keys to an open database and takes what it keeps, once, unless `over` comes
/// first.
///
/// What goes wrong is tried again; the keys that are in force serve on.
pub(super) async fn share(store: &SqlStore, keys: Option<&SshKeys>, over: &CancellationToken) {
    let Some(keys) = keys.filter(|keys| keys.are_shared()) else {
        return;
    };
    loop {
        match take(store, keys).await {
            Ok(()) => {
                info!("the SSH keys are those of the database");
                return;
            }
            Err(error) => {
                warn!(error = format!("{error:#}"), "SSH keys are not shared");
            }
        }
        let pause = tokio::time::timeout(RETRY, over.cancelled());
        if pause.await.is_ok() {
            return;
        }
    }
}

async fn take(store: &SqlStore, keys: &SshKeys) -> anyhow::Result<()> {
    let mut shared = store.ssh_keys().await?;
    let is_there = |name: &str| shared.iter().any(|key| key.name == name);
    if !keys.names().all(is_there) {
        shared = store.share_ssh_keys(&keys.offer().await?).await?;
    }
    keys.adopt(shared).await
}
