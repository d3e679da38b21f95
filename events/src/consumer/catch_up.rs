//! Whether everything is in effect that was in a stream when its consumer was
//! bound to.
//!
//! Only judged here, from what is handled and from how the durable consumer is:
//! when to ask it, and whom to tell, is the session's business. Others may share
//! the durable consumer: then the last event need not come here, and if it does,
//! the others may not be done with theirs.

use crate::bus::{ConsumerState, StreamState};

/// How far a consumer has caught up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CatchUp {
    /// The newest that was there at the first binding since the last time that all
    /// was in effect.
    target: Option<u64>,
    /// What was never delivered at this binding stands in the stream after the
    /// first of these and up to the second ...
    undelivered: (u64, u64),
    /// ... and so many of them were not handled here.
    missing: u64,
    is_through: bool,
    /// Nothing was left to deliver to anybody when the last batch was delivered.
    is_near: bool,
    /// Up to here some were delivered before the binding and are not acknowledged.
    unsettled_to: Option<u64>,
}

impl CatchUp {
    /// At a fresh binding. `settled`: what was delivered before is in effect,
    /// acknowledged or not. `holds`: some of it is here and not handled.
    pub fn bind(
        &mut self,
        consumer: &ConsumerState,
        stream: &StreamState,
        settled: bool,
        holds: bool,
    ) {
        let last = stream.last_sequence;
        // A stream that was made anew starts again at 1.
        self.target = Some(self.target.map_or(last, |target| target.min(last)));
        self.undelivered = (consumer.delivered, last);
        self.missing = consumer.pending;
        self.is_through = self.missing == 0 && !holds;
        self.is_near = false;
        self.unsettled_to = (consumer.ack_pending > 0 && !settled).then_some(consumer.delivered);
    }

    /// A message was handled, at its how manieth delivery; `pending` were not
    /// delivered to anybody then.
    ///
    /// If nobody else has a part of them, these are all, and nothing has to be
    /// asked. It counts as handled too if it is to come again later.
    pub fn handled(&mut self, sequence: u64, deliveries: u64, pending: u64) {
        let (after, to) = self.undelivered;
        if deliveries == 1 && sequence > after && sequence <= to {
            self.missing = self.missing.saturating_sub(1);
        }
        self.is_through |= self.missing == 0;
        self.is_near = pending == 0 || self.target.is_some_and(|target| sequence >= target);
    }

    /// How the durable consumer is, while nothing waits to be handled here.
    ///
    /// What others of its name were given, the last of what was there among it, is
    /// handled when they acknowledge it. What a process that is gone was given
    /// comes again after the ack wait, and is in effect for nobody until then.
    pub fn look(&mut self, consumer: &ConsumerState) {
        let acknowledged = |to| consumer.ack_pending == 0 || consumer.ack_floor >= to;
        let target = self.target.unwrap_or(consumer.delivered);
        let is_delivered = consumer.pending == 0 || consumer.delivered >= target;
        // Above what is delivered, nothing is for this consumer.
        self.is_through |= is_delivered && acknowledged(target.min(consumer.delivered));
        self.unsettled_to = self.unsettled_to.filter(|to| !acknowledged(*to));
        self.is_near = false;
    }

    /// Whether a look is worth its while now rather than later: the end of what was
    /// there was seen here, and others have a part of it.
    #[must_use]
    pub fn is_near(&self) -> bool {
        self.is_near && !self.is_through
    }

    /// Whether everything that was there has been handled, if perhaps not settled.
    pub(super) fn is_through(&self) -> bool {
        self.is_through
    }

    /// Whether everything that was there is in effect.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_through && self.unsettled_to.is_none()
    }

    /// The binding was lost after all was in effect: the next one says anew what
    /// there is.
    pub fn begin_again(&mut self) {
        self.target = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn consumer(pending: u64, ack_pending: u64, ack_floor: u64, delivered: u64) -> ConsumerState {
        ConsumerState {
            pending,
            ack_pending,
            ack_floor,
            delivered,
        }
    }

    fn bound(to: &ConsumerState, last_sequence: u64, settled: bool) -> CatchUp {
        let stream = StreamState {
            created: 1,
            first_sequence: 1,
            last_sequence,
        };
        let mut catch_up = CatchUp::default();
        catch_up.bind(to, &stream, settled, false);
        catch_up
    }

    #[test]
    fn who_is_alone_has_handled_all_with_the_last() {
        let mut one = bound(&consumer(9, 0, 0, 0), 9, true);
        for sequence in 1..=8 {
            one.handled(sequence, 1, 29 - sequence);
        }
        one.handled(8, 2, 20);
        assert!(!one.is_done(), "the ninth is missing");
        one.handled(9, 1, 20);
        assert!(one.is_done(), "what came later is not waited for");
        assert!(bound(&consumer(0, 0, 9, 9), 9, true).is_done());
    }

    #[test]
    fn who_gets_the_last_waits_for_those_who_got_the_others() {
        let mut one = bound(&consumer(9, 0, 0, 0), 9, true);
        one.handled(8, 1, 1);
        assert!(!one.is_near());
        one.handled(9, 1, 0);
        assert!(
            one.is_near() && !one.is_done(),
            "others have 1 to 7 in work"
        );
        one.look(&consumer(0, 2, 5, 9));
        assert!(!one.is_near() && !one.is_done());
        one.look(&consumer(0, 0, 9, 9));
        assert!(one.is_done());
    }

    #[test]
    fn who_did_not_get_the_last_is_through_when_the_others_are() {
        let mut one = bound(&consumer(9, 0, 0, 0), 9, true);
        one.handled(4, 1, 5);
        one.look(&consumer(2, 3, 4, 7));
        assert!(!one.is_done(), "some are with nobody");
        one.look(&consumer(0, 2, 7, 9));
        assert!(!one.is_done(), "others have them in work");
        one.look(&consumer(0, 0, 9, 9));
        assert!(one.is_done());
    }

    #[test]
    fn who_shares_is_not_kept_by_what_comes_later() {
        let mut one = bound(&consumer(9, 0, 0, 0), 9, true);
        for sequence in 10..30 {
            one.handled(sequence, 1, 3);
        }
        assert!(!one.is_done(), "none of the nine was handled here");
        one.look(&consumer(7, 3, 8, 13));
        assert!(!one.is_done());
        one.look(&consumer(7, 3, 10, 13));
        assert!(one.is_done());
    }

    #[test]
    fn the_end_of_the_stream_may_be_for_others() {
        // Its last event is not of our filter.
        let mut one = bound(&consumer(5, 0, 0, 0), 9, true);
        one.look(&consumer(0, 1, 6, 7));
        assert!(!one.is_done());
        one.look(&consumer(0, 1, 7, 12));
        assert!(!one.is_done(), "8 and 9 may be ours by now");
        one.look(&consumer(0, 0, 12, 12));
        assert!(one.is_done());
    }

    #[test]
    fn what_was_given_to_one_who_is_gone_is_waited_for_unless_it_is_in_effect() {
        let dead = consumer(0, 1, 8, 9);
        assert!(bound(&dead, 9, true).is_done());
        let mut one = bound(&dead, 9, false);
        assert!(one.is_through && !one.is_done());
        one.handled(10, 1, 0);
        one.look(&consumer(0, 1, 8, 10));
        assert!(!one.is_done());
        one.look(&consumer(0, 1, 9, 11));
        assert!(one.is_done());
        // With more behind it.
        let mut one = bound(&consumer(2, 1, 8, 9), 11, true);
        one.handled(10, 1, 1);
        one.handled(11, 1, 0);
        assert!(one.is_done(), "nobody waits for its coming again");
    }

    #[test]
    fn what_is_held_from_before_is_handled_first() {
        let stream = StreamState {
            created: 1,
            first_sequence: 1,
            last_sequence: 9,
        };
        let mut one = CatchUp::default();
        one.bind(&consumer(0, 1, 8, 9), &stream, true, true);
        assert!(!one.is_done());
        one.handled(9, 1, 0);
        assert!(one.is_done());
    }

    #[test]
    fn a_shorter_stream_is_caught_up_with_sooner() {
        let mut one = bound(&consumer(9, 0, 0, 0), 9, true);
        let shorter = StreamState {
            created: 2,
            first_sequence: 1,
            last_sequence: 3,
        };
        one.bind(&consumer(3, 0, 0, 0), &shorter, true, false);
        one.handled(2, 1, 9);
        one.look(&consumer(7, 1, 2, 3));
        assert!(!one.is_done());
        one.look(&consumer(7, 2, 3, 5));
        assert!(one.is_done());
    }
}
