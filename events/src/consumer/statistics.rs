//! What no event carries: how far the durable consumer is behind, how many dead letters the
//! stream holds, and whether it is still the same stream. Read beside the events, which never
//! wait for it. A miss is left to the next time.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::{Consumer, Silence};
use crate::{
    bus::{Bus as _, StateError},
    dead_letter::DLQ_SUBJECTS,
};

/// How often the server is asked.
const INTERVAL: Duration = Duration::from_secs(10);
/// How often it is asked whether others are silent.
const OTHERS_INTERVAL: Duration = Duration::from_secs(3);
/// What an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);
/// Letters that come together are counted together.
const LETTERS_PAUSE: Duration = Duration::from_millis(100);
/// To count the letters nats-server 2.9 looks at each subject of the stream, some microsecond
/// each, and takes no message meanwhile (0.3 s at 300,000). Resting so long for each message
/// leaves it all but a thousandth of its time, up to 600,000 messages.
const REST_PER_MESSAGE: Duration = Duration::from_millis(1);
/// Of more than that: or nobody would learn of what others have removed.
const REST_MAX: Duration = Duration::from_secs(600);

impl Consumer {
    /// Keeps the gauges true. Never ends.
    pub(super) async fn read_statistics(&self) {
        tokio::join!(
            self.follow_pending(),
            self.follow_letters(),
            self.follow_others()
        );
    }

    /// Those who share the durable consumer may be killed with events in their hands, which come
    /// again after the ack wait. Who reads at a binding what was delivered before need not wait.
    async fn follow_others(&self) {
        let mut silence = Silence::default();
        loop {
            sleep(OTHERS_INTERVAL).await;
            let bound_to = self.bound_to.load(Ordering::Relaxed);
            if bound_to == 0
                || !self.is_settled.load(Ordering::Relaxed)
                || !self.breaker.is_closed()
            {
                // What is not acknowledged may well be our own.
                continue;
            }
            let asked = self
                .bus
                .consumer_state(self.spec.stream.name, self.spec.durable);
            if let Some(Some(state)) = self.asked(asked).await
                && silence.look(&state, Instant::now())
            {
                self.others_silent.notify_one();
            }
        }
    }

    async fn follow_pending(&self) {
        let (stream, durable) = (self.spec.stream.name, self.spec.durable);
        loop {
            sleep(INTERVAL).await;
            self.look_at_the_stream().await;
            if let Some(Some(state)) = self.asked(self.bus.consumer_state(stream, durable)).await {
                self.metrics.pending(stream, state.pending);
            }
        }
    }

    /// The server says that a stream is removed to those whose request waits. Whoever had none
    /// there just then, and is given messages of the stream that has taken its place, would take
    /// them for messages of the old one.
    async fn look_at_the_stream(&self) {
        let bound_to = self.bound_to.load(Ordering::Relaxed);
        let asked = self.bus.stream_state(self.spec.stream.name);
        let Some(Some(state)) = self.asked(asked).await else {
            return;
        };
        let is_bound = bound_to != 0 && self.bound_to.load(Ordering::Relaxed) == bound_to;
        if is_bound && state.created != bound_to {
            self.stream_replaced.notify_one();
        }
    }

    /// Counts dead letters when there may be others than before: those that are written here are
    /// in the gauge already, those of others come by as messages, and nothing tells of those that
    /// are removed elsewhere.
    async fn follow_letters(&self) {
        let stream = self.spec.stream.name;
        loop {
            // By then they have come, or it is time anyway.
            let _ = timeout(INTERVAL, self.letters_came.notified()).await;
            sleep(LETTERS_PAUSE).await;
            if let Some(Some(letters)) = self.asked(self.bus.count(stream, DLQ_SUBJECTS)).await {
                self.metrics.dlq_messages(stream, letters);
            }
            if let Some(Some(state)) = self.asked(self.bus.stream_state(stream)).await {
                let kept = state.last_sequence.saturating_sub(state.first_sequence);
                sleep(rest(kept)).await;
            }
        }
    }

    /// None: it does not say.
    async fn asked<T>(&self, question: impl Future<Output = Result<T, StateError>>) -> Option<T> {
        if !self.bus.is_connected() {
            return None;
        }
        let connects = self.bus.connects();
        let answer = tokio::select! {
            answer = timeout(ANSWER_TIMEOUT, question) => answer.ok().and_then(Result::ok),
            () = self.bus.lost(connects) => None,
        };
        if answer.is_none() {
            debug!(stream = self.spec.stream.name, "statistics not read");
        }
        answer
    }
}

/// After counting in a stream of so many messages.
fn rest(messages: u64) -> Duration {
    let messages = u32::try_from(messages).unwrap_or(u32::MAX);
    REST_PER_MESSAGE.saturating_mul(messages).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_larger_the_stream_the_less_often_it_is_looked_through() {
        assert_eq!(rest(0), Duration::ZERO);
        assert_eq!(rest(5_000), Duration::from_secs(5));
        assert_eq!(rest(300_000), Duration::from_secs(300));
        assert_eq!(rest(u64::MAX), REST_MAX);
    }
}
