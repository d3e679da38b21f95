//! Many rows in one statement: as a JSON array of arrays, the same few statements
//! whatever their number.

use serde_json::Value as Json;

use crate::database::Engine;
use crate::query::Query;

/// Rows for one statement.
///
/// Columns are read with `CAST(value ->> N AS BIGINT)` and the like; a plain
/// `value ->> N` is text. Within JSON there are no bytes: they go as hex.
#[derive(Clone, Debug, Default)]
pub struct Rows(Vec<Json>);

impl Rows {
    /// Adds a row: a JSON array, or a single value.
    pub fn push(&mut self, row: Json) {
        self.0.push(row);
    }

    /// The same rows, at most so many together, for a statement each.
    pub fn parts(self, most: usize) -> impl Iterator<Item = Self> {
        let mut rows = self.0.into_iter();
        std::iter::from_fn(move || {
            let part: Vec<_> = rows.by_ref().take(most.max(1)).collect();
            (!part.is_empty()).then_some(Self(part))
        })
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A statement whose `{rows}` is a table with the one column `value`, and whose
    /// `$1` is taken by it. Never a text from outside: values are in the rows.
    pub fn query(self, engine: Engine, sql: &str) -> Query {
        let rows = match engine {
            Engine::Postgres => "json_array_elements(CAST($1 AS json)) AS rows (value)",
            Engine::Sqlite => "json_each($1) AS rows",
        };
        Query::kept(sql.replace("{rows}", rows)).bind(Json::Array(self.0).to_string())
    }
}

impl FromIterator<Json> for Rows {
    fn from_iter<I: IntoIterator<Item = Json>>(rows: I) -> Self {
        Self(rows.into_iter().collect())
    }
}
