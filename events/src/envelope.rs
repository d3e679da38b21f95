//! How a message becomes an event: id, entity, time, source, version, cause.
//!
//! The metadata travels inside the message (`common.EventMetadata`), what caused
//! it in the headers, where tools see it without decoding anything.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::{HeaderMap, HeaderValue};
use aws_lc_rs::digest;
use edd_proto::common;
use rand::RngExt as _;
use uuid::Uuid;

use crate::{
    event::Event,
    outbox::OutboxEntry,
    subject::{EntityId, Kind, subject},
};

/// Header: the request or process that all events of one flow belong to.
pub const CORRELATION_ID: &str = "Edd-Correlation-Id";
/// Header: the id of the event that this one answers.
pub const CAUSATION_ID: &str = "Edd-Causation-Id";
/// Header: W3C trace context.
pub const TRACEPARENT: &str = "traceparent";

/// Longer header values are dropped on the way in and out, in bytes.
const CAUSE_LEN_MAX: usize = 256;

/// What caused an event; copied into headers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Cause {
    /// The request or process that all events of one flow belong to.
    pub correlation_id: Option<String>,
    /// The id of the event that this one answers.
    pub causation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

impl Cause {
    /// The cause of what is done because of an event: the flow it belongs to (its
    /// own id if it names none), the event itself, and a span in its trace.
    #[must_use]
    pub fn of(event: &Event) -> Self {
        let flow = event.correlation_id.as_ref().unwrap_or(&event.event_id);
        Self {
            correlation_id: Some(flow.clone()),
            causation_id: Some(event.event_id.clone()),
            traceparent: event.traceparent.as_deref().and_then(child_trace),
        }
    }

    /// Adds what is known as headers. Values that no header can hold (line
    /// breaks, more than 256 bytes) are left out.
    pub fn write(&self, headers: &mut HeaderMap) {
        for (name, value) in [
            (CORRELATION_ID, &self.correlation_id),
            (CAUSATION_ID, &self.causation_id),
            (TRACEPARENT, &self.traceparent),
        ] {
            if let Some(value) = value
                && value.len() <= CAUSE_LEN_MAX
                && let Ok(value) = value.parse::<HeaderValue>()
            {
                headers.insert(name, value);
            }
        }
    }

    /// Reads the headers of a message; values over 256 bytes are ignored.
    #[must_use]
    pub fn read(headers: Option<&HeaderMap>) -> Self {
        let value = |name: &str| {
            let value = headers?.get(name)?.as_str();
            let fits = (1..=CAUSE_LEN_MAX).contains(&value.len());
            // Not every database can keep a NUL.
            (fits && !value.contains('\0')).then(|| value.to_owned())
        };
        Self {
            correlation_id: value(CORRELATION_ID),
            causation_id: value(CAUSATION_ID),
            traceparent: value(TRACEPARENT),
        }
    }
}

/// Implemented for every event message: its kind, and its metadata.
pub trait EventMessage: prost::Message + Default {
    /// What kind of event this is.
    const KIND: Kind;

    /// Replaces the metadata.
    fn set_metadata(&mut self, metadata: common::EventMetadata);

    /// The metadata, if any came along.
    fn metadata(&self) -> Option<&common::EventMetadata>;
}

/// Seals a message for the outbox: a new UUIDv7 as event id, the entity's id,
/// the time, who says so and the version that orders this fact (0: the order of
/// the stream decides).
///
/// `entity` is the id in the subject; for `gateway.router.refreshed`, which has
/// none, use [`EntityId::router`].
#[must_use]
pub fn seal<M: EventMessage>(
    source: &str,
    entity: &EntityId,
    version: i64,
    message: M,
    cause: &Cause,
) -> OutboxEntry {
    sealed(Uuid::now_v7(), source, entity, version, message, cause)
}

/// Likewise, but the same fact of the same version always gets the same event id (a UUIDv8,
/// RFC 9562, section 5.8): whoever tells it again, after its database was lost, is not heard twice.
/// Without a version it is as [`seal`].
#[must_use]
pub fn seal_fact<M: EventMessage>(
    source: &str,
    entity: &EntityId,
    version: i64,
    message: M,
    cause: &Cause,
) -> OutboxEntry {
    let event_id = match version {
        0 => Uuid::now_v7(),
        _ => fact_id(&subject(M::KIND, entity), version, &message.encode_to_vec()),
    };
    sealed(event_id, source, entity, version, message, cause)
}

fn fact_id(subject: &str, version: i64, message: &[u8]) -> Uuid {
    let mut sum = digest::Context::new(&digest::SHA256);
    sum.update(subject.as_bytes());
    sum.update(&[0]);
    sum.update(&version.to_be_bytes());
    sum.update(message);
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().zip(sum.finish().as_ref()) {
        *to = *from;
    }
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

fn sealed<M: EventMessage>(
    event_id: Uuid,
    source: &str,
    entity: &EntityId,
    version: i64,
    mut message: M,
    cause: &Cause,
) -> OutboxEntry {
    let event_id = event_id.to_string();
    message.set_metadata(common::EventMetadata {
        event_id: event_id.clone(),
        entity_id: entity.to_string(),
        timestamp: Some(to_timestamp(SystemTime::now())),
        source: source.to_owned(),
        version,
    });
    OutboxEntry {
        event_id,
        subject: subject(M::KIND, entity),
        payload: message.encode_to_vec(),
        cause: cause.clone(),
    }
}

/// Now, in milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

/// Milliseconds since 1970; times before are 0.
pub(crate) fn to_ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A W3C trace context with a span of our own in the same trace; none for what
/// is no trace context of version 00.
#[must_use]
pub fn child_trace(traceparent: &str) -> Option<String> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let ["00", trace, span, flags] = parts[..] else {
        return None;
    };
    let hex = |text: &str, len: usize| {
        text.len() == len && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let is_zero = |text: &str| text.bytes().all(|b| b == b'0');
    if !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) || is_zero(trace) || is_zero(span) {
        return None;
    }
    let own = rand::rng().random_range(1..=u64::MAX);
    Some(format!("00-{trace}-{own:016x}-{flags}"))
}

/// A point in time on the wire. Times before 1970 become 1970.
#[must_use]
pub fn to_timestamp(time: SystemTime) -> common::Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    common::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// The other way; `None` for times before 1970 and nanoseconds out of range.
#[must_use]
pub fn from_timestamp(time: &common::Timestamp) -> Option<SystemTime> {
    let seconds = u64::try_from(time.seconds).ok()?;
    let nanos = u32::try_from(time.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000)?;
    UNIX_EPOCH.checked_add(Duration::new(seconds, nanos))
}

#[cfg(test)]
mod tests {
    use edd_proto::auth;
    use prost::Message;

    use super::*;

    #[test]
    fn sealing_fills_the_metadata_and_addresses_the_event() {
        let message = auth::UserCreated {
            user_id: 7,
            ..Default::default()
        };
        let cause = Cause {
            correlation_id: Some("r1".into()),
            ..Cause::default()
        };
        let entry = seal("edd-auth", &EntityId::from(7), 3, message, &cause);
        assert_eq!(entry.subject, "auth.user.7.created");
        assert_eq!(entry.cause, cause);
        let sent = auth::UserCreated::decode(entry.payload.as_slice()).unwrap();
        let metadata = sent.metadata.unwrap();
        assert_eq!(metadata.event_id, entry.event_id);
        assert_eq!(
            Uuid::parse_str(&entry.event_id).unwrap().get_version_num(),
            7
        );
        assert_eq!((metadata.entity_id.as_str(), metadata.version), ("7", 3));
        assert_eq!(metadata.source, "edd-auth");
        let age = from_timestamp(&metadata.timestamp.unwrap())
            .unwrap()
            .elapsed()
            .unwrap();
        assert!(age < Duration::from_secs(60));
    }

    #[test]
    fn a_fact_told_again_is_the_same_event() {
        let id = |user: i64, version, name: &str| {
            let message = auth::UserUpdated {
                user_id: user,
                display_name: name.into(),
                ..Default::default()
            };
            let entity = EntityId::from(user);
            let entry = seal_fact("edd-auth", &entity, version, message, &Cause::default());
            let sent = auth::UserUpdated::decode(entry.payload.as_slice()).unwrap();
            assert_eq!(sent.metadata.unwrap().event_id, entry.event_id);
            entry.event_id
        };
        assert_eq!(id(7, 3, "a"), id(7, 3, "a"));
        for other in [id(8, 3, "a"), id(7, 4, "a"), id(7, 3, "b")] {
            assert_ne!(id(7, 3, "a"), other);
        }
        assert_ne!(
            id(7, 0, "a"),
            id(7, 0, "a"),
            "nobody knows which of them it is"
        );
        let version = Uuid::parse_str(&id(7, 3, "a")).unwrap().get_version_num();
        assert_eq!(version, 8);
    }

    #[test]
    fn causes_survive_headers_and_hostile_ones_are_left_out() {
        let cause = Cause {
            correlation_id: Some("a".into()),
            causation_id: Some("x".repeat(257)),
            traceparent: Some("00-1\r\nNats-Msg-Id: evil".into()),
        };
        let mut headers = HeaderMap::new();
        cause.write(&mut headers);
        let expected = Cause {
            correlation_id: Some("a".into()),
            ..Cause::default()
        };
        assert_eq!(Cause::read(Some(&headers)), expected);
        assert_eq!(Cause::read(None), Cause::default());
    }

    #[test]
    fn a_span_of_our_own_stays_in_the_trace() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let child = child_trace(parent).unwrap();
        assert_eq!(child.len(), parent.len());
        assert_ne!(child, parent);
        assert!(child.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
        assert!(child.ends_with("-01"));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
        ] {
            assert_eq!(child_trace(bad), None, "{bad}");
        }
    }

    #[test]
    fn impossible_times_are_none() {
        for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000)] {
            assert_eq!(from_timestamp(&common::Timestamp { seconds, nanos }), None);
        }
        // Years beyond what the platform's clock can hold must not panic.
        let _ = from_timestamp(&common::Timestamp {
            seconds: i64::MAX,
            nanos: 0,
        });
        let now = SystemTime::now();
        assert_eq!(from_timestamp(&to_timestamp(now)), Some(now));
    }
}
