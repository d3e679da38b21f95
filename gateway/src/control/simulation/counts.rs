//! How often what happened, to see that a run tries everything.

/// Sums over a seed, or over a run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Counts {
    pub(super) messages: u64,
    pub(super) crashes: u64,
    pub(super) stalls: u64,
    /// A gateway alone has no database, or no NATS.
    pub(super) cut_off: u64,
    pub(super) commits: u64,
    pub(super) failed_before: u64,
    pub(super) failed_after: u64,
    /// Turns that somebody else had for too long.
    pub(super) turns_missed: u64,
    /// Turns that were taken from who did nothing with them.
    pub(super) turns_lost: u64,
    /// What others committed, taken over entry by entry.
    pub(super) followed: u64,
    /// Too far behind for that.
    pub(super) behind: u64,
    pub(super) redelivered: u64,
    pub(super) handed_back: u64,
    pub(super) lost: u64,
    pub(super) put_back: u64,
    pub(super) resets: u64,
    pub(super) edits: u64,
    pub(super) announcements: u64,
    pub(super) checks: u64,
    /// Readings of what was delivered before.
    pub(super) read: u64,
    /// Those who were given the rest kept silent.
    pub(super) bound_again: u64,
    /// Rare: need not be seen.
    pub(super) left_out: u64,
    /// Of everything that was told, so that two runs can be compared.
    pub(super) told: u64,
}

impl Counts {
    fn each(&mut self) -> [&mut u64; 23] {
        [
            &mut self.messages,
            &mut self.crashes,
            &mut self.stalls,
            &mut self.cut_off,
            &mut self.commits,
            &mut self.failed_before,
            &mut self.failed_after,
            &mut self.turns_missed,
            &mut self.turns_lost,
            &mut self.followed,
            &mut self.behind,
            &mut self.redelivered,
            &mut self.handed_back,
            &mut self.lost,
            &mut self.put_back,
            &mut self.resets,
            &mut self.edits,
            &mut self.announcements,
            &mut self.checks,
            &mut self.read,
            &mut self.bound_again,
            &mut self.left_out,
            &mut self.told,
        ]
    }

    pub(super) fn add(&mut self, mut other: Self) {
        for (sum, more) in self.each().into_iter().zip(other.each()) {
            *sum = sum.wrapping_add(*more);
        }
    }

    pub(super) fn is_everything_seen(mut self) -> bool {
        (self.told, self.left_out) = (1, 1);
        self.each().into_iter().all(|count| *count > 0)
    }
}
