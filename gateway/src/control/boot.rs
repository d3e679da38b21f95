//! What can be served before anything else is there: the last good table, and
//! the static routes of the file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use edd_route::snapshot::Snapshot;
use edd_route::table::Settings;
use edd_route::{RouteTable, TableWriter};

use super::last_good;
use super::sources::routes_file::{self, Seen};
use crate::config::Config;
use crate::shared::Shared;

/// The routes file is unusable and there is no last good table.
#[derive(Debug, thiserror::Error)]
#[error("no usable routes and no last good table in {}", state_dir.display())]
pub struct BootError {
    /// Where the table would be.
    pub state_dir: PathBuf,
    /// Every mistake of the file, `FILE:LINE:COL: message`.
    pub mistakes: Vec<String>,
}

/// The first table and the writer that goes on from it.
#[derive(Debug)]
pub struct Boot {
    pub(super) writer: TableWriter,
    table: Arc<RouteTable>,
    /// The revision of the last good table; 0: there was none.
    pub(super) last_good_revision: u64,
    /// When that was written: what came after is not in it. None: there was none.
    pub(super) last_good_at: Option<SystemTime>,
    /// The routes file and what it names as last read, good or bad.
    pub(super) routes_seen: Seen,
}

impl Boot {
    /// Reads the last good table and the routes file, blocking.
    ///
    /// The file wins. If it is missing or bad, the static routes of the last
    /// good table stay, and every mistake is logged.
    ///
    /// # Errors
    /// The file is missing or bad and there is no last good table.
    pub fn read(config: &Config) -> Result<Self, BootError> {
        let snapshot = match last_good::read(&config.state_dir) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let file = last_good::path(&config.state_dir);
                tracing::warn!(file = %file.display(), %error, "last good table is unusable, ignored");
                None
            }
        };
        let settings = Settings::new(&config.platform_domain, config.container_tls_ports.clone());
        let mut table = RouteTable::empty(settings);
        let (snapshot, last_good_at) = snapshot.unzip();
        let has_last_good = snapshot.is_some();
        let last_good_revision = snapshot.as_ref().map_or(0, |snapshot| snapshot.revision);
        table.revision = last_good_revision;
        let mut writer = TableWriter::new(table);
        if let Some(snapshot) = snapshot {
            restore(&mut writer, snapshot);
        }
        let (routes_seen, checked) = routes_file::read(&config.routes, &config.platform_domain);
        match checked {
            Ok(specs) => writer.set_statics(specs),
            Err(mistakes) if !has_last_good => {
                return Err(BootError {
                    state_dir: config.state_dir.clone(),
                    mistakes,
                });
            }
            Err(mistakes) => {
                for mistake in mistakes {
                    tracing::error!("{mistake}");
                }
                tracing::error!(
                    file = %config.routes.display(),
                    "routes refused: the static routes of the last good table serve"
                );
            }
        }
        let table = match writer.publish(0) {
            Some(published) => Arc::clone(&published.table),
            None => Arc::new(writer.table().clone()),
        };
        Ok(Self {
            writer,
            table,
            last_good_revision,
            last_good_at,
            routes_seen,
        })
    }

    /// Goes on from the table in force, after the control path was stopped for a while.
    pub(crate) fn resume(shared: &Shared) -> Self {
        let table = shared.table();
        Self {
            writer: TableWriter::new(RouteTable::clone(&table)),
            last_good_revision: table.revision,
            last_good_at: None,
            table,
            // Whatever is in the files is looked at.
            routes_seen: Seen::default(),
        }
    }

    /// The first table, to be served at once.
    pub fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&self.table)
    }
}

fn restore(writer: &mut TableWriter, snapshot: Snapshot) {
    tracing::info!(
        revision = snapshot.revision,
        containers = snapshot.containers.len(),
        static_routes = snapshot.statics.len(),
        "last good table read"
    );
    writer.set_statics(snapshot.statics);
    writer.replace_dynamic(snapshot.containers, snapshot.keys);
}
