//! A statement with its values, for whichever engine it meets.

use sqlx::postgres::{PgArguments, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, AssertSqlSafe, Decode, PgPool, SqlSafeStr as _, SqlStr, Type};

use crate::database::{Database, Inner, Pool, Transaction};
use crate::postgres::Held;
use crate::sqlite::{Lite, Turn};

/// A value for a parameter. A missing one keeps its type: PostgreSQL asks for it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A truth.
    Bool(Option<bool>),
    /// Bytes.
    Bytes(Option<Vec<u8>>),
    /// Any whole number.
    Int(Option<i64>),
    /// Text.
    Text(Option<String>),
}

/// Where a statement runs: on any connection, or in a transaction.
pub struct Executor<'c>(On<'c>);

enum On<'c> {
    Postgres(&'c mut Held),
    PostgresPool(&'c PgPool),
    SqliteFile(&'c Lite),
    SqliteRead(&'c mut SqliteConnection),
    SqliteTurn(&'c mut Turn),
}

/// What a row can be read as: whatever derives or implements `sqlx::FromRow` for both engines.
pub trait FromRow:
    for<'r> sqlx::FromRow<'r, SqliteRow> + for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin
{
}

impl<T> FromRow for T where
    T: for<'r> sqlx::FromRow<'r, SqliteRow> + for<'r> sqlx::FromRow<'r, PgRow> + Send + Unpin
{
}

/// What a single column can be read as.
pub trait FromValue:
    for<'r> Decode<'r, Sqlite>
    + Type<Sqlite>
    + for<'r> Decode<'r, Postgres>
    + Type<Postgres>
    + Send
    + Unpin
{
}

impl<T> FromValue for T where
    T: for<'r> Decode<'r, Sqlite>
        + Type<Sqlite>
        + for<'r> Decode<'r, Postgres>
        + Type<Postgres>
        + Send
        + Unpin
{
}

/// A statement and the values of its parameters `$1`, `$2`, …
#[derive(Debug)]
#[must_use = "a statement does nothing until it runs"]
pub struct Query {
    sql: SqlStr,
    values: Vec<Value>,
    /// Whether the engine should keep it prepared.
    kept: bool,
}

/// A statement that both engines understand.
pub fn query(sql: &'static str) -> Query {
    Query {
        sql: sql.into_sql_str(),
        values: Vec::new(),
        kept: true,
    }
}

/// A statement whose text is made as the program runs, never from anything that
/// came from outside: values are bound. It is not kept prepared.
pub fn query_dynamic(sql: String) -> Query {
    Query {
        sql: AssertSqlSafe(sql).into_sql_str(),
        values: Vec::new(),
        kept: false,
    }
}

/// Runs `$query.$method` where `$on` is.
macro_rules! dispatch {
    ($query:expr, $on:expr, $make:ident, $row:ty, $method:ident) => {{
        let Query { sql, values, kept } = $query;
        match $on.into().0 {
            On::Postgres(held) => {
                let made = sqlx::$make::<Postgres, $row, _>(sql, postgres(values)?);
                made.persistent(kept).$method(held.connection()?).await
            }
            On::PostgresPool(pool) => {
                let made = sqlx::$make::<Postgres, $row, _>(sql, postgres(values)?);
                made.persistent(kept).$method(pool).await
            }
            On::SqliteFile(file) if only_reads(&sql) => {
                let made = sqlx::$make::<Sqlite, $row, _>(sql, sqlite(values)?);
                made.persistent(kept).$method(file.readers()).await
            }
            On::SqliteFile(file) => {
                let mut turn = file.turn().await?;
                let made = sqlx::$make::<Sqlite, $row, _>(sql, sqlite(values)?);
                let done = made.persistent(kept).$method(turn.connection()?).await?;
                turn.committed();
                Ok(done)
            }
            On::SqliteRead(connection) => {
                let made = sqlx::$make::<Sqlite, $row, _>(sql, sqlite(values)?);
                made.persistent(kept).$method(connection).await
            }
            On::SqliteTurn(turn) => {
                let made = sqlx::$make::<Sqlite, $row, _>(sql, sqlite(values)?);
                made.persistent(kept).$method(turn.connection()?).await
            }
        }
    }};
}

impl Query {
    /// A statement whose text is made as the program runs, from the program's own texts, and
    /// again and again the same.
    pub(crate) fn kept(sql: String) -> Self {
        Self {
            sql: AssertSqlSafe(sql).into_sql_str(),
            values: Vec::new(),
            kept: true,
        }
    }

    /// Its text and its values.
    pub(crate) fn parts(self) -> (SqlStr, Vec<Value>) {
        (self.sql, self.values)
    }

    /// With all these values.
    pub(crate) fn with(mut self, values: Vec<Value>) -> Self {
        self.values = values;
        self
    }

    /// The value of the next parameter.
    pub fn bind(mut self, value: impl Into<Value>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it; how many rows it changed.
    ///
    /// # Errors
    /// Those of the database.
    pub async fn run<'c>(self, on: impl Into<Executor<'c>>) -> sqlx::Result<u64> {
        let Self { sql, values, kept } = self;
        Ok(match on.into().0 {
            On::Postgres(held) => {
                let made = sqlx::query_with::<Postgres, _>(sql, postgres(values)?);
                let made = made.persistent(kept).execute(held.connection()?);
                made.await?.rows_affected()
            }
            On::PostgresPool(pool) => {
                let made = sqlx::query_with::<Postgres, _>(sql, postgres(values)?);
                made.persistent(kept).execute(pool).await?.rows_affected()
            }
            On::SqliteFile(file) if only_reads(&sql) => {
                let made = sqlx::query_with::<Sqlite, _>(sql, sqlite(values)?);
                let made = made.persistent(kept).execute(file.readers());
                made.await?.rows_affected()
            }
            On::SqliteFile(file) => {
                let mut turn = file.turn().await?;
                let made = sqlx::query_with::<Sqlite, _>(sql, sqlite(values)?);
                let made = made.persistent(kept).execute(turn.connection()?);
                let changed = made.await?.rows_affected();
                turn.committed();
                changed
            }
            On::SqliteRead(connection) => {
                let made = sqlx::query_with::<Sqlite, _>(sql, sqlite(values)?);
                let made = made.persistent(kept).execute(connection);
                made.await?.rows_affected()
            }
            On::SqliteTurn(turn) => {
                let made = sqlx::query_with::<Sqlite, _>(sql, sqlite(values)?);
                let made = made.persistent(kept).execute(turn.connection()?);
                made.await?.rows_affected()
            }
        })
    }

    /// All its rows.
    ///
    /// # Errors
    /// Those of the database; a column that does not fit.
    pub async fn all<'c, T: FromRow>(self, on: impl Into<Executor<'c>>) -> sqlx::Result<Vec<T>> {
        dispatch!(self, on, query_as_with, T, fetch_all)
    }

    /// Its row, if there is one.
    ///
    /// # Errors
    /// As [`Query::all`].
    pub async fn optional<'c, T: FromRow>(
        self,
        on: impl Into<Executor<'c>>,
    ) -> sqlx::Result<Option<T>> {
        dispatch!(self, on, query_as_with, T, fetch_optional)
    }

    /// Its row.
    ///
    /// # Errors
    /// As [`Query::all`]; there is none.
    pub async fn one<'c, T: FromRow>(self, on: impl Into<Executor<'c>>) -> sqlx::Result<T> {
        dispatch!(self, on, query_as_with, T, fetch_one)
    }

    /// The first column of all its rows.
    ///
    /// # Errors
    /// As [`Query::all`].
    pub async fn values<'c, T: FromValue>(
        self,
        on: impl Into<Executor<'c>>,
    ) -> sqlx::Result<Vec<T>> {
        dispatch!(self, on, query_scalar_with, T, fetch_all)
    }

    /// The first column of its row, if there is one.
    ///
    /// # Errors
    /// As [`Query::all`].
    pub async fn optional_value<'c, T: FromValue>(
        self,
        on: impl Into<Executor<'c>>,
    ) -> sqlx::Result<Option<T>> {
        dispatch!(self, on, query_scalar_with, T, fetch_optional)
    }

    /// The first column of its row.
    ///
    /// # Errors
    /// As [`Query::all`]; there is no row.
    pub async fn value<'c, T: FromValue>(self, on: impl Into<Executor<'c>>) -> sqlx::Result<T> {
        dispatch!(self, on, query_scalar_with, T, fetch_one)
    }
}

/// Whether a statement changes nothing. The others are the writer's; one that is taken for what
/// it is not fails, with a connection that only reads.
fn only_reads(sql: &SqlStr) -> bool {
    ["SELECT", "PRAGMA"]
        .iter()
        .any(|word| sql.as_str().starts_with(word))
}

fn postgres(values: Vec<Value>) -> sqlx::Result<PgArguments> {
    let mut arguments = PgArguments::default();
    for value in values {
        let added = match value {
            Value::Bool(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
            Value::Int(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

fn sqlite(values: Vec<Value>) -> sqlx::Result<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    for value in values {
        let added = match value {
            Value::Bool(value) => arguments.add(value),
            Value::Bytes(value) => arguments.add(value),
            Value::Int(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value),
        };
        added.map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}

impl<'c> From<&'c Database> for Executor<'c> {
    fn from(database: &'c Database) -> Self {
        Self(match &database.0 {
            Pool::Postgres(pool) => On::PostgresPool(pool),
            Pool::Sqlite(file) => On::SqliteFile(file),
        })
    }
}

impl<'c> From<&'c mut Turn> for Executor<'c> {
    fn from(turn: &'c mut Turn) -> Self {
        Self(On::SqliteTurn(turn))
    }
}

impl<'c> From<&'c mut Transaction> for Executor<'c> {
    fn from(transaction: &'c mut Transaction) -> Self {
        Self(match &mut transaction.0 {
            Inner::Postgres(held) => On::Postgres(held),
            Inner::Sqlite(turn) => return turn.into(),
            Inner::SqliteRead(transaction) => On::SqliteRead(transaction),
        })
    }
}

/// `From` for what becomes an integer without a loss, and its option.
macro_rules! integers {
    ($($integer:ty),*) => {$(
        impl From<$integer> for Value {
            fn from(value: $integer) -> Self {
                Self::Int(Some(i64::from(value)))
            }
        }

        impl From<Option<$integer>> for Value {
            fn from(value: Option<$integer>) -> Self {
                Self::Int(value.map(i64::from))
            }
        }
    )*};
}

integers!(i64, i32, u32, u16);

/// Saturates: both engines' integers are signed.
impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Int(Some(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Bool(Some(value))
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::Text(Some(value.to_owned()))
    }
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::Text(Some(value))
    }
}

impl From<&String> for Value {
    fn from(value: &String) -> Self {
        Self::Text(Some(value.clone()))
    }
}

impl From<&Option<String>> for Value {
    fn from(value: &Option<String>) -> Self {
        Self::Text(value.clone())
    }
}

impl From<Option<&str>> for Value {
    fn from(value: Option<&str>) -> Self {
        Self::Text(value.map(str::to_owned))
    }
}

impl From<Option<String>> for Value {
    fn from(value: Option<String>) -> Self {
        Self::Text(value)
    }
}

impl From<Vec<u8>> for Value {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(Some(value))
    }
}

impl From<&[u8]> for Value {
    fn from(value: &[u8]) -> Self {
        Self::Bytes(Some(value.to_vec()))
    }
}
