//! routes.yaml as it changes: plain writes, renames, the `..data` swap of a
//! Kubernetes ConfigMap, and whoever asks (SIGHUP).
//!
//! The folder is watched, never the file: a rename replaces the file that a
//! watch would hold on to. What counts is the content; a bad one is refused
//! whole, and the table in use stays.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::routes_file::{self, Checked, Seen};
use crate::control::store::SqlStore;
use crate::control::writer::Command;
use crate::shared::Shared;
use crate::telemetry::ROUTES;

/// A change in the folder is looked at after this, with all that came with it.
const DEBOUNCE: Duration = Duration::from_millis(60);

/// Looks without being told: some file systems never tell.
const POLL_INTERVAL: Duration = Duration::from_secs(30);

/// Follows the file, and those it names, until `shutdown`. `seen` is their content as last read.
pub async fn run(
    shared: Arc<Shared>,
    mut seen: Seen,
    writer: mpsc::Sender<Command<SqlStore>>,
    mut asked: mpsc::Receiver<oneshot::Sender<()>>,
    shutdown: CancellationToken,
) {
    let file = &shared.config.routes;
    let folder = folder_of(file);
    let (changed, mut changes) = mpsc::channel(1);
    // Held: dropping it ends the watch. So does the channel's other end, kept
    // here for when there is no watch.
    let _watcher = watch(&folder, changed.clone())
        .inspect_err(|error| {
            tracing::warn!(
                folder = %folder.display(), %error,
                "cannot watch for changes of the routes; looking every {POLL_INTERVAL:?}"
            );
        })
        .ok();
    let mut poll = tokio::time::interval(POLL_INTERVAL);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut answer = None;
        tokio::select! {
            _ = changes.recv() => tokio::time::sleep(DEBOUNCE).await,
            _ = poll.tick() => {}
            // None: nobody can ask any more, it is about to end.
            Some(done) = asked.recv() => answer = Some(done),
            () = shutdown.cancelled() => return,
        }
        // What was told meanwhile is covered by the look that follows.
        while changes.try_recv().is_ok() {}
        // A file that cannot be read, for its disk is away, keeps nobody from ending.
        let looked = shutdown.run_until_cancelled(look(&shared, &seen)).await;
        let Some(looked) = looked else { return };
        match looked {
            Some((now, checked)) => {
                seen = now;
                if take(&shared, checked, &writer).await.is_err() {
                    return;
                }
            }
            None if answer.is_some() => {
                tracing::info!(file = %file.display(), "routes are unchanged");
            }
            None => {}
        }
        if let Some(done) = answer
            && writer.send(Command::Settled(done)).await.is_err()
        {
            return;
        }
    }
}

/// Hands good routes on, tells every mistake of bad ones. An error: the writer has ended.
async fn take(
    shared: &Shared,
    checked: Checked,
    writer: &mpsc::Sender<Command<SqlStore>>,
) -> Result<(), ()> {
    let mistakes = match checked {
        Ok(specs) => return writer.send(Command::Routes(specs)).await.map_err(drop),
        Err(mistakes) => mistakes,
    };
    shared.metrics.reload_failed(ROUTES);
    for mistake in &mistakes {
        tracing::error!("{mistake}");
    }
    tracing::error!(
        file = %shared.config.routes.display(), mistakes = mistakes.len(),
        "routes refused whole, the table in use stays"
    );
    Ok(())
}

/// Reads and checks everything if anything differs from what was seen.
async fn look(shared: &Arc<Shared>, seen: &Seen) -> Option<(Seen, Checked)> {
    let (shared, seen) = (Arc::clone(shared), seen.clone());
    let look = move || {
        let config = &shared.config;
        (!seen.is_current(&config.routes))
            .then(|| routes_file::read(&config.routes, &config.platform_domain))
    };
    // The files may lie on a slow disk, and a large one takes time to check.
    match tokio::task::spawn_blocking(look).await {
        Ok(looked) => looked,
        Err(error) => {
            tracing::error!(%error, "cannot look at the routes");
            None
        }
    }
}

fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Tells of any change in the folder: with symlinks it can have any name.
fn watch(folder: &Path, changed: mpsc::Sender<()>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Reading is what we do ourselves.
        let reads = event.is_ok_and(|event| event.kind.is_access());
        if !reads {
            // Full: there is one waiting already.
            let _ = changed.try_send(());
        }
    })?;
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
