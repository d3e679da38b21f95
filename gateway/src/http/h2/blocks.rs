//! Memory for the pieces of bodies that the h2 crate is handed.
//!
//! It wants to own them. They are cut from blocks of the thread, and a block is
//! used again when the last of its pieces is gone: large ones would go back to
//! the system and come again page by page.
//!
//! Nothing that may live as long as a connection belongs here, as values of
//! fields do: each would keep a whole block.

use std::cell::RefCell;

use bytes::{Bytes, BytesMut};

/// A copy of `bytes`.
pub(super) fn copy(bytes: &[u8]) -> Bytes {
    concat(bytes, &[])
}

/// A copy of both, the second behind the first.
pub(super) fn concat(first: &[u8], second: &[u8]) -> Bytes {
    BLOCKS.with_borrow_mut(|blocks| {
        let block = blocks.with_room(first.len() + second.len());
        block.extend_from_slice(first);
        block.extend_from_slice(second);
        block.split().freeze()
    })
}

struct Blocks {
    /// What is left of the block that is being cut up.
    current: BytesMut,
    /// Blocks of which nothing is left, the newest last.
    cut_up: Vec<BytesMut>,
}

impl Blocks {
    fn new() -> Self {
        Self {
            current: BytesMut::with_capacity(BLOCK),
            cut_up: Vec::new(),
        }
    }

    /// A block with nothing in it, and room for `len` bytes.
    fn with_room(&mut self, len: usize) -> &mut BytesMut {
        if self.current.capacity() < len {
            let next = self.next(len.max(BLOCK));
            self.cut_up.push(std::mem::replace(&mut self.current, next));
        }
        &mut self.current
    }

    /// The one that was cut up last of those that are whole again, or a new one.
    fn next(&mut self, len: usize) -> BytesMut {
        let whole = self
            .cut_up
            .iter_mut()
            .rposition(|block| block.try_reclaim(len));
        if let Some(at) = whole {
            return self.cut_up.remove(at);
        }
        if self.cut_up.len() >= CUT_UP_MAX {
            // What was cut from it lives longer than most, and may keep it for itself.
            self.cut_up.remove(0);
        }
        BytesMut::with_capacity(len)
    }
}

thread_local! {
    static BLOCKS: RefCell<Blocks> = RefCell::new(Blocks::new());
}

/// As much as is read from an upstream at once.
const BLOCK: usize = 64 << 10;

/// Blocks that a thread remembers.
const CUT_UP_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(blocks: &mut Blocks, len: usize) -> Bytes {
        let block = blocks.with_room(len);
        block.resize(len, 7);
        block.split().freeze()
    }

    #[test]
    fn blocks_are_used_again_once_their_pieces_are_gone() {
        let mut blocks = Blocks::new();
        let mut seen = std::collections::HashSet::new();
        let mut alive = std::collections::VecDeque::new();
        for _ in 0..1000 {
            let piece = cut(&mut blocks, BLOCK - 10);
            seen.insert(piece.as_ptr());
            alive.push_back(piece);
            if alive.len() > 4 {
                alive.pop_front();
            }
        }
        assert!(seen.len() <= 8, "{}", seen.len());
    }

    #[test]
    fn pieces_that_stay_cost_their_block_and_no_more_blocks_are_remembered_than_told() {
        let mut blocks = Blocks::new();
        let mut kept = Vec::new();
        for round in 0..200 {
            kept.push(cut(&mut blocks, 100));
            drop(cut(&mut blocks, BLOCK));
            assert!(blocks.cut_up.len() <= CUT_UP_MAX, "{round}");
        }
        assert!(kept.iter().all(|piece| piece.iter().all(|&byte| byte == 7)));
        let larger = cut(&mut blocks, 3 * BLOCK);
        assert_eq!(larger.len(), 3 * BLOCK);
        assert_eq!(concat(b"one ", b"two"), "one two");
        assert_eq!(copy(b""), "");
    }
}
