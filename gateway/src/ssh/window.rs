//! Which window russh grants next, so that one stalled upload stops nobody else's.
//!
//! russh has one target window per connection and opens a channel's window by
//! it when data arrives; its hook decides the next target. Clients answer
//! grants in order. So while a channel holds too much, everybody is granted
//! [`TRICKLE`] bytes, the outstanding grants are remembered in order, and the
//! window opens only when the oldest unanswered one belongs to a channel that
//! may run. See `flow` for what counts as too much.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use super::flow::{TRICKLE, WINDOW};

/// What all channels that upload may have under way together. With a key exchange begun by us
/// russh ends a client that has more under way than twice the first window (4 MiB).
const TOGETHER: u32 = 3 << 20;

/// The least that one of them is granted.
const SHARE_MIN: u32 = 128 << 10;

/// So many grants back a channel counts as uploading.
const RECENT: usize = 16;

/// What a running channel is granted beside one that stands.
const OPEN: u32 = 256 << 10;

/// Trickles in a row after which a channel counts as an upload. Below it is somebody typing, for
/// whom the window is not opened: it would be the stalled channel's as well.
const UPLOAD: u32 = 3;

/// Outstanding grants that are remembered; more than a connection has channels.
const GRANTS_MAX: usize = 1024;

/// The outstanding trickles of one connection.
#[derive(Debug)]
pub(crate) struct Windows<Id> {
    /// In the order of granting: whose, and how many in a row it has had.
    trickles: VecDeque<(Id, u32)>,
    /// Trickles in a row.
    rows: HashMap<Id, u32>,
    /// Whose the last grants were.
    recent: VecDeque<Id>,
}

/// What the decision looks at.
pub(crate) trait Load<Id> {
    /// Whether any channel holds too much.
    fn some_over(&self) -> bool;
    /// Whether this channel does.
    fn is_over(&self, channel: Id) -> bool;
    /// Whether all together hold so much that nobody is granted more.
    fn is_full(&self) -> bool;
}

impl<Id> Default for Windows<Id> {
    fn default() -> Self {
        Self {
            trickles: VecDeque::new(),
            rows: HashMap::new(),
            recent: VecDeque::with_capacity(RECENT + 1),
        }
    }
}

impl<Id: Copy + Eq + Hash> Windows<Id> {
    /// `channel` was just granted `used`; what the next channel is granted.
    pub(crate) fn next(&mut self, channel: Id, used: u32, load: &impl Load<Id>) -> u32 {
        self.recent.push_back(channel);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        if !load.some_over() && !load.is_full() {
            self.trickles.clear();
            self.rows.clear();
            return self.share();
        }
        self.trickles.retain(|(id, _)| *id != channel);
        if used > TRICKLE {
            self.rows.remove(&channel);
            // Meant for the front, which was silent: it is no upload now.
            let missed = self.trickles.front();
            if load.is_over(channel) && missed.is_some_and(|(id, _)| !load.is_over(*id)) {
                self.trickles.pop_front();
            }
        } else {
            let row = self.rows.entry(channel).or_default();
            *row += 1;
            self.trickles.push_back((channel, *row));
            if self.trickles.len() > GRANTS_MAX {
                self.trickles.pop_front();
            }
        }
        if load.is_full() {
            return TRICKLE;
        }
        match self.trickles.front() {
            Some((id, row)) if *id != channel && *row >= UPLOAD && !load.is_over(*id) => OPEN,
            _ => TRICKLE,
        }
    }

    /// The window while nothing stands: all of it for one that uploads, a part for each of many.
    fn share(&self) -> u32 {
        let earlier = |at: usize, id: &Id| self.recent.iter().take(at).any(|other| other == id);
        let different = self.recent.iter().enumerate();
        let different = different.filter(|(at, id)| !earlier(*at, id)).count();
        let share = TOGETHER / u32::try_from(different).unwrap_or(1).max(1);
        share.clamp(SHARE_MIN, WINDOW)
    }

    /// The channel has ended.
    pub(crate) fn forget(&mut self, channel: Id) {
        self.trickles.retain(|(id, _)| *id != channel);
        self.rows.remove(&channel);
        self.recent.retain(|id| *id != channel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Channels by letter.
    #[derive(Default)]
    struct Over(&'static str, bool);

    impl Load<char> for Over {
        fn some_over(&self) -> bool {
            !self.0.is_empty()
        }

        fn is_over(&self, channel: char) -> bool {
            self.0.contains(channel)
        }

        fn is_full(&self) -> bool {
            self.1
        }
    }

    /// A client that answers every grant at once, in order, with as many bytes; what each of its
    /// channels has sent after so many answers.
    fn answered(channels: &[char], over: &Over, answers: usize) -> HashMap<char, u64> {
        let mut windows = Windows::default();
        let mut outstanding: VecDeque<_> = channels.iter().map(|&id| (id, TRICKLE)).collect();
        let mut target = TRICKLE;
        let mut sent = HashMap::new();
        for _ in 0..answers {
            let (id, bytes) = outstanding.pop_front().unwrap();
            *sent.entry(id).or_default() += u64::from(bytes);
            outstanding.push_back((id, target));
            target = windows.next(id, target, over);
            assert_ne!(
                target, 1,
                "half of it is 0, and russh would never ask again"
            );
        }
        sent
    }

    #[test]
    fn nobody_is_held_back_while_nothing_stands() {
        let mut windows = Windows::default();
        assert_eq!(windows.next('a', WINDOW, &Over::default()), WINDOW);
        assert_eq!(windows.next('a', TRICKLE, &Over("a", false)), TRICKLE);
        assert_eq!(windows.next('a', TRICKLE, &Over::default()), WINDOW);
    }

    #[test]
    fn many_uploads_share_what_may_be_under_way() {
        let mut windows = Windows::default();
        let letters: Vec<char> = ('a'..='z').collect();
        for (uploads, wanted) in [
            (1, WINDOW),
            (3, TOGETHER / 3),
            (6, TOGETHER / 6),
            (16, TOGETHER / 16),
        ] {
            for turn in 0..uploads * 20 {
                windows.next(letters[turn % uploads], WINDOW, &Over::default());
            }
            let granted = windows.next(letters[0], WINDOW, &Over::default());
            assert_eq!(granted, wanted, "{uploads} uploads");
        }
        for id in &letters[1..] {
            windows.forget(*id);
        }
        assert_eq!(windows.next('a', WINDOW, &Over::default()), WINDOW);
    }

    #[test]
    fn uploads_run_beside_one_that_stands() {
        for channels in [&['a', 'b'][..], &['b', 'a'], &['a', 'b', 'c', 'd']] {
            let sent = answered(channels, &Over("a", false), 10_000);
            for id in channels.iter().filter(|id| **id != 'a') {
                assert!(sent[id] > 100 << 20, "{channels:?}: {sent:?}");
            }
            assert!(sent[&'a'] < 100_000, "{channels:?}: {sent:?}");
        }
    }

    #[test]
    fn a_full_connection_trickles() {
        let sent = answered(&['a', 'b'], &Over("a", true), 10_000);
        assert_eq!(sent[&'b'], 10_000);
        let sent = answered(&['a', 'b'], &Over("", true), 10_000);
        assert_eq!(sent[&'b'], 10_000);
    }

    #[test]
    fn a_channel_that_ends_is_forgotten() {
        let mut windows = Windows::default();
        for _ in 0..UPLOAD {
            windows.next('b', TRICKLE, &Over("a", false));
        }
        windows.forget('b');
        assert_eq!(windows.next('a', TRICKLE, &Over("a", false)), TRICKLE);
    }
}
