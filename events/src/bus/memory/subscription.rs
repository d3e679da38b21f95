//! What clients hold: messages of a durable consumer, requests.

use std::sync::Arc;

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};

use super::MemoryBus;
use crate::bus::{
    Bus as _, ConsumerState, Lost, Message, Request, Requests, StateError, Subscription, message,
};

/// Messages of a durable consumer within this process. Dropped, what it was sent
/// and has not acknowledged is delivered again after the ack wait.
#[derive(Debug)]
pub struct MemorySubscription {
    pub(super) bus: MemoryBus,
    pub(super) stream: &'static str,
    pub(super) durable: String,
    pub(super) batch: usize,
    pub(super) connects: u64,
    pub(super) id: u64,
    pub(super) notify: Arc<Notify>,
    pub(super) store: u64,
    /// Whether the durable consumer knows about us.
    pub(super) asked: bool,
}

impl MemorySubscription {
    /// Takes what has arrived; then asks for more when few are on their way.
    fn take(&mut self, ask: bool) -> Result<Option<Message>, Lost> {
        let link = *self.bus.link.state.borrow();
        let is_here = link.connected && link.connects == self.connects;
        let mut state = self.bus.state();
        if is_here {
            if state.store != self.store {
                return Err(Lost::Status(409, "Consumer Deleted".into()));
            }
            if ask {
                let Some(durable) = state
                    .streams
                    .get_mut(self.stream)
                    .and_then(|stream| stream.durables.get_mut(&self.durable))
                else {
                    return Err(Lost::Status(409, "Consumer Deleted".into()));
                };
                if !durable.waiting.contains(&self.id) {
                    if self.asked {
                        return Err(Lost::Status(409, "Consumer Deleted".into()));
                    }
                    durable.waiting.push(self.id);
                    self.asked = true;
                }
                if let Some(buffer) = state.subscriptions.get_mut(&self.id)
                    && buffer.credit <= self.batch / 2
                {
                    buffer.credit += self.batch;
                }
            }
            state.pump(self.stream, &self.durable);
        } else if let Some(buffer) = state.subscriptions.get_mut(&self.id) {
            // The server forgot us with the connection.
            buffer.credit = 0;
        }
        let Some(buffer) = state.subscriptions.get_mut(&self.id) else {
            return Err(Lost::Closed);
        };
        if let Some(delivered) = buffer.messages.pop_front() {
            return Ok(Some(Message(message::From::Memory(delivered))));
        }
        if link.connects != self.connects {
            return Err(Lost::Reconnected);
        }
        Ok(None)
    }

    /// When something may have to be delivered again.
    fn due(&self) -> Option<Instant> {
        let state = self.bus.state();
        let durable = state
            .streams
            .get(self.stream)?
            .durables
            .get(&self.durable)?;
        durable.next_due()
    }
}

impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Result<Message, Lost> {
        let mut link = self.bus.link.state.subscribe();
        loop {
            link.mark_unchanged();
            if let Some(message) = self.take(true)? {
                return Ok(message);
            }
            let due = self.due();
            tokio::select! {
                biased;
                () = self.notify.notified() => {}
                // The sender lives as long as `self`.
                _ = link.changed() => {}
                () = async { sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
            }
        }
    }

    fn try_next(&mut self) -> Result<Option<Message>, Lost> {
        self.take(false)
    }

    async fn end(&mut self) -> Vec<Message> {
        let mut rest = Vec::new();
        while let Ok(Some(message)) = self.take(false) {
            rest.push(message);
        }
        self.leave();
        rest
    }

    async fn state(&mut self) -> Result<ConsumerState, StateError> {
        let state = self.bus.consumer_state(self.stream, &self.durable).await?;
        state.ok_or_else(|| StateError("consumer not found".into()))
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.leave();
    }
}

impl MemorySubscription {
    /// Nothing is delivered here any more.
    fn leave(&self) {
        let mut state = self.bus.state();
        state.subscriptions.remove(&self.id);
        if let Some(durable) = state
            .streams
            .get_mut(self.stream)
            .and_then(|stream| stream.durables.get_mut(&self.durable))
        {
            durable.waiting.retain(|id| *id != self.id);
        }
    }
}

/// Requests within this process.
#[derive(Debug)]
pub struct MemoryRequests {
    pub(super) bus: MemoryBus,
    pub(super) id: u64,
    pub(super) incoming: mpsc::Receiver<Request>,
}

impl Requests for MemoryRequests {
    async fn next(&mut self) -> Option<Request> {
        self.incoming.recv().await
    }
}

impl Drop for MemoryRequests {
    fn drop(&mut self) {
        let mut state = self.bus.state();
        state.responders.retain(|responder| responder.id != self.id);
    }
}
