//! Messages of a stream, and what is said about them, whichever bus they are on.

use std::{
    error::Error as _,
    fmt,
    future::Future,
    ops::Deref,
    pin::Pin,
    task::{Context, Poll},
    time::SystemTime,
};

use async_nats::{
    Client, Subject,
    jetstream::{
        self, AckKind, ErrorCode,
        context::{PublishAckFuture, PublishError, PublishErrorKind},
        publish::PublishAck,
    },
};
use bytes::Bytes;
use tokio::sync::oneshot;

use super::memory::Delivered;
use crate::request::RequestError;

/// A message that a durable consumer was given.
#[derive(Clone, Debug)]
pub struct Message(pub(super) From);

/// Where it came from.
#[derive(Clone, Debug)]
pub(super) enum From {
    Memory(Delivered),
    Nats(jetstream::Message),
}

/// Where a message stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Info<'a> {
    /// The stream's name.
    pub stream: &'a str,
    /// The sequence in it, from 1.
    pub stream_sequence: u64,
    /// The how manieth delivery this is, from 1.
    pub delivered: u64,
    /// Messages not yet delivered to the consumer at that time.
    pub pending: u64,
    /// When the stream took it.
    pub published: SystemTime,
}

/// A message that is none of a stream.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct InfoError(String);

impl Message {
    /// Where it stands.
    ///
    /// # Errors
    /// It is no message of a stream.
    pub fn info(&self) -> Result<Info<'_>, InfoError> {
        match &self.0 {
            From::Memory(message) => Ok(message.info()),
            From::Nats(message) => {
                let info = message
                    .info()
                    .map_err(|error| InfoError(error.to_string()))?;
                Ok(Info {
                    stream: info.stream,
                    stream_sequence: info.stream_sequence,
                    delivered: u64::try_from(info.delivered).unwrap_or(0),
                    pending: info.pending,
                    published: info.published.into(),
                })
            }
        }
    }

    /// Tells the server what became of this delivery. Nothing says whether it
    /// heard it.
    ///
    /// # Errors
    /// It could not be sent.
    pub async fn ack_with(&self, kind: AckKind) -> Result<(), async_nats::Error> {
        match &self.0 {
            From::Memory(message) => message.ack_with(kind),
            From::Nats(message) => message.ack_with(kind).await,
        }
    }
}

impl Deref for Message {
    type Target = async_nats::Message;

    fn deref(&self) -> &Self::Target {
        match &self.0 {
            From::Memory(message) => &message.message,
            From::Nats(message) => &message.message,
        }
    }
}

/// The stream has it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stored {
    /// The sequence it has in the stream.
    pub sequence: u64,
    /// The stream had it already, by its message id.
    pub duplicate: bool,
}

/// The stream's word on a message that was sent: a future that may never be
/// ready. Dropped, nothing is taken back.
#[must_use = "a message is stored when the stream says so"]
pub struct Acknowledgement(Word);

enum Word {
    Memory(Option<Result<Stored, PublishError>>),
    Nats(Pin<Box<dyn Future<Output = Result<PublishAck, PublishError>> + Send>>),
}

impl Acknowledgement {
    /// None: it will never come.
    pub(super) fn memory(word: Option<Result<Stored, PublishError>>) -> Self {
        Self(Word::Memory(word))
    }

    pub(super) fn nats(future: PublishAckFuture) -> Self {
        Self(Word::Nats(future.into_future()))
    }
}

impl Future for Acknowledgement {
    type Output = Result<Stored, PublishError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Word::Memory(word) => word.take().map_or(Poll::Pending, Poll::Ready),
            Word::Nats(future) => {
                let polled = future.as_mut().poll(context).map_err(too_large);
                polled.map_ok(|ack| Stored {
                    sequence: ack.sequence,
                    duplicate: ack.duplicate,
                })
            }
        }
    }
}

/// More than the stream takes is the same as more than the server takes.
fn too_large(error: PublishError) -> PublishError {
    let by_stream = error
        .source()
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
        .is_some_and(|error| error.error_code() == ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM);
    if by_stream {
        PublishError::with_source(PublishErrorKind::MaxPayloadExceeded, error)
    } else {
        error
    }
}

impl fmt::Debug for Acknowledgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acknowledgement")
    }
}

/// A request that waits for its answer.
#[derive(Debug)]
pub struct Request {
    /// What was asked.
    pub payload: Bytes,
    pub(super) reply: Reply,
}

#[derive(Debug)]
pub(super) enum Reply {
    Memory(oneshot::Sender<Bytes>),
    Nats(Client, Subject),
}

impl Request {
    /// Answers it. Whoever asked may be gone.
    ///
    /// # Errors
    /// The answer cannot be sent.
    pub async fn respond(self, answer: Bytes) -> Result<(), RequestError> {
        match self.reply {
            Reply::Memory(asker) => {
                // Gone: nobody waits for it.
                let _ = asker.send(answer);
                Ok(())
            }
            Reply::Nats(client, reply) => client
                .publish(reply, answer)
                .await
                .map_err(|error| RequestError::Send(error.to_string())),
        }
    }
}
