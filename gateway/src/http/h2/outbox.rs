//! What is written to an HTTP/2 connection and not yet taken by its socket.
//!
//! Small pieces are gathered in one buffer. Large ones stay where they are: the
//! h2 crate shows them as slices only, but whoever handed them to it has left a
//! handle with [`Lent`] before.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::IoSlice;
use std::rc::Rc;

use bytes::{Buf, Bytes};
use smallvec::SmallVec;

/// Handles on what the h2 crate is about to show. Clones share them.
///
/// One that is missing costs a copy, so it does not matter if the h2 crate drops what it was handed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lent(Rc<RefCell<Vec<Bytes>>>);

impl Lent {
    /// `bytes` go to the h2 crate next.
    pub(crate) fn leave(&self, bytes: &Bytes) {
        if bytes.len() >= LARGE {
            self.0.borrow_mut().push(bytes.clone());
        }
    }

    /// Forgets what was never shown.
    pub(super) fn forget(&self) {
        self.0.borrow_mut().clear();
    }

    /// A handle on what is shown. Everything is shown once, from its begin to its end.
    fn claim(&self, shown: &[u8]) -> Option<Bytes> {
        let mut lent = self.0.borrow_mut();
        let part = shown.as_ptr_range();
        let at = lent.iter().position(|bytes| {
            let all = bytes.as_ptr_range();
            all.start <= part.start && part.end <= all.end
        })?;
        let owner = lent.get(at)?;
        let claimed = owner.slice_ref(shown);
        if owner.as_ptr_range().end == part.end {
            lent.remove(at);
        }
        Some(claimed)
    }
}

/// Pieces in their order.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    lent: Lent,
    /// Small pieces, done with up to `at`.
    gathered: Vec<u8>,
    at: usize,
    parts: VecDeque<Part>,
    left: usize,
}

#[derive(Debug)]
enum Part {
    /// So many of the gathered bytes.
    Gathered(usize),
    Large(Bytes),
}

impl Outbox {
    /// Where to leave handles.
    pub(super) fn lent(&self) -> Lent {
        self.lent.clone()
    }

    /// How much there is.
    pub(super) fn len(&self) -> usize {
        self.left
    }

    /// Adds bytes behind the others.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.left += bytes.len();
        if bytes.len() >= LARGE
            && let Some(bytes) = self.lent.claim(bytes)
        {
            self.parts.push_back(Part::Large(bytes));
            return;
        }
        self.gather(bytes);
        match self.parts.back_mut() {
            Some(Part::Gathered(len)) => *len += bytes.len(),
            _ => self.parts.push_back(Part::Gathered(bytes.len())),
        }
    }

    fn gather(&mut self, bytes: &[u8]) {
        if self.gathered.capacity() == 0 {
            self.gathered = take_spare();
        } else if self.at > 0 && self.gathered.len() + bytes.len() > self.gathered.capacity() {
            // Making room at the front is cheaper than growing.
            self.gathered.drain(..self.at);
            self.at = 0;
        }
        self.gathered.extend_from_slice(bytes);
    }

    /// All that is left.
    pub(super) fn slices(&self) -> SmallVec<[IoSlice<'_>; 16]> {
        let mut gathered = self.gathered.get(self.at..).unwrap_or_default();
        let slice = |part| match part {
            &Part::Gathered(len) => {
                let (part, rest) = gathered.split_at_checked(len).unwrap_or_default();
                gathered = rest;
                IoSlice::new(part)
            }
            Part::Large(bytes) => IoSlice::new(bytes),
        };
        self.parts.iter().map(slice).collect()
    }

    /// So many bytes were taken from the front.
    pub(super) fn advance(&mut self, mut count: usize) {
        self.left = self.left.saturating_sub(count);
        while count > 0 {
            let Some(part) = self.parts.front_mut() else {
                return;
            };
            let taken = match part {
                Part::Gathered(len) => {
                    let taken = count.min(*len);
                    *len -= taken;
                    self.at += taken;
                    taken
                }
                Part::Large(bytes) => {
                    let taken = count.min(bytes.len());
                    bytes.advance(taken);
                    taken
                }
            };
            count -= taken;
            if matches!(part, Part::Gathered(0))
                || matches!(part, Part::Large(bytes) if bytes.is_empty())
            {
                self.parts.pop_front();
            }
        }
    }

    /// Everything was taken: the buffer goes back to the thread.
    pub(super) fn rest(&mut self) {
        if self.gathered.capacity() > 0 {
            give_back(std::mem::take(&mut self.gathered));
            self.at = 0;
        }
        self.lent.forget();
    }

    /// Whether it holds memory.
    #[cfg(test)]
    pub(super) fn is_at_rest(&self) -> bool {
        self.gathered.capacity() == 0 && self.parts.is_empty()
    }
}

thread_local! {
    /// The buffer that is free on this thread. One is enough: most drains end within the poll that filled it.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

fn take_spare() -> Vec<u8> {
    let spare = SPARE.take();
    if spare.capacity() == 0 {
        return Vec::with_capacity(GATHERED);
    }
    spare
}

fn give_back(mut buffer: Vec<u8>) {
    // One that had to grow is not worth keeping.
    if buffer.capacity() <= 2 * GATHERED {
        buffer.clear();
        SPARE.set(buffer);
    }
}

/// As much as is gathered before the socket is asked, and a frame of the usual size.
const GATHERED: usize = super::coalesce::BUFFERED_MAX + (16 << 10) + 512;

/// What is smaller is cheaper copied than remembered.
const LARGE: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(outbox: &Outbox) -> Vec<u8> {
        outbox
            .slices()
            .iter()
            .flat_map(|slice| slice.to_vec())
            .collect()
    }

    #[test]
    fn large_pieces_stay_where_they_are_and_everything_keeps_its_order() {
        let mut outbox = Outbox::default();
        let body: Bytes = (0..40_000_u32).map(|i| (i % 251) as u8).collect();
        let stranger = body.to_vec();
        outbox.lent().leave(&body);
        let mut expected = Vec::new();
        let (first, second) = body.split_at(20_000);
        for piece in [b"head", first, b"head2", second, b"tail", &stranger] {
            outbox.push(piece);
            expected.extend_from_slice(piece);
        }
        let slices = outbox.slices();
        let shown: Vec<_> = slices.iter().map(|slice| slice.as_ptr()).collect();
        assert_eq!((shown[1], shown[3]), (first.as_ptr(), second.as_ptr()));
        assert_eq!(slices.len(), 5);
        assert!(outbox.lent.0.borrow().is_empty());
        drop(slices);

        let mut taken = 0;
        for count in [1, 3, 2, 19_000, 1_000, 30_000, 20_000].into_iter().cycle() {
            assert!(flat(&outbox) == expected[taken..], "{taken}");
            assert_eq!(outbox.len(), expected.len() - taken);
            if outbox.len() == 0 {
                break;
            }
            let count = count.min(outbox.len());
            outbox.advance(count);
            taken += count;
        }
        outbox.rest();
        assert!(outbox.is_at_rest());
    }

    #[test]
    fn what_the_h2_crate_drops_is_forgotten_and_never_taken_for_something_else() {
        let mut outbox = Outbox::default();
        let lent = outbox.lent();
        lent.leave(&Bytes::from(vec![1; LARGE]));
        lent.leave(&Bytes::from(vec![1; LARGE - 1]));
        assert_eq!(lent.0.borrow().len(), 1, "small ones are not worth it");
        let other = vec![2; LARGE];
        outbox.push(&other);
        assert!(flat(&outbox) == other);
        outbox.advance(LARGE);
        outbox.rest();
        assert!(lent.0.borrow().is_empty());
    }
}
