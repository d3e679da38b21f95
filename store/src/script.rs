//! Statements that go together.

use crate::database::{Engine, Inner, Transaction};
use crate::query::{Query, query_dynamic};

/// A script with more values than these is not kept prepared: it will not come again.
const KEPT_MAX: usize = 64;

/// Statements of one transaction, one after the other; numbers are all that is read of their rows.
///
/// SQLite runs in a thread of its own, and each statement costs a way there and back, which on a
/// busy machine is most of its time: here all of them go at once. PostgreSQL gets one by one.
#[derive(Debug, Default)]
#[must_use = "a script does nothing until it runs"]
pub struct Script(Vec<Query>);

impl Script {
    /// The next statement. Its parameters are its own.
    pub fn push(&mut self, statement: Query) {
        self.0.push(statement);
    }

    /// Runs all; the first column, a number, of all the rows that they have.
    ///
    /// # Errors
    /// Those of the first statement that fails; what comes after it does not run.
    pub async fn run(self, tx: &mut Transaction) -> sqlx::Result<Vec<i64>> {
        match tx.engine() {
            Engine::Postgres => {
                let mut numbers = Vec::new();
                for statement in self.0 {
                    numbers.extend(statement.values::<i64>(&mut *tx).await?);
                }
                Ok(numbers)
            }
            Engine::Sqlite if self.0.is_empty() => Ok(Vec::new()),
            Engine::Sqlite => self.joined(None).values(tx).await,
        }
    }

    /// Runs all, and makes it all so; the numbers as of [`Script::run`].
    ///
    /// # Errors
    /// As [`Script::run`] and [`Transaction::commit`].
    pub async fn commit(self, mut tx: Transaction) -> sqlx::Result<Vec<i64>> {
        if let Transaction(Inner::Sqlite(mut turn)) = tx {
            let numbers = self.joined(Some("COMMIT")).values(&mut turn).await?;
            turn.committed();
            return Ok(numbers);
        }
        let numbers = self.run(&mut tx).await?;
        tx.commit().await?;
        Ok(numbers)
    }

    /// All as one statement, and `last`.
    fn joined(self, last: Option<&str>) -> Query {
        let (mut text, mut all) = (String::new(), Vec::new());
        for statement in self.0 {
            let (sql, values) = statement.parts();
            renumber(sql.as_str(), all.len(), &mut text);
            text.push_str("; ");
            all.extend(values);
        }
        text.push_str(last.unwrap_or_default());
        match all.len() <= KEPT_MAX {
            true => Query::kept(text).with(all),
            false => query_dynamic(text).with(all),
        }
    }
}

/// Writes `sql` with `before` added to the number of each parameter `$1`, `$2`, …
fn renumber(sql: &str, before: usize, text: &mut String) {
    let mut parts = sql.split('$');
    text.push_str(parts.next().unwrap_or_default());
    for part in parts {
        text.push('$');
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        let (number, rest) = part.split_at(digits);
        match number.parse::<usize>() {
            Ok(number) => text.push_str(&(number + before).to_string()),
            Err(_) => text.push_str(number),
        }
        text.push_str(rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_numbered_on() {
        let mut text = String::new();
        renumber("SELECT $2, $10, j ->> '$.x', $1", 3, &mut text);
        assert_eq!(text, "SELECT $5, $13, j ->> '$.x', $4");
    }
}
