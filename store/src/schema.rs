//! Schema steps, per engine.

use sqlx::SqlStr;
pub use sqlx::migrate::MigrateError;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::postgres::PgPoolOptions;
use sqlx::sqlite::SqlitePoolOptions;

use crate::database::{Database, Pool};

/// One step of a schema: its number, its name, its SQL (by `include_str!`).
///
/// Released steps never change, new ones take the next number: what a database
/// holds is compared with them by checksum.
pub type Step = (i64, &'static str, &'static str);

/// The steps of each engine.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// For PostgreSQL.
    pub postgres: &'static [Step],
    /// For SQLite.
    pub sqlite: &'static [Step],
}

impl Database {
    /// Brings the schema up to date: runs the steps that the database lacks, each
    /// in its own transaction, in the order of their numbers. Replicas that start
    /// at once wait for each other.
    ///
    /// # Errors
    /// A step fails, a step in the database is unknown here (it was written by a
    /// newer version) or differs from ours.
    pub async fn migrate(&self, schema: Schema) -> Result<(), MigrateError> {
        match &self.0 {
            Pool::Postgres(pool) => {
                // When it fails, its lock lasts as long as the connection.
                let options = (*pool.connect_options()).clone();
                let own = PgPoolOptions::new().max_connections(1);
                let own = own.connect_with(options).await?;
                let migrated = migrator(schema.postgres).run(&own).await;
                own.close().await;
                migrated
            }
            Pool::Sqlite(file) => {
                let options = file.options().clone();
                let own = SqlitePoolOptions::new().max_connections(1);
                let own = own.connect_with(options).await?;
                let migrated = migrator(schema.sqlite).run(&own).await;
                own.close().await;
                migrated
            }
        }
    }
}

fn migrator(steps: &[Step]) -> Migrator {
    let migrations = steps.iter().map(|&(number, name, sql)| {
        let sql = SqlStr::from_static(sql);
        Migration::new(number, name.into(), MigrationType::Simple, sql, false)
    });
    Migrator::with_migrations(migrations.collect())
}
