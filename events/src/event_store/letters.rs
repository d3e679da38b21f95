//! The archive of dead letters.

use async_nats::HeaderMap;
use edd_store::{Database, query};

use super::read::PAGE_MAX;
use crate::{
    bus::Message,
    dead_letter::{
        DLQ_CONSUMER, DLQ_DELIVERIES, DLQ_MSG_ID, DLQ_REASON, DLQ_STREAM_SEQ, DLQ_SUBJECT,
    },
    envelope::{now_ms, to_ms},
};

/// An archived dead letter. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Eq, PartialEq, sqlx::FromRow)]
pub struct ArchivedLetter {
    /// Its place in the archive.
    pub id: i64,
    /// Where the letter lay.
    pub stream: String,
    /// The letter's own sequence there.
    pub sequence: i64,
    /// When the stream took the letter.
    pub published_at: i64,
    /// The original's subject.
    pub subject: String,
    /// The original's sequence.
    pub original_sequence: i64,
    /// The original's message id, if it had one.
    pub message_id: Option<String>,
    /// The durable consumer that gave up.
    pub consumer: String,
    /// After how many deliveries.
    pub deliveries: i64,
    /// Why.
    pub reason: String,
    /// The payload, unchanged.
    pub payload: Vec<u8>,
    /// JSON: name and value of each header.
    pub headers: String,
    /// When it was archived.
    pub created_at: i64,
}

/// Archives a dead letter as a consumer was given it; once, however often.
///
/// # Errors
/// Those of the database.
pub async fn keep_letter(database: &Database, letter: &Message) -> edd_store::Result<()> {
    let Ok(info) = letter.info() else {
        return Ok(());
    };
    let empty = HeaderMap::new();
    let headers = letter.headers.as_ref().unwrap_or(&empty);
    let text = |name: &str| headers.get(name).map(|value| value.as_str());
    let number = |name: &str| text(name).and_then(|value| value.parse::<i64>().ok());
    let all: Vec<(String, &str)> = headers
        .iter()
        .flat_map(|(name, values)| {
            values
                .iter()
                .map(move |value| (name.to_string(), value.as_str()))
        })
        .collect();
    query(
        "INSERT INTO dead_letter_queue (stream, sequence, published_at, subject, \
         original_sequence, message_id, consumer, deliveries, reason, payload, headers, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT DO NOTHING",
    )
    .bind(info.stream)
    .bind(i64::try_from(info.stream_sequence).unwrap_or(i64::MAX))
    .bind(to_ms(info.published))
    .bind(text(DLQ_SUBJECT).unwrap_or_default())
    .bind(number(DLQ_STREAM_SEQ).unwrap_or(0))
    .bind(text(DLQ_MSG_ID))
    .bind(text(DLQ_CONSUMER).unwrap_or_default())
    .bind(number(DLQ_DELIVERIES).unwrap_or(0))
    .bind(text(DLQ_REASON).unwrap_or_default())
    .bind(letter.payload.as_ref())
    .bind(serde_json::json!(all).to_string())
    .bind(now_ms())
    .run(database)
    .await?;
    Ok(())
}

/// Archived letters, oldest first: at most `limit` after the place `after`.
///
/// # Errors
/// Those of the database.
pub async fn letters(
    database: &Database,
    after: i64,
    limit: u32,
) -> edd_store::Result<Vec<ArchivedLetter>> {
    query("SELECT * FROM dead_letter_queue WHERE id > $1 ORDER BY id LIMIT $2")
        .bind(after)
        .bind(i64::from(limit.clamp(1, PAGE_MAX)))
        .all(database)
        .await
}
