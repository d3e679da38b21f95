//! The journal: what every commit changed, in order, and which event said so.
//!
//! Replicas follow each other by it, operators ask it about the past. One row
//! per entity and event. What is old is pruned down to a baseline: of each
//! entity that exists the last row stays, so that the past within the kept time
//! can be put together from rows alone.

use std::collections::HashSet;

use edd_route::{ContainerId, UserId};
use edd_store::{Database, Engine, Query, Rows, Transaction, query};
use rand::RngExt as _;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cells::{self, ContainerRow, KeyRow, RuleRow, UserRow, container_id, corrupt, number};
use super::{StoreError, int};
use crate::control::reconcile::{Effects, Record, State};

/// A replica that lacks more rows than this reads everything instead.
const AHEAD_MAX: i64 = 20_000;

/// Rows that one statement looks at or removes: others wait for it.
pub(super) const PRUNED_AT_ONCE: i64 = 2000;

/// What made a change.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Cause {
    /// The event's subject; empty: no event, see [`Origin`].
    pub subject: String,
    /// Its stream.
    pub stream: String,
    /// Its sequence there; of a snapshot's fact the last that the snapshot takes in.
    pub sequence: u64,
    /// Its id; empty for a snapshot's fact.
    pub event_id: String,
    /// The service that published it.
    pub source: String,
}

/// What kind of cause it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// An event.
    Event,
    /// A fact of compute's snapshot, the event behind it is not known.
    Snapshot,
    /// The table in use, written into a database in the place of a lost one.
    LastGoodTable,
    /// A stream in the place of a lost one: all positions in it mean nothing any more.
    StreamMadeAnew,
    /// routes.yaml.
    Routes,
}

/// The [`Cause::source`] of [`Origin::LastGoodTable`] and [`Origin::StreamMadeAnew`].
const LAST_GOOD_TABLE: &str = "last-good-table";
const STREAM_MADE_ANEW: &str = "stream-made-anew";

impl Cause {
    /// Of what is written into a database in the place of a lost one.
    pub fn last_good_table() -> Self {
        Self::own(LAST_GOOD_TABLE)
    }

    /// Of what is written because a stream is another one.
    pub fn stream_made_anew() -> Self {
        Self::own(STREAM_MADE_ANEW)
    }

    fn own(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            ..Self::default()
        }
    }

    /// What it is.
    pub fn origin(&self) -> Origin {
        match (&*self.subject, &*self.event_id, &*self.source) {
            ("", _, STREAM_MADE_ANEW) => Origin::StreamMadeAnew,
            ("", ..) => Origin::LastGoodTable,
            (_, "", _) => Origin::Snapshot,
            _ => Origin::Event,
        }
    }
}

/// One change.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The revision of the table in force after it.
    pub revision: u64,
    /// When, Unix milliseconds.
    pub at_ms: u64,
    /// What led to it; none: routes.yaml.
    pub cause: Option<Cause>,
    /// What it led to.
    pub record: Record,
}

/// The newest changes of one name.
#[derive(Debug, Default)]
pub struct Log {
    /// The last change of each part of it before those that are told.
    pub before: Vec<Entry>,
    /// Those that are told, oldest first.
    pub entries: Vec<Entry>,
    /// How many of them, the oldest, only say how it was: what was before is forgotten.
    pub baseline: usize,
}

/// A line of the journal; the default is before the first.
///
/// A database that was set back, by a standby that takes over or a copy that is put
/// into it, gives the numbers of what it has lost to other lines.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// Its number, in the order of the commits.
    pub number: u64,
    /// Drawn by the commit that wrote it, the same for all of its lines. 0: not known.
    pub mark: i64,
}

impl Place {
    /// Whether a line of the same number may be this one.
    pub(in crate::control) fn may_be(self, mark: i64) -> bool {
        self.mark == mark || self.mark == 0 || mark == 0
    }

    /// The last line up to which the journal is pruned, where that is further on.
    pub(super) fn or_pruned(self, number: u64) -> Self {
        match number > self.number {
            true => Self { number, mark: 0 },
            false => self,
        }
    }
}

/// What others committed.
#[derive(Debug, Default)]
pub struct Ahead {
    /// The last change.
    pub position: Place,
    /// The revision in force after it.
    pub revision: u64,
    /// COMPUTE's [`Marks::gap`](super::Marks::gap).
    pub gap: u64,
    /// What changed, in order; none: too much, or no longer known. Everything is to be read.
    pub entries: Option<Vec<Entry>>,
}

/// Everything that was in force once.
#[derive(Debug)]
pub struct Then {
    /// The revision of the table.
    pub revision: u64,
    /// The last change of each entity that existed.
    pub entries: Vec<Entry>,
}

/// Which past is asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Past {
    /// After everything of this revision.
    Revision(u64),
    /// At this time, Unix milliseconds.
    Time(u64),
}

/// A row to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    kind: &'static str,
    name: String,
    part: String,
    cause: Option<String>,
    after: Option<String>,
}

impl Line {
    /// What one event or a snapshot's fact touched, as `state` is right after it; where it is none
    /// all that is touched, row by row.
    pub fn of(state: &State, touched: &Effects, cause: &Cause) -> Vec<Self> {
        let is_event = matches!(cause.origin(), Origin::Event | Origin::Snapshot);
        let cause = serde_json::to_string(cause).ok();
        let line = |kind, name: String, part: String, after: Option<Value>| Self {
            kind,
            name,
            part,
            cause: cause.clone(),
            after: after.map(|cells| cells.to_string()),
        };
        // An event on a rule touches its container too, whose own row stays as it is.
        let of_rule = |id: &ContainerId| {
            let mut rules = touched
                .rules
                .range((id.clone(), 0)..=(id.clone(), u16::MAX));
            is_event && state.container(id).is_some() && rules.next().is_some()
        };
        let containers = touched.containers.iter().filter(|id| !of_rule(id));
        let containers = containers.map(|id| {
            let after = state.container(id).map(|c| cells::container(id, c));
            line("container", id.as_str().into(), String::new(), after)
        });
        let rules = touched.rules.iter().map(|(id, port)| {
            let rule = state.container(id).and_then(|c| c.rules.get(port));
            let after = rule.map(|rule| cells::rule(id, *port, rule));
            line("rule", id.as_str().into(), port.to_string(), after)
        });
        let keys = touched.keys.iter().map(|id| {
            let after = state.key(*id).map(|key| cells::key(*id, key));
            line("key", id.to_string(), String::new(), after)
        });
        let users = touched.users.iter().map(|id| {
            let after = state.user(*id).map(|user| cells::user(*id, user));
            line("user", id.0.to_string(), String::new(), after)
        });
        containers.chain(rules).chain(keys).chain(users).collect()
    }

    /// As it is read again.
    #[cfg(test)]
    pub(in crate::control) fn entry(&self, revision: u64, at_ms: u64) -> Result<Entry, StoreError> {
        let row = Row {
            revision: int(revision),
            at: int(at_ms),
            kind: self.kind.to_owned(),
            name: self.name.clone(),
            part: self.part.clone(),
            cause: self.cause.clone(),
            after: self.after.clone(),
        };
        row.entry()
    }

    /// A static route that is new or different (`spec`), or gone.
    pub(super) fn of_route(host: &str, path: &str, spec: Option<&str>) -> Self {
        Self {
            kind: "route",
            name: host.to_owned(),
            part: path.to_owned(),
            cause: None,
            after: spec.map(str::to_owned),
        }
    }
}

/// Writes lines.
pub(super) fn writing(
    engine: Engine,
    lines: &[Line],
    mark: i64,
    revision: u64,
    now_ms: u64,
) -> Query {
    let rows: Rows = lines
        .iter()
        .map(|line| json!([line.kind, line.name, line.part, line.cause, line.after]))
        .collect();
    let sql = "INSERT INTO journal (revision, at, mark, kind, name, part, cause, after) \
               SELECT $2, $3, $4, value ->> 0, value ->> 1, value ->> 2, value ->> 3, value ->> 4 \
               FROM {rows} WHERE true RETURNING number";
    rows.query(engine, sql)
        .bind(int(revision))
        .bind(int(now_ms))
        .bind(mark)
}

/// What is drawn for the lines of a commit.
pub(super) fn draw_mark() -> i64 {
    rand::rng().random_range(1..=i64::MAX)
}

/// The last line.
pub(super) async fn last(tx: &mut Transaction) -> Result<Place, StoreError> {
    let last = query("SELECT number, mark FROM journal ORDER BY number DESC LIMIT 1");
    let last: Vec<(i64, i64)> = last.all(tx).await?;
    let last = last.first().map(|(at, mark)| Place {
        number: number(*at),
        mark: *mark,
    });
    Ok(last.unwrap_or_default())
}

/// Whether it has this very line, or had it before it was pruned.
pub(super) async fn holds(database: &Database, line: Place) -> Result<bool, StoreError> {
    let sql = "SELECT mark FROM journal WHERE number = $1";
    let found = query(sql).bind(int(line.number)).optional_value(database);
    if let Some(mark) = found.await? {
        return Ok(line.may_be(mark));
    }
    let pruned = query("SELECT value FROM meta WHERE key = 'pruned'").optional_value(database);
    let pruned: Option<i64> = pruned.await?;
    Ok(line.number <= pruned.map_or(0, number))
}

#[derive(sqlx::FromRow)]
struct Row {
    revision: i64,
    at: i64,
    kind: String,
    name: String,
    part: String,
    cause: Option<String>,
    after: Option<String>,
}

/// What was committed after `since`, and which of these events are in the inbox: one statement,
/// where nothing was committed.
pub(super) async fn ahead(
    tx: &mut Transaction,
    since: Place,
    event_ids: &[&str],
) -> Result<(Ahead, HashSet<String>), StoreError> {
    let rows: Rows = event_ids.iter().map(|id| json!([id])).collect();
    let sql = "WITH last AS (SELECT number, mark FROM journal ORDER BY number DESC LIMIT 1) \
               SELECT key, value FROM meta WHERE key IN ('revision', 'pruned', 'gap:COMPUTE') \
               UNION ALL SELECT 'last', number FROM last UNION ALL SELECT 'mark', mark FROM last \
               UNION ALL SELECT event_id, NULL FROM inbox \
               WHERE event_id IN (SELECT value ->> 0 FROM {rows})";
    let told: Vec<(String, Option<i64>)> = rows.query(tx.engine(), sql).all(&mut *tx).await?;
    let (mut meta, mut seen) = (Vec::new(), HashSet::new());
    for (name, value) in told {
        match value {
            Some(value) => meta.push((name, value)),
            None => {
                seen.insert(name);
            }
        }
    }
    Ok((beyond(tx, since, &meta).await?, seen))
}

/// As `meta` says, the journal's lines behind it.
async fn beyond(
    tx: &mut Transaction,
    since: Place,
    meta: &[(String, i64)],
) -> Result<Ahead, StoreError> {
    let found = |wanted: &str| {
        let found = meta.iter().find(|(key, _)| key == wanted);
        found.map_or(0, |(_, value)| *value)
    };
    let value = |wanted: &str| number(found(wanted));
    let last = Place {
        number: value("last"),
        mark: found("mark"),
    };
    let mut ahead = Ahead {
        position: last.or_pruned(value("pruned")),
        revision: value("revision"),
        gap: value("gap:COMPUTE"),
        entries: Some(Vec::new()),
    };
    if ahead.position == since {
        return Ok(ahead);
    }
    if ahead.position.number < since.number || since.number < value("pruned") {
        ahead.entries = None;
        return Ok(ahead);
    }
    let sql = "SELECT mark FROM journal WHERE number = $1";
    let mark = query(sql).bind(int(since.number)).optional_value(&mut *tx);
    if !since.may_be(mark.await?.unwrap_or_default()) {
        // It was set back to before that line, and has grown since.
        ahead.entries = None;
        return Ok(ahead);
    }
    let sql = "SELECT revision, at, kind, name, part, cause, after FROM journal \
               WHERE number > $1 ORDER BY number LIMIT $2";
    let rows: Vec<Row> = query(sql)
        .bind(int(since.number))
        .bind(AHEAD_MAX + 1)
        .all(tx)
        .await?;
    let fits = i64::try_from(rows.len()).is_ok_and(|count| count <= AHEAD_MAX);
    ahead.entries = match fits {
        true => Some(rows.into_iter().map(Row::entry).collect::<Result<_, _>>()?),
        false => None,
    };
    Ok(ahead)
}

/// Every entity that existed then, as it was; none when that is not known, or not any more.
pub(super) async fn at(database: &Database, past: Past) -> Result<Option<Then>, StoreError> {
    let mut tx = database.begin_read().await?;
    let (pruned, up_to, wanted) = match past {
        Past::Revision(revision) => (
            "SELECT value FROM meta WHERE key = 'pruned_revision'",
            "SELECT MAX(number) FROM journal WHERE revision <= $1",
            revision,
        ),
        Past::Time(at) => (
            "SELECT value FROM meta WHERE key = 'pruned_at'",
            "SELECT MAX(number) FROM journal WHERE at <= $1",
            at,
        ),
    };
    let pruned: Option<i64> = query(pruned).optional_value(&mut tx).await?;
    let up_to: Option<i64> = query(up_to).bind(int(wanted)).value(&mut tx).await?;
    let last: Option<i64> = query("SELECT value FROM meta WHERE key = 'revision'")
        .optional_value(&mut tx)
        .await?;
    let future = matches!(past, Past::Revision(revision) if revision > number(last.unwrap_or(0)));
    let Some(up_to) = up_to.filter(|_| !future && wanted >= number(pruned.unwrap_or(0))) else {
        return Ok(None);
    };
    let rows: Vec<Row> = query(
        "SELECT revision, at, kind, name, part, cause, after FROM journal WHERE after IS NOT NULL \
         AND number IN (SELECT MAX(number) FROM journal WHERE number <= $1 \
         GROUP BY kind, name, part) ORDER BY number",
    )
    .bind(up_to)
    .all(&mut tx)
    .await?;
    let revision: i64 = query("SELECT MAX(revision) FROM journal WHERE number <= $1")
        .bind(up_to)
        .value(&mut tx)
        .await?;
    let entries: Result<Vec<_>, _> = rows.into_iter().map(Row::entry).collect();
    Ok(Some(Then {
        revision: number(revision),
        entries: entries?,
    }))
}

/// The newest `limit` changes of a container or host.
pub(super) async fn of_name(
    database: &Database,
    name: &str,
    limit: u16,
) -> Result<Log, StoreError> {
    let mut tx = database.begin_read().await?;
    let pruned = query("SELECT value FROM meta WHERE key = 'pruned'").optional_value(&mut tx);
    let pruned: i64 = pruned.await?.unwrap_or(0);
    let sql = "SELECT number FROM journal \
               WHERE name = $1 AND kind IN ('container', 'rule', 'route') \
               ORDER BY number DESC LIMIT $2";
    let numbers: Vec<(i64,)> = query(sql).bind(name).bind(limit).all(&mut tx).await?;
    let Some(&(first,)) = numbers.last() else {
        return Ok(Log::default());
    };
    let sql = "SELECT revision, at, kind, name, part, cause, after FROM journal \
               WHERE name = $1 AND kind IN ('container', 'rule', 'route') AND number >= $2 \
               ORDER BY number";
    let rows: Vec<Row> = query(sql).bind(name).bind(first).all(&mut tx).await?;
    let sql = "SELECT revision, at, kind, name, part, cause, after FROM journal \
               WHERE number IN (SELECT MAX(number) FROM journal \
               WHERE name = $1 AND kind IN ('container', 'rule', 'route') AND number < $2 \
               GROUP BY kind, part) ORDER BY number";
    let before: Vec<Row> = query(sql).bind(name).bind(first).all(&mut tx).await?;
    let entries = |rows: Vec<Row>| rows.into_iter().map(Row::entry).collect::<Result<_, _>>();
    Ok(Log {
        before: entries(before)?,
        entries: entries(rows)?,
        baseline: numbers.iter().filter(|(number,)| *number <= pruned).count(),
    })
}

/// Forgets what is older than `before_ms`, and what is more than `rows_max` rows,
/// down to the baseline.
pub(super) async fn prune(
    database: &Database,
    before_ms: u64,
    rows_max: u64,
) -> Result<(), StoreError> {
    let horizon: Option<i64> = query(
        "SELECT MAX(number) FROM journal WHERE at < $1 OR number <= \
         (SELECT MAX(number) FROM journal) - $2",
    )
    .bind(int(before_ms))
    .bind(int(rows_max))
    .value(database)
    .await?;
    let Some(horizon) = horizon else {
        return Ok(());
    };
    // First that it is so, then the rows: nobody relies on what is half gone.
    let mut tx = database.begin().await?;
    for (key, column) in [
        ("pruned", "SELECT number FROM journal WHERE number = $1"),
        (
            "pruned_revision",
            "SELECT revision FROM journal WHERE number = $1",
        ),
        ("pruned_at", "SELECT at FROM journal WHERE number = $1"),
    ] {
        let value: Option<i64> = query(column).bind(horizon).optional_value(&mut tx).await?;
        query(
            "INSERT INTO meta (key, value) VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET \
             value = CASE WHEN meta.value > excluded.value THEN meta.value \
             ELSE excluded.value END",
        )
        .bind(key)
        .bind(value.unwrap_or(0))
        .run(&mut tx)
        .await?;
    }
    tx.commit().await?;
    // Row by row from the oldest: what stays is looked at once, not before each part again.
    let mut from = 0_i64;
    loop {
        let part = "SELECT MAX(number) FROM (SELECT number FROM journal \
                    WHERE number > $1 AND number <= $2 ORDER BY number LIMIT $3) AS part";
        let part = query(part).bind(from).bind(horizon).bind(PRUNED_AT_ONCE);
        let part: Option<i64> = part.value(database).await?;
        let Some(to) = part else {
            return Ok(());
        };
        query(
            "DELETE FROM journal WHERE number IN (SELECT old.number FROM journal AS old \
             WHERE old.number > $2 AND old.number <= $3 AND (old.after IS NULL \
             OR EXISTS (SELECT 1 FROM journal AS new \
             WHERE new.name = old.name AND new.kind = old.kind AND new.part = old.part \
             AND new.number > old.number AND new.number <= $1)))",
        )
        .bind(horizon)
        .bind(from)
        .bind(to)
        .run(database)
        .await?;
        from = to;
    }
}

impl Row {
    fn entry(self) -> Result<Entry, StoreError> {
        let table = "journal";
        let cause = match &self.cause {
            Some(text) => Some(
                serde_json::from_str(text)
                    .map_err(|e| corrupt(table, &self.name, format!("cause: {e}")))?,
            ),
            None => None,
        };
        Ok(Entry {
            revision: number(self.revision),
            at_ms: number(self.at),
            cause,
            record: self.record()?,
        })
    }

    fn record(self) -> Result<Record, StoreError> {
        let table = "journal";
        let bad = |what: &dyn std::fmt::Display| corrupt(table, &self.name, what.to_string());
        let whole = |text: &str| text.parse::<i64>().map_err(|e| bad(&e));
        Ok(match self.kind.as_str() {
            "container" => {
                let row: Option<ContainerRow> = self.cells()?;
                let entity = row.map(ContainerRow::entity).transpose()?;
                Record::Container(container_id(table, &self.name)?, entity)
            }
            "rule" => {
                let row: Option<RuleRow> = self.cells()?;
                let rule = row.map(RuleRow::entity).transpose()?;
                let port = self.part.parse().map_err(|e| bad(&e))?;
                let id = container_id(table, &self.name)?;
                Record::Rule(id, port, rule.map(|(_, rule)| rule))
            }
            "key" => {
                let row: Option<KeyRow> = self.cells()?;
                Record::Key(whole(&self.name)?, row.map(KeyRow::entity).transpose()?)
            }
            "user" => {
                let row: Option<UserRow> = self.cells()?;
                Record::User(UserId(whole(&self.name)?), row.map(UserRow::entity))
            }
            "route" => {
                let spec = self.cells()?;
                Record::Route(self.name, self.part, spec)
            }
            kind => return Err(bad(&format!("kind {kind:?}"))),
        })
    }

    fn cells<T: serde::de::DeserializeOwned>(&self) -> Result<Option<T>, StoreError> {
        let parse = |text: &String| {
            serde_json::from_str(text)
                .map_err(|error| corrupt("journal", &self.name, format!("cells: {error}")))
        };
        self.after.as_ref().map(parse).transpose()
    }
}

#[cfg(test)]
mod tests {
    use edd_route::Origin;

    use super::*;
    use crate::control::reconcile::{Change, Stamp, What};

    /// A database that is seeded has no earlier row of a container: none may be left out.
    #[test]
    fn a_seed_tells_containers_and_rules_and_an_event_on_a_rule_the_rule() {
        let id = ContainerId::new("a").unwrap();
        let whats = [
            What::ContainerCreated {
                id: id.clone(),
                owner: UserId(1),
                name: "a".into(),
            },
            What::RuleRequested {
                id: id.clone(),
                port: 80,
                target: 8080,
            },
        ];
        let mut state = State::default();
        let mut last = Effects::default();
        for (sequence, what) in (1..).zip(whats) {
            let change = Change {
                stamp: Stamp::unversioned(sequence),
                origin: Origin::Event {
                    subject: "test".into(),
                    sequence,
                    event_id: String::new(),
                    at_ms: 0,
                },
                what,
            };
            last = Effects::default();
            state.apply(&change, 0, &mut last);
        }
        let kinds = |lines: Vec<Line>| lines.iter().map(|line| line.kind).collect::<Vec<_>>();
        let event = Cause {
            subject: "test".into(),
            ..Cause::default()
        };
        assert_eq!(kinds(Line::of(&state, &last, &event)), ["rule"]);
        let seed = Line::of(&state, &state.all(), &Cause::last_good_table());
        assert_eq!(kinds(seed), ["container", "rule"]);
    }
}
