//! Sagas: small state machines that wait for other services, in the database.
//!
//! A [`Machine`] is a pure function from state and input to the next state and
//! commands. [`start`] and [`drive`] load, ask it, and store, in the caller's
//! transaction: the same in which the caller remembers the input's event (inbox)
//! and carries out the commands (outbox). So a crash anywhere leaves either none
//! of a step or all of it, and an input that comes twice finds the next state.
//! Whoever owns the machine looks for [`due`] deadlines and drives those with its
//! own time-out input. The table comes with the service's migrations ([`TABLE`]).

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use edd_store::{Database, Schema, Transaction, query};
use serde::{Serialize, de::DeserializeOwned};

use crate::envelope::to_ms;

/// The table, for the migrations of the services. Times are in milliseconds
/// since 1970.
pub const TABLE: Schema = Schema {
    postgres: &[(1, "sagas", include_str!("saga_postgres.sql"))],
    sqlite: &[(1, "sagas", include_str!("saga_sqlite.sql"))],
};

/// Rows removed in one statement.
const PRUNE_BATCH: i64 = 500;
/// Most sagas listed at once.
pub const PAGE_MAX: u32 = 1000;

/// How a saga stands.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It reached what it was for; later inputs change nothing.
    Completed,
    /// It gave up, and somebody has to look. An input may still complete it.
    Failed,
    /// It waits for an input, or its deadline.
    Running,
}

impl Status {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Completed, Self::Failed, Self::Running];

    /// As it is stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Running => "running",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A kind of saga.
pub trait Machine {
    /// Its name, in the table and in metrics: `user-deletion`.
    const KIND: &'static str;
    /// What it remembers beside its step.
    type Data: Serialize + DeserializeOwned + Clone + fmt::Debug + PartialEq;
    /// What happens to it.
    type Input;
    /// What it wants done.
    type Command;

    /// What follows from an input; none: nothing, it does not fit this state
    /// (a duplicate, or late). Pure: no clock, no input or output.
    fn next(
        state: &State<Self::Data>,
        input: &Self::Input,
    ) -> Option<Transition<Self::Data, Self::Command>>;
}

/// Where a saga is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct State<D> {
    /// How it stands.
    pub status: Status,
    /// What it is doing, in the machine's words.
    pub step: String,
    /// What it remembers.
    pub data: D,
    /// When it stops waiting, counted from the transition; none: it does not.
    pub wait: Option<Duration>,
    /// How often it waited in vain.
    pub attempts: u32,
}

/// A state and what is to be done on the way to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transition<D, C> {
    /// The next state.
    pub state: State<D>,
    /// In this order, in the same transaction.
    pub commands: Vec<C>,
}

/// A stored saga as it is shown. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, sqlx::FromRow)]
pub struct Row {
    /// Its id: its kind and what it is about.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// How it stands.
    pub state: String,
    /// What it is doing.
    pub step: String,
    /// What it remembers, JSON.
    pub data: String,
    /// When it stops waiting.
    pub deadline: Option<i64>,
    /// How often it waited in vain.
    pub attempts: i64,
    /// When it began.
    pub created_at: i64,
    /// When it last changed.
    pub updated_at: i64,
}

/// The id of a saga about something.
#[must_use]
pub fn id<M: Machine>(about: impl fmt::Display) -> String {
    format!("{}:{about}", M::KIND)
}

/// Begins a saga about something, in the caller's transaction; false: there is
/// one already, which stays as it is.
///
/// # Errors
/// Those of the database.
pub async fn start<M: Machine>(
    tx: &mut Transaction,
    about: impl fmt::Display,
    state: &State<M::Data>,
    now: SystemTime,
) -> edd_store::Result<bool> {
    let begun = query(
        "INSERT INTO sagas (id, kind, state, step, data, deadline, attempts, created_at, \
         updated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8) ON CONFLICT DO NOTHING",
    )
    .bind(id::<M>(about))
    .bind(M::KIND)
    .bind(state.status.as_str())
    .bind(&state.step)
    .bind(json(&state.data)?)
    .bind(deadline(state, now))
    .bind(i64::from(state.attempts))
    .bind(to_ms(now))
    .run(tx)
    .await?;
    Ok(begun == 1)
}

/// Gives a saga an input, in the caller's transaction; the new state and the
/// commands to carry out in it. None: there is no such saga, or the input does
/// not fit its state.
///
/// # Errors
/// Those of the database, and a row that this version cannot read.
pub async fn drive<M: Machine>(
    tx: &mut Transaction,
    about: impl fmt::Display,
    input: &M::Input,
    now: SystemTime,
) -> edd_store::Result<Option<Transition<M::Data, M::Command>>> {
    let id = id::<M>(about);
    let row: Option<Row> = query("SELECT * FROM sagas WHERE id = $1")
        .bind(&id)
        .optional(&mut *tx)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let Some(transition) = M::next(&state_of::<M>(&row)?, input) else {
        return Ok(None);
    };
    let state = &transition.state;
    query(
        "UPDATE sagas SET state = $1, step = $2, data = $3, deadline = $4, attempts = $5, \
         updated_at = $6 WHERE id = $7",
    )
    .bind(state.status.as_str())
    .bind(&state.step)
    .bind(json(&state.data)?)
    .bind(deadline(state, now))
    .bind(i64::from(state.attempts))
    .bind(to_ms(now))
    .bind(&id)
    .run(tx)
    .await?;
    Ok(Some(transition))
}

/// What those sagas of a kind are about whose deadline is over, the longest
/// overdue first, at most `limit`. A driver asks again within its transaction
/// ([`is_due`]): in between an input may have come.
///
/// # Errors
/// Those of the database.
pub async fn due<M: Machine>(
    database: &Database,
    now: SystemTime,
    limit: u32,
) -> edd_store::Result<Vec<String>> {
    let ids: Vec<String> =
        query("SELECT id FROM sagas WHERE deadline <= $1 AND kind = $2 ORDER BY deadline LIMIT $3")
            .bind(to_ms(now))
            .bind(M::KIND)
            .bind(i64::from(limit.clamp(1, PAGE_MAX)))
            .values(database)
            .await?;
    let prefix = id::<M>("");
    Ok(ids
        .iter()
        .filter_map(|id| id.strip_prefix(&prefix).map(str::to_owned))
        .collect())
}

/// Whether a saga's deadline is over, within a transaction.
///
/// # Errors
/// Those of the database.
pub async fn is_due<M: Machine>(
    tx: &mut Transaction,
    about: impl fmt::Display,
    now: SystemTime,
) -> edd_store::Result<bool> {
    query("SELECT EXISTS (SELECT 1 FROM sagas WHERE id = $1 AND deadline <= $2)")
        .bind(id::<M>(about))
        .bind(to_ms(now))
        .value(tx)
        .await
}

/// A saga that is overdue `now` and cannot be driven waits until `then`, so that others have
/// their turn.
///
/// # Errors
/// Those of the database.
pub async fn postpone<M: Machine>(
    database: &Database,
    about: impl fmt::Display,
    now: SystemTime,
    then: SystemTime,
) -> edd_store::Result<()> {
    query("UPDATE sagas SET deadline = $1 WHERE id = $2 AND deadline <= $3")
        .bind(to_ms(then))
        .bind(id::<M>(about))
        .bind(to_ms(now))
        .run(database)
        .await?;
    Ok(())
}

/// Sagas, those changed last first: of one status only, if given.
///
/// # Errors
/// Those of the database.
pub async fn list(
    database: &Database,
    status: Option<Status>,
    limit: u32,
) -> edd_store::Result<Vec<Row>> {
    query("SELECT * FROM sagas WHERE ($1 = '' OR state = $1) ORDER BY updated_at DESC, id LIMIT $2")
        .bind(status.map_or("", Status::as_str))
        .bind(i64::from(limit.clamp(1, PAGE_MAX)))
        .all(database)
        .await
}

/// How many sagas of each kind and status there are.
///
/// # Errors
/// Those of the database.
pub async fn counts(database: &Database) -> edd_store::Result<Vec<(String, String, i64)>> {
    query("SELECT kind, state, COUNT(*) FROM sagas GROUP BY kind, state ORDER BY kind, state")
        .all(database)
        .await
}

/// Forgets completed sagas that have not changed for `keep`; returns how many.
/// Failed ones stay until somebody looks.
///
/// # Errors
/// Those of the database; what was forgotten until then stays so.
pub async fn prune(database: &Database, keep: Duration) -> edd_store::Result<u64> {
    let before = to_ms(SystemTime::now()).saturating_sub(millis(keep));
    let mut forgotten = 0;
    loop {
        let gone = query(
            "DELETE FROM sagas WHERE id IN (SELECT id FROM sagas WHERE state = 'completed' \
             AND updated_at < $1 LIMIT $2)",
        )
        .bind(before)
        .bind(PRUNE_BATCH)
        .run(database)
        .await?;
        forgotten += gone;
        if gone < PRUNE_BATCH as u64 {
            return Ok(forgotten);
        }
    }
}

fn state_of<M: Machine>(row: &Row) -> edd_store::Result<State<M::Data>> {
    let data = serde_json::from_str(&row.data).map_err(|e| edd_store::Error::Decode(e.into()))?;
    let status = Status::parse(&row.state)
        .ok_or_else(|| edd_store::Error::Decode("a saga of unknown state".into()))?;
    Ok(State {
        status,
        step: row.step.clone(),
        data,
        wait: None,
        attempts: u32::try_from(row.attempts).unwrap_or(u32::MAX),
    })
}

fn json(data: &impl Serialize) -> edd_store::Result<String> {
    serde_json::to_string(data).map_err(|error| edd_store::Error::Encode(error.into()))
}

fn deadline<D>(state: &State<D>, now: SystemTime) -> Option<i64> {
    Some(to_ms(now).saturating_add(millis(state.wait?)))
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
