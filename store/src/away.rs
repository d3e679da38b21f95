//! Whose fault an error is.

use sqlx::Error;
use sqlx::error::UnexpectedNullError;

/// Whether the database is away, busy, full or read-only: the same statement may
/// work later. Anything else is the statement's or the schema's fault.
pub fn is_away(error: &Error) -> bool {
    match error {
        Error::PoolTimedOut
        | Error::PoolClosed
        | Error::WorkerCrashed
        | Error::Io(_)
        | Error::Tls(_) => true,
        Error::Database(refused) => refused.code().is_some_and(|code| {
            if refused
                .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
                .is_some()
            {
                postgres(&code)
            } else {
                sqlite(&code)
            }
        }),
        _ => false,
    }
}

/// Whether it is the fault of values, which were given to the statement or found by it: those of
/// somebody else would not fail, and these always will. Of constraints that may be so or not: a
/// sequence that was set back violates one with every row. Who wants to know tries other values.
pub fn is_about_values(error: &Error) -> bool {
    match error {
        Error::Decode(_) | Error::Encode(_) => true,
        Error::ColumnDecode { source, .. } => !is_of_another_schema(source.as_ref()),
        Error::Database(refused) => refused.code().is_some_and(|code| {
            if refused
                .try_downcast_ref::<sqlx::postgres::PgDatabaseError>()
                .is_some()
            {
                postgres_values(&code)
            } else {
                sqlite_values(&code)
            }
        }),
        _ => false,
    }
}

/// Whether a column is not what it is in our schema, whatever the row.
fn is_of_another_schema(source: &(dyn std::error::Error + 'static)) -> bool {
    // The second has no type of its own.
    source.is::<UnexpectedNullError>() || source.to_string().starts_with("mismatched types")
}

/// Data exceptions and violated constraints. That a value is missing, or is none that a column may
/// have, is said of a schema that is not ours: what events say is checked before it is written.
fn postgres_values(code: &str) -> bool {
    matches!(code.get(..2), Some("22" | "23")) && !matches!(code, "23502" | "23514")
}

/// SQLITE_TOOBIG, _CONSTRAINT, _MISMATCH and their extended codes, without SQLITE_CONSTRAINT_CHECK
/// and _NOTNULL, as above.
fn sqlite_values(code: &str) -> bool {
    code.parse::<u32>()
        .is_ok_and(|code| matches!(code & 0xff, 18..=20) && !matches!(code, 275 | 1299))
}

/// PostgreSQL's classes (documentation, appendix A): 08 connection, 53 resources,
/// 57 operator, 58 system; within 25, 40 and 55 what another try may cure.
fn postgres(code: &str) -> bool {
    matches!(code.get(..2), Some("08" | "53" | "57" | "58"))
        || matches!(code, "25006" | "40001" | "40P01" | "55P03")
}

/// SQLITE_BUSY, _LOCKED, _READONLY, _IOERR, _FULL, _CANTOPEN and their extended
/// codes, whose low byte is the plain one.
fn sqlite(code: &str) -> bool {
    code.parse::<u32>()
        .is_ok_and(|code| matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_both_engines() {
        for code in [
            "08006", "53300", "57P01", "57014", "58030", "25006", "40001",
        ] {
            assert!(postgres(code), "{code}");
        }
        for code in ["23505", "42601", "22P02", "25001", ""] {
            assert!(!postgres(code), "{code}");
        }
        for code in ["5", "13", "14", "1032", "522"] {
            assert!(sqlite(code), "{code}");
        }
        for code in ["1", "19", "2067", ""] {
            assert!(!sqlite(code), "{code}");
        }
        for code in ["18", "19", "2067"] {
            assert!(sqlite_values(code), "{code}");
        }
        // A damaged file, a full disk, no such table.
        for code in ["1", "11", "13", "26", "522", "275", "1299", ""] {
            assert!(!sqlite_values(code), "{code}");
        }
        for code in ["22021", "22P02", "23503", "23505"] {
            assert!(postgres_values(code), "{code}");
        }
        for code in ["23502", "23514", "42703", ""] {
            assert!(!postgres_values(code), "{code}");
        }
    }

    #[test]
    fn what_is_found_is_at_fault_and_a_pool_never() {
        assert!(is_about_values(&Error::Decode("a damaged id".into())));
        assert!(is_about_values(&Error::Encode("too large".into())));
        let world = [
            Error::PoolTimedOut,
            Error::PoolClosed,
            Error::RowNotFound,
            Error::ColumnNotFound("version".into()),
            Error::Protocol("what?".into()),
        ];
        for error in world {
            assert!(!is_about_values(&error), "{error}");
        }
    }
}
