//! Which of a route's targets takes the next request.
//!
//! The one with the fewest requests under way for its weight; where several
//! have equally few, they take turns by their weights, smoothly: with weights 3
//! and 1 not three in a row.

use std::cell::Cell;
use std::rc::Rc;

/// Requests of this thread that are under way at one target.
pub(crate) type Load = Rc<Cell<u32>>;

/// What choosing needs to know of a candidate.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Its share; at least 1.
    pub(crate) weight: u32,
    /// Shared by all routes of this thread that have the target.
    pub(crate) load: Load,
    /// What it is owed, in the taking of turns.
    credit: Cell<i64>,
}

impl Seat {
    pub(crate) fn new(weight: u32, load: Load) -> Self {
        Self {
            weight: weight.max(1),
            load,
            credit: Cell::new(0),
        }
    }

    /// Whether it has less to do than the other, each for its weight.
    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        let of = |a: &Self, b: &Self| u64::from(a.load.get()) * u64::from(b.weight);
        of(self, other).cmp(&of(other, self))
    }
}

/// Chooses among the seats that `may` take a request; none if none may.
pub(crate) fn choose<S>(
    seats: &[S],
    seat: impl Fn(&S) -> &Seat,
    may: impl Fn(usize, &S) -> bool,
) -> Option<usize> {
    let mut free = seats
        .iter()
        .enumerate()
        .filter(|(index, seat)| may(*index, seat));
    let (first, only) = free.next()?;
    let mut least = seat(only);
    let mut alone = true;
    for (_, other) in free {
        alone = false;
        if seat(other).compare(least).is_lt() {
            least = seat(other);
        }
    }
    if alone {
        return Some(first);
    }
    // Those that are as free as the least busy one take turns.
    let mut total = 0;
    let mut best: Option<(usize, i64)> = None;
    for (index, candidate) in seats.iter().enumerate() {
        if !may(index, candidate) || seat(candidate).compare(least).is_gt() {
            continue;
        }
        let weight = i64::from(seat(candidate).weight);
        let credit = seat(candidate).credit.get() + weight;
        seat(candidate).credit.set(credit);
        total += weight;
        if best.is_none_or(|(_, most)| credit > most) {
            best = Some((index, credit));
        }
    }
    let (index, credit) = best?;
    if let Some(chosen) = seats.get(index) {
        seat(chosen).credit.set(credit - total);
    }
    Some(index)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn seats(weights: &[u32]) -> Vec<Seat> {
        let seat = |weight: &u32| Seat::new(*weight, Load::default());
        weights.iter().map(seat).collect()
    }

    fn pick(seats: &[Seat]) -> usize {
        choose(seats, |seat| seat, |_, _| true).unwrap()
    }

    fn counts(seats: &[Seat], rounds: usize, at_once: usize) -> Vec<usize> {
        let mut counts = vec![0; seats.len()];
        let mut under_way = VecDeque::new();
        for _ in 0..rounds {
            let index = pick(seats);
            counts[index] += 1;
            seats[index].load.set(seats[index].load.get() + 1);
            under_way.push_back(index);
            if under_way.len() >= at_once {
                let done = under_way.pop_front().unwrap();
                seats[done].load.set(seats[done].load.get() - 1);
            }
        }
        counts
    }

    #[test]
    fn one_after_the_other_they_take_turns_by_weight_and_smoothly() {
        let seats = seats(&[5, 1, 1]);
        let order: String = (0..14)
            .map(|_| char::from(b'a' + pick(&seats) as u8))
            .collect();
        assert_eq!(order, "aabacaaaabacaa");
    }

    #[test]
    fn shares_follow_the_weights_whatever_is_under_way() {
        for at_once in [1, 40, 200] {
            let counts = counts(&seats(&[3, 1]), 4_000, at_once);
            assert!(
                (2_900..=3_100).contains(&counts[0]),
                "{at_once}: {counts:?}"
            );
        }
        let counts = counts(&seats(&[1, 1, 1]), 3_000, 7);
        assert!(
            counts.iter().all(|count| (980..=1_020).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn a_slow_one_gets_less() {
        let seats = seats(&[1, 1]);
        // The first never finishes anything.
        let mut slow = 0;
        for _ in 0..100 {
            match pick(&seats) {
                0 => {
                    slow += 1;
                    seats[0].load.set(seats[0].load.get() + 1);
                }
                _ => assert_eq!(seats[1].load.get(), 0),
            }
        }
        assert!(slow <= 1, "{slow}");
    }

    #[test]
    fn those_that_may_not_are_never_chosen() {
        let seats = seats(&[1, 1000, 1]);
        for _ in 0..10 {
            let chosen = choose(&seats, |seat| seat, |index, _| index != 1);
            assert_ne!(chosen, Some(1));
        }
        assert_eq!(choose(&seats, |seat| seat, |_, _| false), None);
        assert_eq!(choose(&[], |seat: &Seat| seat, |_, _| true), None);
    }
}
