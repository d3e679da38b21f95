//! Reading dead letters, replaying them and removing them.
//!
//! A letter is named by its place, `STREAM:SEQUENCE`. Only what lies on a
//! dead-letter subject is ever shown, replayed or removed.

use std::{
    collections::BTreeMap,
    fmt,
    str::FromStr,
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use bytes::Bytes;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    DLQ_CONSUMER, DLQ_DELIVERIES, DLQ_PAYLOAD_OMITTED, DLQ_PUBLISHED, DLQ_REASON, DLQ_STREAM_SEQ,
    DLQ_SUBJECT, REPLAY_OF, copy_own, insert, rfc3339,
};
use crate::{
    Metrics,
    bus::{AnyBus, Bus as _, Kept, StateError},
    event::Payload,
    stream::takes,
    subject::{Kind, Parsed, parse},
};

/// Most letters of one page.
pub const PAGE_MAX: usize = 1000;

/// The subjects of all dead letters.
pub(crate) const DLQ_SUBJECTS: &str = "*.*.*.dlq";

/// The streams that hold them.
const STREAMS: [&str; 4] = ["AUTH", "COMPUTE", "GATEWAY", "SFS"];
/// Letters looked at for one page; what a filter leaves out counts too.
const LOOKED_AT_MAX: usize = 10_000;
/// For one page; then it ends early and the next goes on from there.
const PAGE_TIMEOUT: Duration = Duration::from_secs(4);
/// For one exchange with the server. Less than the 5 s of the client library, whose error does
/// not tell that nobody heard from others.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// Where a letter lies: `STREAM:SEQUENCE`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct LetterRef {
    /// The stream's name.
    pub stream: String,
    /// The letter's own sequence in it.
    pub sequence: u64,
}

impl fmt::Display for LetterRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.stream, self.sequence)
    }
}

impl FromStr for LetterRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once(':').and_then(|(stream, sequence)| {
            let stream = STREAMS.into_iter().find(|name| *name == stream)?;
            Some((stream, sequence.parse().ok()?))
        });
        match parts {
            Some((stream, sequence)) => Ok(Self {
                stream: stream.to_owned(),
                sequence,
            }),
            None => Err(format!(
                "{text:?} is no dead letter such as COMPUTE:17 (streams: {})",
                STREAMS.join(", ")
            )),
        }
    }
}

impl Serialize for LetterRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Which letters.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Filter {
    /// Of this stream only.
    pub stream: Option<String>,
    /// Originals on subjects of this pattern (`compute.container.*.started`,
    /// `compute.>`).
    pub subject: Option<String>,
    /// With this text in the reason, in any case.
    pub reason: Option<String>,
}

impl Filter {
    fn takes(&self, letter: &Letter) -> bool {
        let subject = self.subject.as_deref();
        let reason = self.reason.as_deref().map(str::to_lowercase);
        subject.is_none_or(|pattern| takes(pattern, &letter.subject))
            && reason.is_none_or(|text| letter.reason.to_lowercase().contains(&text))
    }
}

/// A dead letter.
#[derive(Clone, Debug, Serialize)]
pub struct Letter {
    /// Where it lies.
    pub letter: LetterRef,
    /// The original's subject.
    pub subject: String,
    /// Why nobody could use it.
    pub reason: String,
    /// The durable consumer that gave up.
    pub consumer: String,
    /// After how many deliveries.
    pub deliveries: u64,
    /// The original's sequence in the stream.
    pub sequence: u64,
    /// When the stream took the original, RFC 3339.
    pub published: Option<String>,
    /// When the stream took the letter, RFC 3339.
    pub time: String,
    /// The payload's size, in bytes.
    pub size: usize,
    /// Whether the payload was too large for a letter: it is the original's.
    pub payload_omitted: bool,
    /// What it holds.
    #[serde(skip)]
    pub payload: Bytes,
    #[serde(skip)]
    headers: HeaderMap,
    #[serde(skip)]
    dlq_subject: String,
}

impl Letter {
    /// None: no letter lies there.
    fn read(stream: &str, message: Kept) -> Option<Self> {
        if parse(&message.subject) != Parsed::DeadLetter {
            return None;
        }
        let text = |name: &str| {
            let value = message.headers.get(name)?;
            Some(value.as_str().to_owned())
        };
        let number = |name: &str| text(name).and_then(|value| value.parse().ok());
        Some(Self {
            letter: LetterRef {
                stream: stream.to_owned(),
                sequence: message.sequence,
            },
            subject: text(DLQ_SUBJECT).unwrap_or_default(),
            reason: text(DLQ_REASON).unwrap_or_default(),
            consumer: text(DLQ_CONSUMER).unwrap_or_default(),
            deliveries: number(DLQ_DELIVERIES).unwrap_or_default(),
            sequence: number(DLQ_STREAM_SEQ).unwrap_or_default(),
            published: text(DLQ_PUBLISHED),
            time: rfc3339(message.published),
            size: message.payload.len(),
            payload_omitted: text(DLQ_PAYLOAD_OMITTED).is_some(),
            dlq_subject: message.subject.to_string(),
            payload: message.payload,
            headers: message.headers,
        })
    }

    /// Everything in it, for people: beside the fields `headers`, `message` (null
    /// if the payload does not decode) and `payload_hex`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut json = serde_json::to_value(self).unwrap_or_default();
        let mut headers = BTreeMap::new();
        for (name, values) in self.headers.iter() {
            let values: Vec<_> = values.iter().map(|value| value.as_str()).collect();
            headers.insert(name.to_string(), values);
        }
        let hex: String = self.payload.iter().map(|b| format!("{b:02x}")).collect();
        if let Some(fields) = json.as_object_mut() {
            fields.insert("headers".into(), json!(headers));
            fields.insert("message".into(), json!(self.message()));
            fields.insert("payload_hex".into(), json!(hex));
        }
        json
    }

    /// The message, if the payload decodes.
    #[must_use]
    pub fn message(&self) -> Option<Value> {
        let kind = self.kind()?;
        if self.payload_omitted {
            return None;
        }
        Payload::decode(kind, &self.payload).ok()?.to_json().ok()
    }

    /// What the original was: an event whose letters lie where this one does.
    fn kind(&self) -> Option<Kind> {
        match parse(&self.subject) {
            Parsed::Event(kind, _) if kind.dlq() == self.dlq_subject => Some(kind),
            _ => None,
        }
    }
}

/// Some letters, oldest first within a stream, streams by name.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// The letters.
    pub letters: Vec<Letter>,
    /// Where to go on; none: these were the last.
    pub next: Option<LetterRef>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum LetterError {
    /// JetStream refused or did not answer.
    #[error("NATS: {0}")]
    Nats(String),
    /// It was published again, but stays.
    #[error("published again as {stream}:{sequence}, but the letter cannot be removed: {error}")]
    NotRemoved {
        /// The stream.
        stream: String,
        /// The event's new sequence.
        sequence: u64,
        /// Why.
        error: String,
    },
    /// No letter lies there.
    #[error("no dead letter at {0}")]
    Missing(LetterRef),
    /// Nobody took the event: no stream, or no right to publish.
    #[error(
        "no stream took the event: may this user of NATS publish on {0}? \
         (--nats-url with --nats-nkey or --nats-creds: as another one)"
    )]
    Unheard(String),
    /// No answer: a server that is away, or no right to remove.
    #[error(
        "no answer: may this user of NATS publish on $JS.API.STREAM.MSG.DELETE.{0}? \
         (--nats-url with --nats-nkey or --nats-creds: as another one)"
    )]
    Undeleted(String),
    /// It does not say which event it was.
    #[error("{0} does not name the event that it was: {1:?}")]
    Nameless(LetterRef, String),
    /// The payload was too large for a letter, and the original is gone.
    #[error("the payload of {0} was left in the original, which has expired")]
    Expired(LetterRef),
}

/// The dead letters of all streams.
#[derive(Clone, Debug)]
pub struct Letters {
    bus: AnyBus,
    metrics: Metrics,
}

impl Letters {
    /// Letters as this client sees them; what is removed leaves the gauge of `metrics`.
    #[must_use]
    pub fn new(bus: impl Into<AnyBus>, metrics: Metrics) -> Self {
        Self {
            bus: bus.into(),
            metrics,
        }
    }

    /// A page of at most `limit` letters (1 to [`PAGE_MAX`]) beyond `after`.
    ///
    /// # Errors
    /// When JetStream does not answer.
    pub async fn list(
        &self,
        filter: &Filter,
        after: Option<&LetterRef>,
        limit: usize,
    ) -> Result<Page, LetterError> {
        let begun = Instant::now();
        let limit = limit.clamp(1, PAGE_MAX);
        let mut looked_at = 0;
        let mut letters = Vec::new();
        let wanted = |name: &&str| {
            filter.stream.as_deref().is_none_or(|only| only == *name)
                && after.is_none_or(|after| after.stream.as_str() <= *name)
        };
        for name in STREAMS.into_iter().filter(wanted) {
            let mut last = match after {
                Some(after) if after.stream == name => after.sequence,
                _ => 0,
            };
            loop {
                if letters.len() >= limit
                    || looked_at >= LOOKED_AT_MAX
                    || begun.elapsed() > PAGE_TIMEOUT
                {
                    let next = Some(LetterRef {
                        stream: name.to_owned(),
                        sequence: last,
                    });
                    return Ok(Page { letters, next });
                }
                let from = last.saturating_add(1);
                let next = answer(self.bus.find(name, DLQ_SUBJECTS, from)).await?;
                let Some(message) = next else { break };
                looked_at += 1;
                last = message.sequence;
                let letter = Letter::read(name, message);
                letters.extend(letter.filter(|letter| filter.takes(letter)));
            }
        }
        Ok(Page {
            letters,
            next: None,
        })
    }

    /// One letter.
    ///
    /// # Errors
    /// It is not there, or JetStream does not answer.
    pub async fn get(&self, at: &LetterRef) -> Result<Letter, LetterError> {
        let message = answer(self.bus.get(&at.stream, at.sequence)).await?;
        message
            .and_then(|message| Letter::read(&at.stream, message))
            .ok_or_else(|| LetterError::Missing(at.clone()))
    }

    /// Publishes the event again, payload and own headers unchanged, and then
    /// removes the letter; the event's new sequence. The event keeps its id: a
    /// consumer that has had it finds it stale. If nobody can use it still, it
    /// becomes another letter.
    ///
    /// # Errors
    /// See [`LetterError`]. Except with [`LetterError::NotRemoved`] the letter
    /// stays as it was; replaying again within two minutes makes no second
    /// event.
    pub async fn replay(&self, at: &LetterRef) -> Result<u64, LetterError> {
        let letter = self.get(at).await?;
        if letter.kind().is_none() {
            return Err(LetterError::Nameless(at.clone(), letter.subject));
        }
        let payload = if letter.payload_omitted {
            let original = answer(self.bus.get(&at.stream, letter.sequence)).await?;
            original
                .filter(|original| original.subject.as_str() == letter.subject)
                .ok_or_else(|| LetterError::Expired(at.clone()))?
                .payload
        } else {
            letter.payload.clone()
        };
        let mut headers = HeaderMap::new();
        copy_own(&letter.headers, &mut headers);
        insert(
            &mut headers,
            NATS_MESSAGE_ID.as_ref(),
            &format!("replay:{at}"),
        );
        let original = format!("{}:{}", at.stream, letter.sequence);
        insert(&mut headers, REPLAY_OF, &original);
        let publish = async {
            let sent = self.bus.publish(&letter.subject, headers, payload);
            let stored = sent.await.map_err(|error| StateError(error.to_string()))?;
            stored.await.map_err(|error| StateError(error.to_string()))
        };
        // Who may not publish hears nothing.
        let stored = timeout(ANSWER_TIMEOUT, publish).await;
        let stored = stored.map_err(|_| LetterError::Unheard(letter.subject.clone()))?;
        let stored = stored.map_err(|error| LetterError::Nats(error.to_string()))?;
        if let Err(error) = self.delete(at).await {
            return Err(LetterError::NotRemoved {
                stream: at.stream.clone(),
                sequence: stored.sequence,
                error: error.to_string(),
            });
        }
        Ok(stored.sequence)
    }

    /// Removes a letter for good.
    ///
    /// # Errors
    /// It is not there, cannot be removed, or JetStream does not answer.
    pub async fn discard(&self, at: &LetterRef) -> Result<(), LetterError> {
        // Whatever lies there must be a letter.
        self.get(at).await?;
        self.delete(at).await
    }

    async fn delete(&self, at: &LetterRef) -> Result<(), LetterError> {
        let removed = timeout(ANSWER_TIMEOUT, self.bus.remove(&at.stream, at.sequence)).await;
        let removed = removed.map_err(|_| LetterError::Undeleted(at.stream.clone()))?;
        removed.map_err(|error| LetterError::Nats(error.to_string()))?;
        if let Some(name) = STREAMS.into_iter().find(|name| *name == at.stream) {
            self.metrics.letter_removed(name);
        }
        Ok(())
    }
}

async fn answer<T>(asked: impl Future<Output = Result<T, StateError>>) -> Result<T, LetterError> {
    timeout(ANSWER_TIMEOUT, asked)
        .await
        .map_err(|_| LetterError::Nats("no answer in time".into()))?
        .map_err(|error| LetterError::Nats(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_named_by_stream_and_sequence() {
        let at: LetterRef = "COMPUTE:17".parse().unwrap();
        assert_eq!((at.stream.as_str(), at.sequence), ("COMPUTE", 17));
        assert_eq!(at.to_string(), "COMPUTE:17");
        for text in ["", "COMPUTE", "COMPUTE:", "COMPUTE:-1", "OTHER:1", "17"] {
            assert!(text.parse::<LetterRef>().is_err(), "{text}");
        }
    }
}
