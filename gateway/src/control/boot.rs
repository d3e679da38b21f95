//! What can be served before anything else is there: the last good table, and
//! the static routes of the file.

use std::path::PathBuf;
use std::sync::Arc;

use edd_route::snapshot::Snapshot;
use edd_route::table::Settings;
use edd_route::{RouteTable, StaticRouteSpec, TableWriter};

use super::last_good;
use crate::config::Config;

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
    /// The bytes of the routes file as last read, good or bad.
    pub(super) routes_seen: Option<Vec<u8>>,
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
        let has_last_good = snapshot.is_some();
        let last_good_revision = snapshot.as_ref().map_or(0, |snapshot| snapshot.revision);
        table.revision = last_good_revision;
        let mut writer = TableWriter::new(table);
        if let Some(snapshot) = snapshot {
            restore(&mut writer, snapshot);
        }
        let routes_seen = std::fs::read(&config.routes);
        match parse(config, &routes_seen) {
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
            routes_seen: routes_seen.ok(),
        })
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

/// Parses what was read; every mistake as a line.
pub(super) fn parse(
    config: &Config,
    read: &std::io::Result<Vec<u8>>,
) -> Result<Vec<StaticRouteSpec>, Vec<String>> {
    let file = config.routes.display().to_string();
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => return Err(vec![format!("{file}: {error}")]),
    };
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(vec![format!("{file}: is not UTF-8 text")]);
    };
    edd_routes::parse(text, &file, &config.platform_domain).map_err(|mistakes| {
        let lines = mistakes.iter();
        lines.map(|mistake| format!("{file}:{mistake}")).collect()
    })
}
