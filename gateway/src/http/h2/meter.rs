//! Counts what an HTTP/2 client sends that is no request, and says when it is too much.
//!
//! The h2 crate bounds what it stores, but answers as many PINGs, SETTINGS and
//! tiny WINDOW_UPDATEs as arrive. So the frames are counted here, by their
//! nine-byte heads, as the bytes go by: requests and the answers' bytes earn
//! credit, everything else spends it. Knows no socket and no h2 types.

use std::time::Duration;

use tokio::time::Instant;

use super::coalesce::Inspect;

/// What was too much.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Abuse {
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE and unknown frames.
    Control,
    /// DATA, HEADERS and CONTINUATION frames without content.
    Empty,
    /// Requests taken back before they were answered (CVE-2023-44487).
    Resets,
}

impl Abuse {
    /// As the metric names it.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Control => "control_flood",
            Self::Empty => "empty_flood",
            Self::Resets => "rapid_reset",
        }
    }
}

/// A count that is spent, and grows again with time and with what earns it.
#[derive(Debug)]
struct Credit {
    left: u32,
    max: u32,
    per_second: u32,
    filled: Instant,
}

impl Credit {
    fn new(max: u32, per_second: u32) -> Self {
        Self {
            left: max,
            max,
            per_second,
            filled: Instant::now(),
        }
    }

    fn earn(&mut self, amount: u32) {
        self.left = self.left.saturating_add(amount).min(self.max);
    }

    /// Whether there was enough. The clock is read only when there seems not to be.
    fn spend(&mut self, amount: u32) -> bool {
        if self.left < amount {
            let passed = self.filled.elapsed().min(Duration::from_secs(3600));
            let millis = u32::try_from(passed.as_millis()).unwrap_or(u32::MAX);
            let earned = millis.saturating_mul(self.per_second) / 1000;
            if earned > 0 {
                self.filled = Instant::now();
                self.earn(earned);
            }
        }
        match self.left.checked_sub(amount) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

/// Follows the frames of one connection.
#[derive(Debug)]
pub(super) struct Meter {
    /// Of the client's preface, or of the payload of the frame that is passing.
    skip: usize,
    head: [u8; HEAD_LEN],
    have: usize,
    control: Credit,
    resets: Credit,
    /// Bytes sent that have not earned anything yet.
    unpaid: usize,
    abuse: Option<Abuse>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            skip: PREFACE_LEN,
            head: [0; HEAD_LEN],
            have: 0,
            control: Credit::new(CONTROL_MAX, CONTROL_PER_SECOND),
            resets: Credit::new(RESETS_MAX, RESETS_PER_SECOND),
            unpaid: 0,
            abuse: None,
        }
    }
}

impl Meter {
    /// What was too much, if something was.
    pub(super) fn abuse(&self) -> Option<Abuse> {
        self.abuse
    }

    /// So many requests were answered to their end: as many resets are forgiven.
    pub(super) fn answered(&mut self, count: u32) {
        self.resets.earn(count);
    }

    fn frame(&mut self, len: usize, kind: u8, flags: u8) {
        let spent = match kind {
            DATA | HEADERS | CONTINUATION => {
                if kind == HEADERS && flags & END_HEADERS != 0 {
                    self.control.earn(PER_REQUEST);
                }
                let ends = flags & (END_STREAM | END_HEADERS) != 0;
                let empty = len == 0 && !ends;
                match empty {
                    true => self.control.spend(1).then_some(()).ok_or(Abuse::Empty),
                    false => Ok(()),
                }
            }
            RST_STREAM => self.resets.spend(1).then_some(()).ok_or(Abuse::Resets),
            _ => self.control.spend(1).then_some(()).ok_or(Abuse::Control),
        };
        if let Err(abuse) = spent {
            self.abuse.get_or_insert(abuse);
        }
    }
}

impl Inspect for Meter {
    fn arrived(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = bytes.get(skipped..).unwrap_or_default();
                continue;
            }
            let wanted = (HEAD_LEN - self.have).min(bytes.len());
            let (head, rest) = bytes.split_at(wanted);
            if let Some(room) = self.head.get_mut(self.have..self.have + wanted) {
                room.copy_from_slice(head);
            }
            self.have += wanted;
            bytes = rest;
            if self.have == HEAD_LEN {
                self.have = 0;
                let [a, b, c, kind, flags, ..] = self.head;
                let len = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                self.skip = len;
                self.frame(len, kind, flags);
            }
        }
    }

    fn sent(&mut self, bytes: usize) {
        self.unpaid += bytes;
        self.control
            .earn(u32::try_from(self.unpaid / BYTES_PER_CREDIT).unwrap_or(u32::MAX));
        self.unpaid %= BYTES_PER_CREDIT;
    }

    fn is_over(&self) -> bool {
        self.abuse.is_some()
    }
}

const PREFACE_LEN: usize = 24;
const HEAD_LEN: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Browsers send a few dozen at once; gRPC clients ping once per round trip while data comes.
const CONTROL_MAX: u32 = 1000;
const CONTROL_PER_SECOND: u32 = 50;

/// WINDOW_UPDATEs of its stream, mostly.
const PER_REQUEST: u32 = 4;

/// Updates that open the window by less than this on the average are abuse.
const BYTES_PER_CREDIT: usize = 256;

/// A browser that leaves a page resets all of it; a client with deadlines resets what is late.
const RESETS_MAX: u32 = 500;
const RESETS_PER_SECOND: u32 = 50;

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, len: usize) -> Vec<u8> {
        let [_, a, b, c] = u32::try_from(len).unwrap().to_be_bytes();
        let mut frame = vec![a, b, c, kind, flags, 0, 0, 0, 1];
        frame.resize(HEAD_LEN + len, 0xff);
        frame
    }

    fn meter() -> Meter {
        let mut meter = Meter::default();
        meter.arrived(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        meter
    }

    fn feed(meter: &mut Meter, frame: &[u8], count: u32) {
        for _ in 0..count {
            meter.arrived(frame);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn floods_of_every_kind_are_noticed_and_a_handful_is_not() {
        const PING: u8 = 6;
        const SETTINGS: u8 = 4;
        const WINDOW_UPDATE: u8 = 8;
        for (kind, flags, len, max, abuse) in [
            (PING, 0, 8, CONTROL_MAX, Abuse::Control),
            (SETTINGS, 0, 0, CONTROL_MAX, Abuse::Control),
            (WINDOW_UPDATE, 0, 4, CONTROL_MAX, Abuse::Control),
            (0xfa, 0, 100, CONTROL_MAX, Abuse::Control),
            (DATA, 0, 0, CONTROL_MAX, Abuse::Empty),
            (CONTINUATION, 0, 0, CONTROL_MAX, Abuse::Empty),
            (RST_STREAM, 0, 4, RESETS_MAX, Abuse::Resets),
        ] {
            let mut meter = meter();
            feed(&mut meter, &frame(kind, flags, len), max);
            assert_eq!(meter.abuse(), None, "{kind}");
            feed(&mut meter, &frame(kind, flags, len), 1);
            assert_eq!(meter.abuse(), Some(abuse), "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn requests_their_bodies_and_the_answers_bytes_are_never_abuse() {
        let mut meter = meter();
        for _ in 0..10_000 {
            meter.arrived(&frame(HEADERS, END_HEADERS, 40));
            feed(&mut meter, &frame(8, 0, 4), PER_REQUEST);
            meter.arrived(&frame(DATA, 0, 16_384));
            meter.arrived(&frame(DATA, END_STREAM, 0));
            // A download whose reader opens the window with each KiB.
            meter.sent(1024);
            meter.arrived(&frame(8, 0, 4));
            meter.answered(1);
            meter.arrived(&frame(RST_STREAM, 0, 4));
        }
        assert_eq!(meter.abuse(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn frames_are_found_however_the_bytes_are_split() {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        for _ in 0..=RESETS_MAX {
            bytes.extend(frame(DATA, 0, 300));
            bytes.extend(frame(RST_STREAM, 0, 4));
        }
        for size in [1, 2, 7, 9, 10, 313, 4096, bytes.len()] {
            let mut meter = Meter::default();
            let last = bytes.len() - 4 - HEAD_LEN;
            for piece in bytes[..last].chunks(size) {
                meter.arrived(piece);
            }
            assert_eq!(meter.abuse(), None, "{size}");
            for piece in bytes[last..].chunks(size) {
                meter.arrived(piece);
            }
            assert_eq!(meter.abuse(), Some(Abuse::Resets), "{size}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_forgives() {
        let mut meter = meter();
        for _ in 0..100 {
            feed(&mut meter, &frame(RST_STREAM, 0, 4), RESETS_PER_SECOND);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!(meter.abuse(), None);
    }
}
