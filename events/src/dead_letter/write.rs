//! Making dead letters: one for each original and consumer, whoever gives up.

use std::time::{Duration, SystemTime};

use async_nats::{
    HeaderMap,
    header::NATS_MESSAGE_ID,
    jetstream::context::{PublishError, PublishErrorKind},
};
use bytes::Bytes;
use tokio::time::timeout;

use super::{
    DLQ_CONSUMER, DLQ_DELIVERIES, DLQ_MSG_ID, DLQ_PAYLOAD_OMITTED, DLQ_PUBLISHED, DLQ_REASON,
    DLQ_STREAM_SEQ, DLQ_SUBJECT, DLQ_TIME, copy_own, insert, rfc3339,
};
use crate::{
    bus::{AnyBus, Bus as _, StateError},
    envelope::Cause,
    stream::DUPLICATE_WINDOW,
    subject::Kind,
};

/// Longer reasons are cut, in bytes.
const REASON_LEN_MAX: usize = 512;
/// The stream has the dead letter within this, or it is tried again.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);
/// Letters of one subject that are looked at for an earlier one of the same
/// original. With more, only the server's duplicate window prevents a second.
const LOOKS_MAX: usize = 256;
/// All of these looks.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// It may or may not have been stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("looking for an earlier one: {0}")]
    Look(#[from] StateError),
    #[error(transparent)]
    Publish(#[from] PublishError),
    #[error("looking for an earlier one: no answer in time")]
    TimedOut,
}

/// What is known about the original.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter<'a> {
    pub(crate) kind: Kind,
    pub(crate) subject: &'a str,
    pub(crate) headers: Option<&'a HeaderMap>,
    pub(crate) payload: &'a Bytes,
    pub(crate) stream: &'a str,
    pub(crate) consumer: &'a str,
    pub(crate) sequence: u64,
    pub(crate) published_at: SystemTime,
    pub(crate) deliveries: u64,
    pub(crate) reason: &'a str,
}

impl DeadLetter<'_> {
    /// As [`DeadLetter::publish_if_new`], by the consumer that handled the
    /// original itself.
    pub(crate) async fn publish(&self, bus: &AnyBus) -> Result<bool, WriteError> {
        // Delivered once, nobody else can have given up on it. Within the
        // window the message id is enough.
        let age = self.published_at.elapsed().unwrap_or_default();
        if self.deliveries > 1 && age > DUPLICATE_WINDOW {
            return self.publish_if_new(bus).await;
        }
        self.write(bus).await
    }

    /// Publishes it and waits until the stream has it; false: it had it already.
    ///
    /// Cancel safety: may or may not be published; publishing again makes no
    /// second one.
    pub(crate) async fn publish_if_new(&self, bus: &AnyBus) -> Result<bool, WriteError> {
        if self.exists(bus).await? {
            return Ok(false);
        }
        self.write(bus).await
    }

    async fn write(&self, bus: &AnyBus) -> Result<bool, WriteError> {
        let whole = self.send(bus, self.headers(true), self.payload.clone());
        match whole.await {
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {}
            done => return Ok(done?),
        }
        let mut headers = self.headers(true);
        headers.insert(DLQ_PAYLOAD_OMITTED, "true");
        match self.send(bus, headers, Bytes::new()).await {
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {}
            done => return Ok(done?),
        }
        let mut headers = self.headers(false);
        headers.insert(DLQ_PAYLOAD_OMITTED, "true");
        Ok(self.send(bus, headers, Bytes::new()).await?)
    }

    /// Whether the stream holds the letter of this original by this consumer:
    /// longer than the server remembers message ids.
    async fn exists(&self, bus: &AnyBus) -> Result<bool, WriteError> {
        let look = async {
            let sequence = self.sequence.to_string();
            let mut from = self.sequence.saturating_add(1);
            for _ in 0..LOOKS_MAX {
                let next = bus.find(self.stream, self.kind.dlq(), from).await?;
                let Some(found) = next else { break };
                let is = |name: &str, wanted: &str| {
                    found
                        .headers
                        .get(name)
                        .is_some_and(|value| value.as_str() == wanted)
                };
                if is(DLQ_STREAM_SEQ, &sequence) && is(DLQ_CONSUMER, self.consumer) {
                    return Ok(true);
                }
                from = found.sequence.saturating_add(1);
            }
            Ok(false)
        };
        timeout(LOOK_TIMEOUT, look)
            .await
            .unwrap_or(Err(WriteError::TimedOut))
    }

    async fn send(
        &self,
        bus: &AnyBus,
        headers: HeaderMap,
        payload: Bytes,
    ) -> Result<bool, PublishError> {
        let publish = async {
            let sent = bus.publish(self.kind.dlq(), headers, payload).await?;
            Ok(!sent.await?.duplicate)
        };
        timeout(ACK_TIMEOUT, publish)
            .await
            .unwrap_or_else(|_| Err(PublishError::new(PublishErrorKind::TimedOut)))
    }

    fn headers(&self, with_own: bool) -> HeaderMap {
        let mut headers = HeaderMap::new();
        match self.headers {
            Some(own) if with_own => copy_own(own, &mut headers),
            own => Cause::read(own).write(&mut headers),
        }
        let id = format!("dlq:{}:{}:{}", self.stream, self.consumer, self.sequence);
        insert(&mut headers, NATS_MESSAGE_ID.as_ref(), &id);
        insert(&mut headers, DLQ_SUBJECT, self.subject);
        insert(&mut headers, DLQ_REASON, &one_line(self.reason));
        insert(&mut headers, DLQ_CONSUMER, self.consumer);
        insert(&mut headers, DLQ_DELIVERIES, &self.deliveries.to_string());
        insert(&mut headers, DLQ_STREAM_SEQ, &self.sequence.to_string());
        insert(&mut headers, DLQ_PUBLISHED, &rfc3339(self.published_at));
        insert(&mut headers, DLQ_TIME, &rfc3339(SystemTime::now()));
        if let Some(id) = self.headers.and_then(|own| own.get(NATS_MESSAGE_ID)) {
            insert(&mut headers, DLQ_MSG_ID, &one_line(id.as_str()));
        }
        headers
    }
}

/// The reason quotes what others sent: no line breaks, no control characters,
/// bounded.
fn one_line(reason: &str) -> String {
    let mut line = String::with_capacity(reason.len().min(REASON_LEN_MAX));
    for c in reason.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > REASON_LEN_MAX {
            break;
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_become_one_bounded_line() {
        assert_eq!(one_line("a\r\nNats-Msg-Id: b"), "a  Nats-Msg-Id: b");
        assert_eq!(one_line(&"ä".repeat(1000)).len(), REASON_LEN_MAX);
    }
}
