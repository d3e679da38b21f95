//! `--database-url`: a file, or a server.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

/// A checked `--database-url`. Printing it never shows a password.
#[derive(Clone)]
pub enum DatabaseUrl {
    /// `postgres://USER[:PASSWORD]@HOST[:PORT]/NAME[?OPTION=VALUE…]`, as libpq reads it.
    Postgres(Box<PgConnectOptions>),
    /// `sqlite://PATH`.
    Sqlite(PathBuf),
}

/// A `--database-url` that cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum DatabaseUrlError {
    /// Neither SQLite nor PostgreSQL.
    #[error("not a database URL such as sqlite://data/name.db or postgres://user@host/name")]
    Scheme,
    /// `sqlite://` without a file, in memory, or with parameters.
    #[error("sqlite:// needs the plain path of a file")]
    Path,
    /// PostgreSQL's part cannot be read. Nothing of the URL is repeated: it may hold a password.
    #[error("not a PostgreSQL URL such as postgres://user@host:5432/name")]
    Postgres,
    /// A database has to be named: the server's default would be a surprise.
    #[error("the PostgreSQL URL names no database: postgres://user@host:5432/name")]
    NoDatabase,
}

impl DatabaseUrl {
    /// The file, if it is SQLite's.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Postgres(_) => None,
            Self::Sqlite(path) => Some(path),
        }
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Postgres(options) => write!(
                f,
                "postgres://{}@{}:{}/{}",
                options.get_username(),
                options.get_host(),
                options.get_port(),
                options.get_database().unwrap_or_default(),
            ),
            Self::Sqlite(path) => write!(f, "sqlite://{}", path.display()),
        }
    }
}

/// As it is printed: the options' own form shows the password.
impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            let options: PgConnectOptions = url.parse().map_err(|_| DatabaseUrlError::Postgres)?;
            if options.get_database().is_none_or(str::is_empty) {
                return Err(DatabaseUrlError::NoDatabase);
            }
            return Ok(Self::Postgres(Box::new(options)));
        }
        let path = url
            .strip_prefix("sqlite://")
            .ok_or(DatabaseUrlError::Scheme)?;
        if path.is_empty() || path.ends_with('/') || path.contains([':', '?', '#', '\0']) {
            return Err(DatabaseUrlError::Path);
        }
        Ok(Self::Sqlite(PathBuf::from(path)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> DatabaseUrlError {
        url.parse::<DatabaseUrl>().unwrap_err()
    }

    #[test]
    fn plain_paths_are_sqlite() {
        for (url, path) in [
            ("sqlite://data/a.db", "data/a.db"),
            ("sqlite:///var/a.db", "/var/a.db"),
        ] {
            let parsed: DatabaseUrl = url.parse().unwrap();
            assert_eq!(parsed.path(), Some(Path::new(path)));
            assert_eq!(parsed.to_string(), url);
        }
        for url in [
            "sqlite://",
            "sqlite://:memory:",
            "sqlite://a.db?mode=ro",
            "sqlite://a/",
        ] {
            assert_eq!(error(url), DatabaseUrlError::Path, "{url}");
        }
        for url in ["", "data/a.db", "mysql://h/d", "sqlite:a.db", "postgres:d"] {
            assert_eq!(error(url), DatabaseUrlError::Scheme, "{url}");
        }
    }

    #[test]
    fn postgresql_is_printed_without_its_password() {
        for scheme in ["postgres", "postgresql"] {
            let url = format!("{scheme}://edd:s3cret@db.example:6432/gateway?sslmode=require");
            let parsed: DatabaseUrl = url.parse().unwrap();
            assert_eq!(parsed.path(), None);
            assert_eq!(parsed.to_string(), "postgres://edd@db.example:6432/gateway");
            assert!(!format!("{parsed:?}").contains("s3cret"));
        }
        assert_eq!(error("postgres://edd@h:none/d"), DatabaseUrlError::Postgres);
        assert_eq!(error("postgres://edd@h"), DatabaseUrlError::NoDatabase);
    }
}
