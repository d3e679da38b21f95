//! Follows `--certs-dir`.
//!
//! Any event makes the store compare what the folder holds; which file an event
//! names says nothing where whole volumes are swapped by a symlink. A poll
//! stands in where events are missing (network file systems, a folder that is
//! not there yet).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{CertStore, TicketKeys};

impl CertStore {
    /// Reloads whenever the folder changes and keeps the keys of tickets young, until `shutdown`.
    pub async fn watch(self: Arc<Self>, shutdown: CancellationToken) {
        let (changed, mut changes) = mpsc::channel(1);
        let mut watcher = None;
        loop {
            if watcher.is_none() {
                watcher = start(&self.folder, changed.clone());
                if watcher.is_some() {
                    // What changed before there was a watcher is no event.
                    let _ = changed.try_send(());
                }
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                // The sender above lives as long as this loop.
                _ = timeout(POLL, changes.recv()) => {}
            }
            sleep(SETTLE).await;
            let _ = changes.try_recv();
            let store = Arc::clone(&self);
            let reload = move || {
                store.reload();
                store.renew();
                store.tickets().turn(TicketKeys::slot_now());
            };
            if tokio::task::spawn_blocking(reload).await.is_err() {
                debug!("a certificate reload was lost");
            }
        }
    }
}

fn start(folder: &Path, changed: mpsc::Sender<()>) -> Option<RecommendedWatcher> {
    let handler = move |event: notify::Result<notify::Event>| {
        // Reading is an event too, and our own reload reads.
        let read = event.is_ok_and(|event| match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
            EventKind::Access(_) => true,
            _ => false,
        });
        if !read {
            // Full: a reload is due anyway.
            let _ = changed.try_send(());
        }
    };
    let mut watcher = notify::recommended_watcher(handler).ok()?;
    match watcher.watch(folder, RecursiveMode::Recursive) {
        Ok(()) => Some(watcher),
        Err(error) => {
            debug!(folder = %folder.display(), %error, "not watching, polling instead");
            None
        }
    }
}

/// Where events are missing.
const POLL: Duration = Duration::from_secs(30);

/// A certificate and its key are rarely written at one moment.
const SETTLE: Duration = Duration::from_millis(100);
