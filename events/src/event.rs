//! Events as they come in: decoded, checked, with their place in the stream.
//!
//! Checked here is what holds for every event: the size, the encoding, the ids,
//! the version. Ports, addresses and the grammar of container names are the
//! handler's business. Hostile bytes never panic.

use std::time::SystemTime;

use async_nats::{HeaderMap, header::NATS_MESSAGE_ID};
use edd_proto::{auth, common, compute, gateway, sfs};
use prost::Message as _;

use crate::{
    envelope::{Cause, EventMessage, from_timestamp},
    subject::{EntityId, Kind, Parsed, parse},
};

/// Larger payloads are bad events and never decoded, in bytes.
pub const PAYLOAD_LEN_MAX: usize = 1024 * 1024;
/// Longer event ids are bad events, in bytes.
const EVENT_ID_LEN_MAX: usize = 128;

/// An event, decoded and checked.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: Kind,
    /// To whom: the id of the subject, equal to the payload's.
    pub entity: EntityId,
    /// The publisher's id of this event, the same over redeliveries: else
    /// `Nats-Msg-Id`, else `STREAM:SEQUENCE`.
    pub event_id: String,
    /// Orders this fact; 0: the order of the stream decides.
    pub version: i64,
    /// Who said so.
    pub source: String,
    /// When it happened, if the publisher said a possible time.
    pub occurred_at: Option<SystemTime>,
    /// The message.
    pub payload: Payload,
    /// The flow it belongs to.
    pub correlation_id: Option<String>,
    /// The event that caused it.
    pub causation_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// Where an event stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Position {
    /// The stream's name.
    pub stream: String,
    /// The sequence in it, from 1.
    pub sequence: u64,
    /// When the stream took it.
    pub published_at: SystemTime,
}

/// An event handed over for the `deliveries`th time, from 1.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event.
    pub event: Event,
    /// Where it stands.
    pub position: Position,
    /// 1 at first; 0: read besides, not delivered.
    pub deliveries: u64,
}

/// Why nobody can use an event.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadEvent {
    /// No such Protobuf message.
    #[error("payload does not decode: {0}")]
    Decode(String),
    /// The event id is longer than 128 bytes.
    #[error("event id of {0} bytes")]
    EventId(usize),
    /// The subject's id is no id.
    #[error("subject: {0}")]
    Id(#[from] crate::subject::IdError),
    /// The payload speaks of something else than the subject.
    #[error("subject says id {subject:?}, payload {payload:?}")]
    IdMismatch {
        /// The subject's id.
        subject: String,
        /// The payload's.
        payload: String,
    },
    /// Its source has not signed it, though it signs its events.
    #[error(transparent)]
    Signature(#[from] crate::signature::SignatureError),
    /// A text with a NUL in it, which not every database can keep.
    #[error("a text has a NUL in it")]
    Nul,
    /// More than [`PAYLOAD_LEN_MAX`].
    #[error("payload of {0} bytes")]
    Size(usize),
    /// A user id below 1.
    #[error("user id {0}")]
    UserId(i64),
    /// A negative version.
    #[error("version {0}")]
    Version(i64),
}

/// What came of a message.
#[derive(Clone, Debug)]
pub enum Decoded {
    /// A bad event: to the dead letters at once.
    Bad(Kind, BadEvent),
    /// A dead letter: to be acknowledged and ignored.
    DeadLetter,
    /// A good event.
    Event(Box<Event>),
    /// A subject that this version does not know: acknowledged and counted.
    Unknown,
}

/// Decodes and checks one message of a stream.
#[must_use]
pub fn decode(
    subject: &str,
    payload: &[u8],
    headers: Option<&HeaderMap>,
    position: &Position,
) -> Decoded {
    let (kind, id) = match parse(subject) {
        Parsed::DeadLetter => return Decoded::DeadLetter,
        Parsed::Event(kind, id) => (kind, id),
        Parsed::Unknown => return Decoded::Unknown,
    };
    match decode_kind(kind, id, payload, headers, position) {
        Ok(event) => Decoded::Event(Box::new(event)),
        Err(bad) => Decoded::Bad(kind, bad),
    }
}

fn decode_kind(
    kind: Kind,
    id: &str,
    payload: &[u8],
    headers: Option<&HeaderMap>,
    position: &Position,
) -> Result<Event, BadEvent> {
    if payload.len() > PAYLOAD_LEN_MAX {
        return Err(BadEvent::Size(payload.len()));
    }
    let entity = if kind.has_id() {
        EntityId::try_from(id)?
    } else {
        EntityId::router()
    };
    let has_zero = payload.contains(&0);
    let payload =
        Payload::decode(kind, payload).map_err(|error| BadEvent::Decode(error.to_string()))?;
    if has_zero && holds_nul(&payload) {
        return Err(BadEvent::Nul);
    }
    if let Some(named) = payload.entity()
        && named != entity.as_str()
    {
        return Err(BadEvent::IdMismatch {
            subject: entity.to_string(),
            payload: named,
        });
    }
    if let Some(user_id) = payload.user_ids().into_iter().flatten().find(|id| *id < 1) {
        return Err(BadEvent::UserId(user_id));
    }
    let metadata = payload.metadata().cloned().unwrap_or_default();
    if metadata.version < 0 {
        return Err(BadEvent::Version(metadata.version));
    }
    let cause = Cause::read(headers);
    Ok(Event {
        kind,
        entity,
        event_id: event_id(&metadata, headers, position)?,
        version: metadata.version,
        source: metadata.source,
        occurred_at: metadata.timestamp.as_ref().and_then(from_timestamp),
        payload,
        correlation_id: cause.correlation_id,
        causation_id: cause.causation_id,
        traceparent: cause.traceparent,
    })
}

/// Whether one of its texts has a NUL in it: read off its printed form, in which a
/// backslash only stands at the beginning of an escape.
fn holds_nul(payload: &Payload) -> bool {
    let printed = format!("{payload:?}");
    let mut chars = printed.chars();
    while let Some(c) = chars.next() {
        if c == '\\' && chars.next() == Some('0') {
            return true;
        }
    }
    false
}

fn event_id(
    metadata: &common::EventMetadata,
    headers: Option<&HeaderMap>,
    position: &Position,
) -> Result<String, BadEvent> {
    let header = || headers?.get(NATS_MESSAGE_ID).map(|id| id.as_str());
    let id = [Some(metadata.event_id.as_str()), header()]
        .into_iter()
        .flatten()
        .find(|id| !id.is_empty());
    match id {
        Some(id) if id.len() > EVENT_ID_LEN_MAX => Err(BadEvent::EventId(id.len())),
        Some(id) if id.contains('\0') => Err(BadEvent::Nul),
        Some(id) => Ok(id.to_owned()),
        None => Ok(format!("{}:{}", position.stream, position.sequence)),
    }
}

macro_rules! payloads {
    ($($kind:ident in $package:ident: id [$($id:ident)?] user [$($user:ident)?];)*) => {
        /// The message of an event, one variant per [`Kind`].
        #[derive(Clone, Debug, PartialEq)]
        pub enum Payload {
            $(#[doc = concat!("The message of [`Kind::", stringify!($kind), "`].")]
            $kind($package::$kind),)*
        }

        impl Payload {
            /// Decodes the message of `kind`.
            ///
            /// # Errors
            /// When the bytes are no such message.
            pub fn decode(kind: Kind, bytes: &[u8]) -> Result<Self, prost::DecodeError> {
                Ok(match kind {
                    $(Kind::$kind => Self::$kind($package::$kind::decode(bytes)?),)*
                })
            }

            /// The message as JSON, for people.
            ///
            /// # Errors
            /// Numbers that JSON does not know; no message has such.
            pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
                match self {
                    $(Self::$kind(message) => serde_json::to_value(message),)*
                }
            }

            /// The metadata, if any came along.
            #[must_use]
            pub fn metadata(&self) -> Option<&common::EventMetadata> {
                match self {
                    $(Self::$kind(message) => message.metadata.as_ref(),)*
                }
            }

            /// Encodes the message.
            #[must_use]
            pub fn encode_to_vec(&self) -> Vec<u8> {
                match self {
                    $(Self::$kind(message) => message.encode_to_vec(),)*
                }
            }

            /// The id that the message itself gives to its entity.
            #[allow(unused_variables, reason = "one message has no id")]
            fn entity(&self) -> Option<String> {
                match self {
                    $(Self::$kind(message) => [$(message.$id.to_string())?].into_iter().next(),)*
                }
            }

            /// The user ids in the message.
            #[allow(unused_variables, reason = "some messages name no user")]
            fn user_ids(&self) -> [Option<i64>; 1] {
                match self {
                    $(Self::$kind(message) => [[$(message.$user)?].into_iter().next()],)*
                }
            }
        }

        $(impl EventMessage for $package::$kind {
            const KIND: Kind = Kind::$kind;

            fn set_metadata(&mut self, metadata: common::EventMetadata) {
                self.metadata = Some(metadata);
            }

            fn metadata(&self) -> Option<&common::EventMetadata> {
                self.metadata.as_ref()
            }
        })*
    };
}

payloads! {
    UserCreated in auth: id [user_id] user [user_id];
    UserDeleted in auth: id [user_id] user [user_id];
    UserUpdated in auth: id [user_id] user [user_id];
    SessionCreated in auth: id [session_id] user [user_id];
    SessionInvalidated in auth: id [session_id] user [user_id];
    ContainerCreated in compute: id [container_id] user [user_id];
    ContainerStarted in compute: id [container_id] user [];
    ContainerStopped in compute: id [container_id] user [];
    ContainerDeleted in compute: id [container_id] user [user_id];
    ContainerSshToggled in compute: id [container_id] user [];
    ContainerHttpsToggled in compute: id [container_id] user [];
    SshKeyCreated in compute: id [key_id] user [user_id];
    SshKeyDeleted in compute: id [key_id] user [user_id];
    IngressRuleRequested in compute: id [container_id] user [];
    IngressRuleDeleteRequested in compute: id [container_id] user [];
    UserCached in compute: id [user_id] user [user_id];
    UserPurged in compute: id [user_id] user [user_id];
    IngressRuleCreated in gateway: id [container_id] user [];
    IngressRuleDeleted in gateway: id [container_id] user [];
    RouteRegistered in gateway: id [route_id] user [];
    RouteUnregistered in gateway: id [route_id] user [];
    RouterRefreshed in gateway: id [] user [];
    NamespaceCreated in sfs: id [namespace_id] user [owner_id];
    NamespaceDeleted in sfs: id [namespace_id] user [owner_id];
    NamespaceVisibilityChanged in sfs: id [namespace_id] user [];
    FileUploaded in sfs: id [namespace_id] user [uploader_id];
    FileDeleted in sfs: id [namespace_id] user [deleter_id];
}
