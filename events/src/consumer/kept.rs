//! Events at their last delivery, kept from one [`Consumer`](super::Consumer) to the next.
//!
//! A consumer that ends because the world is at fault gives back what it holds; the
//! server delivers that once more, and counts. What it would not deliver again cannot
//! be given back, and is no dead letter either: it waits here, kept alive by progress
//! acknowledgements, for the next consumer of the same durable in this process.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_nats::jetstream::AckKind;
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::{
    ACK_WAIT,
    acks::{ACK_SEND_TIMEOUT, keep_alive},
};
use crate::{backoff::jittered, bus::Message};

/// The events at their last delivery of one durable consumer; clones are the same.
///
/// Bounded by what the server delivers without acknowledgement.
#[derive(Clone, Debug, Default)]
pub struct LastDeliveries(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    is_keeping: bool,
    /// When the stream of `messages` was made.
    stream_created: i64,
    messages: VecDeque<Message>,
    every: Option<Duration>,
}

impl LastDeliveries {
    /// Whether a consumer that ends from now on is followed by another one, and
    /// leaves its events at their last delivery here. Otherwise (and at first) they
    /// become dead letters.
    pub fn keep(&self, is_keeping: bool) {
        self.inner().is_keeping = is_keeping;
    }

    /// Keeps alive what is here. Never ends; what fails is tried again in time.
    pub async fn stay_alive(&self) {
        loop {
            let every = self.inner().every;
            sleep(jittered(every.unwrap_or_else(|| keep_alive(ACK_WAIT)))).await;
            let messages = self.inner().messages.clone();
            for message in &messages {
                let sent = message.ack_with(AckKind::Progress);
                if !matches!(timeout(ACK_SEND_TIMEOUT, sent).await, Ok(Ok(()))) {
                    debug!("an event at its last delivery is not kept alive");
                    break;
                }
            }
        }
    }

    pub(super) fn is_keeping(&self) -> bool {
        self.inner().is_keeping
    }

    /// Leaves one of a stream that was made then; kept alive every so often.
    pub(super) fn push(&self, stream_created: i64, every: Duration, message: Message) {
        let mut inner = self.inner();
        if inner.stream_created != stream_created {
            inner.messages.clear();
            inner.stream_created = stream_created;
        }
        inner.every = Some(every);
        inner.messages.push_back(message);
    }

    /// What is here of the stream that was made then. Of another one there is
    /// nothing left to acknowledge.
    pub(super) fn take(&self, stream_created: i64) -> VecDeque<Message> {
        let mut inner = self.inner();
        let messages = std::mem::take(&mut inner.messages);
        match inner.stream_created == stream_created {
            true => messages,
            false => VecDeque::new(),
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
