//! Whether everything is in effect that was in a stream when its consumer was
//! bound to.
//!
//! Only judged here, from what is handled and from how the durable consumer is:
//! when to ask it, and whom to tell, is the session's business. Others may share
//! the durable consumer: then the last event need not come here, and if it does,
//! the others may not be done with theirs.

use std::time::Duration;

use tokio::time::Instant;

use crate::bus::{ConsumerState, StreamState};

/// Whoever lives acknowledges something within this. Who was killed never does, and what it was
/// given comes again after the ack wait only.
const QUIET_MAX: Duration = Duration::from_secs(2);

/// How far a consumer has caught up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct CatchUp {
    stream_created: i64,
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
    /// All that is to be in effect was delivered before the binding, and is.
    is_covered: bool,
    /// Since when nothing is missing but acknowledgements, none of which comes, above what is.
    quiet: Option<(Instant, u64)>,
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
        // Sequences of another stream mean nothing here.
        let is_same = self.stream_created == stream.created;
        let target = self
            .target
            .filter(|_| is_same)
            .map_or(last, |target| target.min(last));
        self.stream_created = stream.created;
        self.target = Some(target);
        self.undelivered = (consumer.delivered, last);
        self.missing = consumer.pending;
        self.is_covered = settled && target <= consumer.delivered;
        self.quiet = None;
        self.is_through = !holds && self.has_all();
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
        self.is_through |= self.has_all();
        self.is_near = pending == 0 || self.target.is_some_and(|target| sequence >= target);
    }

    /// Whether nothing is missing but what may wait here.
    fn has_all(&self) -> bool {
        self.missing == 0 || self.is_covered
    }

    /// How the durable consumer is `now`, while nothing waits to be handled here.
    ///
    /// What others of its name were given, the last of what was there among it, is
    /// handled when they acknowledge it. What a process that is gone was given
    /// comes again after the ack wait, and is in effect for nobody until then.
    pub fn look(&mut self, consumer: &ConsumerState, now: Instant) {
        let acknowledged = |to| consumer.ack_pending == 0 || consumer.ack_floor >= to;
        let target = self.target.unwrap_or(consumer.delivered);
        let is_delivered = consumer.pending == 0 || consumer.delivered >= target;
        // Above what is delivered, nothing is for this consumer.
        self.is_through |= is_delivered && acknowledged(target.min(consumer.delivered));
        self.unsettled_to = self.unsettled_to.filter(|to| !acknowledged(*to));
        self.is_near = false;
        let waits = is_delivered && !self.is_done();
        let before = self.quiet.filter(|(_, floor)| *floor == consumer.ack_floor);
        self.quiet = waits.then(|| before.unwrap_or((now, consumer.ack_floor)));
    }

    /// Whether those who were given the rest seem to be gone: only a fresh binding, at which what
    /// was delivered is read besides, is quicker than the ack wait.
    #[must_use]
    pub fn is_quiet(&self, now: Instant) -> bool {
        self.quiet
            .is_some_and(|(since, _)| now.duration_since(since) >= QUIET_MAX)
    }

    /// Up to which sequence all is in effect when it is done.
    #[must_use]
    pub fn target(&self) -> u64 {
        self.target.unwrap_or_default()
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

/// Whether others hold on to what they were given, of a consumer that has caught up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Silence {
    /// Since when something is not acknowledged above what is.
    quiet: Option<(Instant, u64)>,
    /// Above this it was told.
    told: Option<u64>,
}

impl Silence {
    /// How the durable consumer is `now`; true, once for each place: nobody has acknowledged for
    /// a while what comes next, and a fresh binding would read it besides.
    pub fn look(&mut self, consumer: &ConsumerState, now: Instant) -> bool {
        if consumer.ack_pending == 0 {
            *self = Self::default();
            return false;
        }
        let floor = consumer.ack_floor;
        let before = self.quiet.filter(|(_, before)| *before == floor);
        let (since, _) = *self.quiet.insert(before.unwrap_or((now, floor)));
        let is_silent = now.duration_since(since) >= QUIET_MAX && self.told != Some(floor);
        if is_silent {
            self.told = Some(floor);
        }
        is_silent
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

    fn look(one: &mut CatchUp, consumer: &ConsumerState) {
        one.look(consumer, Instant::now());
    }

    #[test]
    fn silence_is_told_once_for_each_place() {
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        let mut silence = Silence::default();
        let told = |silence: &mut Silence, (pending, floor), ms| {
            silence.look(&consumer(0, pending, floor, 9), after(ms))
        };
        assert!(!told(&mut silence, (3, 5), 0));
        assert!(!told(&mut silence, (2, 6), 4_000), "somebody lives");
        assert!(told(&mut silence, (2, 6), 8_000));
        // What cannot be delivered any more is no reason to look for ever.
        assert!(!told(&mut silence, (2, 6), 12_000));
        assert!(!told(&mut silence, (1, 7), 16_000));
        assert!(told(&mut silence, (1, 7), 20_000));
        assert!(!told(&mut silence, (0, 9), 24_000));
        assert!(!told(&mut silence, (1, 7), 28_000), "as at first");
        assert!(told(&mut silence, (1, 7), 32_000));
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
        look(&mut one, &consumer(0, 2, 5, 9));
        assert!(!one.is_near() && !one.is_done());
        look(&mut one, &consumer(0, 0, 9, 9));
        assert!(one.is_done());
    }

    #[test]
    fn who_did_not_get_the_last_is_through_when_the_others_are() {
        let mut one = bound(&consumer(9, 0, 0, 0), 9, true);
        one.handled(4, 1, 5);
        look(&mut one, &consumer(2, 3, 4, 7));
        assert!(!one.is_done(), "some are with nobody");
        look(&mut one, &consumer(0, 2, 7, 9));
        assert!(!one.is_done(), "others have them in work");
        look(&mut one, &consumer(0, 0, 9, 9));
        assert!(one.is_done());
    }

    #[test]
    fn who_shares_is_not_kept_by_what_comes_later() {
        let mut one = bound(&consumer(9, 0, 0, 0), 9, true);
        for sequence in 10..30 {
            one.handled(sequence, 1, 3);
        }
        assert!(!one.is_done(), "none of the nine was handled here");
        look(&mut one, &consumer(7, 3, 8, 13));
        assert!(!one.is_done());
        look(&mut one, &consumer(7, 3, 10, 13));
        assert!(one.is_done());
    }

    #[test]
    fn the_end_of_the_stream_may_be_for_others() {
        // Its last event is not of our filter.
        let mut one = bound(&consumer(5, 0, 0, 0), 9, true);
        look(&mut one, &consumer(0, 1, 6, 7));
        assert!(!one.is_done());
        look(&mut one, &consumer(0, 1, 7, 12));
        assert!(!one.is_done(), "8 and 9 may be ours by now");
        look(&mut one, &consumer(0, 0, 12, 12));
        assert!(one.is_done());
    }

    #[test]
    fn what_was_given_to_one_who_is_gone_is_waited_for_unless_it_is_in_effect() {
        let dead = consumer(0, 1, 8, 9);
        assert!(bound(&dead, 9, true).is_done());
        let mut one = bound(&dead, 9, false);
        assert!(one.is_through && !one.is_done());
        one.handled(10, 1, 0);
        look(&mut one, &consumer(0, 1, 8, 10));
        assert!(!one.is_done());
        look(&mut one, &consumer(0, 1, 9, 11));
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
        look(&mut one, &consumer(7, 1, 2, 3));
        assert!(!one.is_done());
        look(&mut one, &consumer(7, 2, 3, 5));
        assert!(one.is_done());
    }

    #[test]
    fn what_was_wanted_of_another_stream_says_nothing_about_this_one() {
        let mut one = bound(&consumer(5, 0, 0, 0), 5, true);
        let other = StreamState {
            created: 2,
            first_sequence: 1,
            last_sequence: 9,
        };
        one.bind(&consumer(3, 0, 6, 6), &other, true, false);
        assert!(!one.is_done(), "7 to 9 are with nobody");
        assert_eq!(one.target(), 9);
    }

    #[test]
    fn who_waits_for_the_dead_binds_again_and_has_all_then() {
        let begun = Instant::now();
        let after = |ms| begun + Duration::from_millis(ms);
        let mut one = bound(&consumer(9, 0, 0, 0), 9, true);
        one.handled(4, 1, 5);
        one.look(&consumer(3, 3, 4, 6), after(0));
        one.look(&consumer(3, 3, 4, 6), after(9_000));
        assert!(!one.is_quiet(after(9_000)), "some are with nobody");
        one.look(&consumer(0, 5, 4, 9), after(9_000));
        one.look(&consumer(0, 4, 5, 9), after(10_900));
        one.look(&consumer(0, 4, 5, 9), after(12_800));
        assert!(!one.is_quiet(after(12_800)), "somebody has acknowledged");
        // Others acknowledge what is newer.
        one.look(&consumer(7, 6, 5, 14), after(13_000));
        assert!(one.is_quiet(after(13_000)) && !one.is_done());
        let stream = StreamState {
            created: 1,
            first_sequence: 1,
            last_sequence: 21,
        };
        let mut unsettled = one;
        unsettled.bind(&consumer(7, 6, 5, 14), &stream, false, false);
        assert!(!unsettled.is_done() && !unsettled.is_quiet(after(99_000)));
        let mut holds = one;
        holds.bind(&consumer(7, 6, 5, 14), &stream, true, true);
        assert!(!holds.is_done());
        holds.handled(14, 1, 7);
        assert!(holds.is_done());
        one.bind(&consumer(7, 6, 5, 14), &stream, true, false);
        assert!(one.is_done(), "of all that was there first");
        assert_eq!(one.target(), 9);
        // Nor is it more than that.
        let mut early = bound(&consumer(9, 0, 0, 0), 9, true);
        early.bind(&consumer(13, 3, 5, 8), &stream, true, false);
        assert!(!early.is_done(), "the ninth is with nobody");
    }
}
