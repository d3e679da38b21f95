//! Dead letters: events that nobody can use, kept where people find them.
//!
//! The payload goes unchanged to `{service}.{entity}.{action}.dlq`, inside the
//! same stream, with headers that say what happened and a message id of its own
//! (the original's would be dropped as a duplicate).

use std::time::Duration;

use async_nats::{
    HeaderMap, HeaderValue,
    header::NATS_MESSAGE_ID,
    jetstream::{
        Context,
        context::{PublishError, PublishErrorKind},
        message::PublishMessage,
    },
};
use tokio::time::timeout;

use crate::{envelope::Cause, subject::Kind};

/// Header: the subject of the original.
pub const DLQ_SUBJECT: &str = "Edd-Dlq-Subject";
/// Header: why, one line.
pub const DLQ_REASON: &str = "Edd-Dlq-Reason";
/// Header: the durable consumer that gave up.
pub const DLQ_CONSUMER: &str = "Edd-Dlq-Consumer";
/// Header: how often it was delivered.
pub const DLQ_DELIVERIES: &str = "Edd-Dlq-Deliveries";
/// Header: the original's sequence in the stream.
pub const DLQ_STREAM_SEQ: &str = "Edd-Dlq-Stream-Seq";
/// Header, present only if the payload and these headers together exceed what
/// the server takes: the payload was left out and is found by its sequence.
pub const DLQ_PAYLOAD_OMITTED: &str = "Edd-Dlq-Payload-Omitted";

/// Longer reasons are cut, in bytes.
const REASON_LEN_MAX: usize = 512;
/// The stream has the dead letter within this, or it is tried again.
const ACK_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known about the original.
#[derive(Clone, Debug)]
pub(crate) struct DeadLetter<'a> {
    pub(crate) kind: Kind,
    pub(crate) message: &'a async_nats::Message,
    pub(crate) stream: &'a str,
    pub(crate) consumer: &'a str,
    pub(crate) sequence: u64,
    pub(crate) deliveries: u64,
    pub(crate) reason: &'a str,
}

impl DeadLetter<'_> {
    /// Publishes it and waits until the stream has it.
    ///
    /// Cancel safety: may or may not be published; publishing again within two
    /// minutes makes no second one.
    pub(crate) async fn publish(&self, js: &Context) -> Result<(), PublishError> {
        let headers = self.headers();
        let message = PublishMessage::build();
        let whole = message
            .clone()
            .payload(self.message.payload.clone())
            .headers(headers.clone());
        match self.send(js, whole).await {
            Err(error) if error.kind() == PublishErrorKind::MaxPayloadExceeded => {
                let mut headers = headers;
                headers.insert(DLQ_PAYLOAD_OMITTED, "true");
                self.send(js, message.headers(headers)).await
            }
            done => done,
        }
    }

    async fn send(&self, js: &Context, message: PublishMessage) -> Result<(), PublishError> {
        let publish = async {
            js.send_publish(self.kind.dlq(), message).await?.await?;
            Ok(())
        };
        timeout(ACK_TIMEOUT, publish)
            .await
            .unwrap_or_else(|_| Err(PublishError::new(PublishErrorKind::TimedOut)))
    }

    fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let id = format!("dlq:{}:{}:{}", self.stream, self.consumer, self.sequence);
        insert(&mut headers, NATS_MESSAGE_ID.as_ref(), &id);
        insert(&mut headers, DLQ_SUBJECT, &self.message.subject);
        insert(&mut headers, DLQ_REASON, &one_line(self.reason));
        insert(&mut headers, DLQ_CONSUMER, self.consumer);
        insert(&mut headers, DLQ_DELIVERIES, &self.deliveries.to_string());
        insert(&mut headers, DLQ_STREAM_SEQ, &self.sequence.to_string());
        Cause::read(self.message.headers.as_ref()).write(&mut headers);
        headers
    }
}

fn insert(headers: &mut HeaderMap, name: &str, value: &str) {
    if let Ok(value) = value.parse::<HeaderValue>() {
        headers.insert(name, value);
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
