//! What the database may lack of what was delivered, read from the stream.
//!
//! The database says up to where it has all of a stream's events: its floor. At
//! each binding, before anything is consumed, everything between that and the
//! last message ever delivered is read past the durable consumer, in the stream's
//! order, and handed to the writer; inbox and versions make it harmless. So what a
//! killed process was given and did not acknowledge is in effect at once, not
//! after the ack wait, and a database that is older than what was acknowledged for
//! it (restored, or lost) gets the events again. The durable consumer, which other
//! gateways may share, stays as it is; what it still holds for the dead comes again
//! and is stale.
//!
//! An event that kills the process would do so at each start, and its deliveries
//! would not be counted as those of the durable consumer are. So each reading that
//! has its first events in hand is counted in the database until it takes a step. After two that took
//! none the events go one by one; an event that was begun with three times is left
//! to the durable consumer, which makes a dead letter of it after five deliveries.
//! One that was acknowledged already, and so does not come again, has five tries.
//!
//! What the stream itself has lost before it was read is not to be had here. Of
//! COMPUTE the database remembers that, before its floor passes the gap, until
//! compute's snapshot has told it.

use edd_events::consumer::{DELIVERIES_MAX, Unavailable, Verdict};
use edd_events::stream::COMPUTE;
use tokio::sync::{mpsc, oneshot};

use crate::control::store::Marks;
use crate::control::writer::{Command, Incoming, Reached};

/// Most events of one transaction.
const BATCH_MAX: usize = 256;

/// After so many readings that took no step, steps are of one event.
const WHOLE_TRIES: u64 = 2;

/// After so many an event is left to the durable consumer.
const TRIES_MAX: u64 = 3;

/// A stream and its durable consumer, at a binding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    /// When the stream was made, Unix nanoseconds.
    pub created: i64,
    /// The first sequence that the stream still has, or would have next.
    pub first: u64,
    /// The stream's last sequence.
    pub last: u64,
    /// Up to here all is acknowledged.
    pub acknowledged: u64,
    /// The last one that was delivered.
    pub delivered: u64,
}

/// Reads a stream past its durable consumer.
pub trait Reader: Send {
    /// The events from the sequence `from` to the sequence `to`, `max` messages at
    /// most, and up to which sequence they go.
    fn read(
        &mut self,
        from: u64,
        to: u64,
        max: usize,
    ) -> impl Future<Output = Result<(Vec<Incoming>, u64), Unavailable>> + Send;

    /// Is told what came of what was read last.
    fn handled(&mut self, verdicts: &[Verdict]);
}

/// How far the database has a stream's events.
#[derive(Debug)]
pub struct Again {
    stream: &'static str,
    /// The highest sequence known to be handled when the stream is looked at next.
    position: u64,
    floor: u64,
    /// Readings that processes before this one began, without a step.
    tries: u64,
    /// How often its sequences had started over when all this was so.
    restarts: u64,
    /// Whether the floor is known to hold for what was acknowledged since.
    is_through: bool,
    /// How often in a row the database did not take an event that does not come again.
    refusals: u64,
}

impl Again {
    /// As the database says. `is_first`: this process has not begun any reading.
    pub fn new(stream: &'static str, marks: Marks, is_first: bool) -> Self {
        Self {
            stream,
            position: marks.position,
            floor: marks.floor,
            // What this process began has not ended it.
            tries: if is_first { marks.tries } else { 0 },
            restarts: marks.restarts,
            is_through: false,
            refusals: 0,
        }
    }

    /// Whether the database has all that was acknowledged for it, and will have.
    pub fn is_through(&self) -> bool {
        self.is_through
    }

    /// How often the stream's sequences had started over when they meant what they mean here.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// An event of this sequence is handled.
    pub fn handled(&mut self, sequence: u64) {
        self.position = self.position.max(sequence);
    }

    /// The database has all up to here.
    pub fn reached(&mut self, floor: u64) {
        self.floor = self.floor.max(floor);
    }

    /// Makes sure that the database knows this stream and not another one of its
    /// name, whose sequences would mean nothing; and that so do we, if it was
    /// another gateway that has found it to be another.
    pub async fn identify<S>(
        &mut self,
        found: Found,
        writer: &mpsc::Sender<Command<S>>,
    ) -> Result<(), Unavailable> {
        let is_shorter = found.last < self.position;
        let ask = |answer| Command::Stream {
            name: self.stream,
            created: found.created,
            is_shorter,
            restarts: self.restarts,
            answer,
        };
        let marks = asked(writer, ask).await?;
        self.position = marks.position;
        if marks.restarts != self.restarts {
            self.restarts = marks.restarts;
            self.floor = marks.floor;
            self.tries = 0;
            self.is_through = false;
        }
        match marks.created == Some(found.created) {
            true => Ok(()),
            false => Err(Unavailable(
                "another gateway has found another stream".into(),
            )),
        }
    }

    /// The first sequence that the stream still has, if the database lacks older
    /// ones. It is remembered then. Of COMPUTE only: there is nobody to ask about
    /// the others.
    pub async fn gap<S>(
        &self,
        found: Found,
        writer: &mpsc::Sender<Command<S>>,
    ) -> Result<Option<u64>, Unavailable> {
        let first = found.first;
        if self.stream != COMPUTE.name || self.floor + 1 >= first {
            return Ok(None);
        }
        asked(writer, |answer| Command::Gap { first, answer }).await?;
        tracing::warn!(
            stream = self.stream,
            first,
            floor = self.floor,
            "the stream no longer holds all that the database lacks: compute is to tell it"
        );
        Ok(Some(first))
    }

    /// Reads what the database may lack of what was delivered. Afterwards it has
    /// all of that.
    ///
    /// Cancel safe: what is done is stored, and the rest is read the next time.
    pub async fn read<S>(
        &mut self,
        found: Found,
        reader: &mut impl Reader,
        writer: &mpsc::Sender<Command<S>>,
    ) -> Result<(), Unavailable> {
        if self.is_through {
            // Acknowledged for this database, then.
            self.floor = self.floor.max(found.acknowledged);
        }
        self.gap(found, writer).await?;
        self.steps(found, reader, writer).await?;
        self.is_through = true;
        Ok(())
    }

    async fn steps<S>(
        &mut self,
        found: Found,
        reader: &mut impl Reader,
        writer: &mpsc::Sender<Command<S>>,
    ) -> Result<(), Unavailable> {
        if self.floor >= found.delivered {
            return Ok(());
        }
        let one_by_one = self.tries >= WHOLE_TRIES;
        let max = if one_by_one { 1 } else { BATCH_MAX };
        let mut events = 0;
        let begin = self.floor;
        let mut is_counted = false;
        while self.floor < found.delivered {
            let from = self.floor + 1;
            let (mut batch, up_to) = reader.read(from, found.delivered, max).await?;
            if self.is_deadly(&batch, found) {
                batch.clear();
            }
            if !is_counted && !batch.is_empty() {
                // Now that there is what may end the process: that NATS did not
                // answer, or that somebody stopped us before, is no event's fault.
                let begun = self.step(self.floor, self.tries + 1, found);
                reach(begun, Vec::new(), writer).await?;
            }
            is_counted = true;
            events += batch.len();
            let tries = match one_by_one && up_to < found.delivered {
                true => WHOLE_TRIES,
                false => 0,
            };
            let reached = self.step(up_to, tries, found);
            let sequences: Vec<u64> = batch.iter().map(|event| event.sequence).collect();
            let verdicts = reach(reached, batch, writer).await?;
            reader.handled(&verdicts);
            if reached.lacks(sequences.into_iter(), &verdicts) {
                self.refused()?;
                // The rest of what was read is stored.
                reach(reached, Vec::new(), writer).await?;
            }
            self.refusals = 0;
            self.floor = up_to;
            self.tries = tries;
        }
        tracing::info!(
            stream = self.stream,
            begin,
            end = self.floor,
            events,
            "what was delivered before is in effect"
        );
        Ok(())
    }

    /// Whether the processes that began with this event all ended with it.
    fn is_deadly(&self, batch: &[Incoming], found: Found) -> bool {
        let Some(first) = batch.first() else {
            return false;
        };
        let most = match first.sequence > found.acknowledged {
            true => TRIES_MAX,
            false => DELIVERIES_MAX,
        };
        let is_deadly = self.tries >= most;
        if is_deadly {
            tracing::error!(
                stream = self.stream,
                sequence = first.sequence,
                event_id = first.event_id,
                tries = self.tries,
                "each process that read this event ended: it is left out"
            );
        }
        is_deadly
    }

    /// What does not come again gets as many tries as what does.
    fn refused(&mut self) -> Result<(), Unavailable> {
        self.refusals += 1;
        if self.refusals < DELIVERIES_MAX {
            let reason = "the database does not take an event that does not come again";
            return Err(Unavailable(reason.into()));
        }
        tracing::error!(
            stream = self.stream,
            floor = self.floor,
            tries = self.refusals,
            "the database does not take events that do not come again: they are left out"
        );
        Ok(())
    }

    fn step(&self, floor: u64, tries: u64, found: Found) -> Reached {
        Reached {
            stream: self.stream,
            floor,
            tries,
            acknowledged: found.acknowledged,
            restarts: Some(self.restarts),
        }
    }
}

async fn reach<S>(
    reached: Reached,
    batch: Vec<Incoming>,
    writer: &mpsc::Sender<Command<S>>,
) -> Result<Vec<Verdict>, Unavailable> {
    asked(writer, |answer| Command::Again {
        batch,
        reached,
        answer,
    })
    .await
}

/// Asks the writer and waits for its answer.
pub(super) async fn asked<S, T>(
    writer: &mpsc::Sender<Command<S>>,
    command: impl FnOnce(oneshot::Sender<Result<T, Unavailable>>) -> Command<S>,
) -> Result<T, Unavailable> {
    let ended = || Unavailable("the control path has ended".into());
    let (answer, answered) = oneshot::channel();
    writer.send(command(answer)).await.map_err(|_| ended())?;
    answered.await.map_err(|_| ended())?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use edd_events::envelope::Cause;

    use super::*;
    use crate::control::store;

    const DELIVERED: u64 = 600;

    /// A stream of events that are numbers.
    struct Numbers;

    impl Reader for Numbers {
        async fn read(
            &mut self,
            from: u64,
            to: u64,
            max: usize,
        ) -> Result<(Vec<Incoming>, u64), Unavailable> {
            let up_to = to.min(from + u64::try_from(max).unwrap() - 1);
            let event = |sequence: u64| Incoming {
                event_id: sequence.to_string(),
                stream: "COMPUTE".into(),
                sequence,
                told: store::Cause::default(),
                cause: Cause::default(),
                change: Err(String::new()),
            };
            Ok(((from..=up_to).map(event).collect(), up_to))
        }

        fn handled(&mut self, _verdicts: &[Verdict]) {}
    }

    /// NATS does not answer, or not before the process is stopped.
    struct Silent {
        answers: bool,
    }

    impl Reader for Silent {
        async fn read(
            &mut self,
            _from: u64,
            _to: u64,
            _max: usize,
        ) -> Result<(Vec<Incoming>, u64), Unavailable> {
            if self.answers {
                return Err(Unavailable("no responders".into()));
            }
            std::future::pending().await
        }

        fn handled(&mut self, _verdicts: &[Verdict]) {}
    }

    /// What survives a process.
    #[derive(Debug, Default)]
    struct Database {
        floor: u64,
        tries: u64,
        handled: Vec<u64>,
    }

    impl Database {
        /// One process; false: it ended when it handled the event `deadly`.
        async fn lived_through(&mut self, found: Found, deadly: u64) -> bool {
            self.read_by(&mut Numbers, found, deadly).await
        }

        async fn read_by(&mut self, reader: &mut impl Reader, found: Found, deadly: u64) -> bool {
            let (commands, mut queue) = mpsc::channel::<Command<()>>(1);
            let marks = Marks {
                floor: self.floor,
                tries: self.tries,
                ..Marks::default()
            };
            let mut again = Again::new("COMPUTE", marks, true);
            let writing = async {
                while let Some(Command::Again {
                    batch,
                    reached,
                    answer,
                }) = queue.recv().await
                {
                    if batch.iter().any(|event| event.sequence == deadly) {
                        return;
                    }
                    self.floor = reached.floor;
                    self.tries = reached.tries;
                    self.handled
                        .extend(batch.iter().map(|event| event.sequence));
                    let _ = answer.send(Ok(vec![Verdict::Applied; batch.len()]));
                }
            };
            tokio::select! {
                () = writing => false,
                read = again.read(found, reader, &commands) => {
                    assert_eq!(again.is_through(), read.is_ok());
                    read.is_ok()
                }
                // Somebody stops it.
                () = tokio::time::sleep(Duration::from_secs(1)) => {
                    assert!(!again.is_through());
                    false
                }
            }
        }
    }

    /// It costs a few processes, not all that there will ever be.
    #[tokio::test]
    async fn an_event_that_ends_each_process_is_left_out_at_last() {
        for (acknowledged, most) in [(0, 5), (DELIVERED, 7)] {
            for deadly in [1, 2, 256, 300, DELIVERED] {
                let found = Found {
                    acknowledged,
                    delivered: DELIVERED,
                    ..Found::default()
                };
                let mut database = Database::default();
                let mut deaths = 0;
                while !database.lived_through(found, deadly).await {
                    deaths += 1;
                    assert!(deaths <= most, "{deadly}: {database:?}");
                }
                let rest = (1..=DELIVERED).filter(|sequence| *sequence != deadly);
                assert!(database.handled.iter().copied().eq(rest), "{deadly}");
                assert_eq!((database.floor, database.tries), (DELIVERED, 0));
            }
        }
    }

    /// Five starts without NATS are no reason to leave an event out.
    #[tokio::test(start_paused = true)]
    async fn what_was_never_read_is_not_counted() {
        let found = Found {
            delivered: DELIVERED,
            ..Found::default()
        };
        let mut database = Database::default();
        for answers in [true, false, true, false, true] {
            let mut silent = Silent { answers };
            assert!(!database.read_by(&mut silent, found, 0).await);
            assert_eq!((database.floor, database.tries), (0, 0));
        }
        assert!(database.lived_through(found, 0).await);
        assert!(database.handled.iter().copied().eq(1..=DELIVERED));
    }

    /// What another gateway has found of a stream counts here too: sequences of the old one
    /// mean nothing, also where the new one has grown past them.
    #[tokio::test]
    async fn a_stream_that_another_gateway_found_to_be_another_is_read_from_its_start() {
        let handled = Marks {
            created: Some(1),
            position: DELIVERED,
            floor: DELIVERED,
            ..Marks::default()
        };
        let anew = Marks {
            created: Some(2),
            position: 7,
            floor: 3,
            restarts: 1,
            ..Marks::default()
        };
        let (commands, mut queue) = mpsc::channel::<Command<()>>(1);
        let writing = async {
            let mut read = Vec::new();
            let mut asked = Vec::new();
            while let Some(command) = queue.recv().await {
                match command {
                    Command::Stream {
                        is_shorter,
                        restarts,
                        answer,
                        ..
                    } => {
                        asked.push((is_shorter, restarts));
                        let _ = answer.send(Ok(if asked.len() == 1 { handled } else { anew }));
                    }
                    Command::Again { batch, answer, .. } => {
                        read.extend(batch.iter().map(|event| event.sequence));
                        let _ = answer.send(Ok(vec![Verdict::Applied; batch.len()]));
                    }
                    _ => panic!("{command:?}"),
                }
            }
            (asked, read)
        };
        let reading = async move {
            let mut again = Again::new("COMPUTE", handled, true);
            let found = |created, last| Found {
                created,
                last,
                delivered: last,
                ..Found::default()
            };
            let old = found(1, DELIVERED);
            again.identify(old, &commands).await.unwrap();
            again.read(old, &mut Numbers, &commands).await.unwrap();
            assert!(again.is_through());
            // What was found may be older than what the other one found.
            assert!(again.identify(old, &commands).await.is_err());
            assert!(!again.is_through());
            let new = found(2, DELIVERED + 9);
            again.identify(new, &commands).await.unwrap();
            again.read(new, &mut Numbers, &commands).await.unwrap();
            // It lost its newest messages, as the next look at it tells.
            again.handled(DELIVERED + 9);
            let _ = again.identify(found(2, DELIVERED), &commands).await;
        };
        let ((asked, read), ()) = tokio::join!(writing, reading);
        assert!(read.into_iter().eq(4..=DELIVERED + 9));
        let expected = [(false, 0), (false, 0), (false, 1), (true, 1)];
        assert_eq!(asked, expected);
    }

    /// It was acknowledged for a database that was set back: nobody else brings it again.
    #[tokio::test]
    async fn what_the_database_does_not_take_is_read_again_before_it_is_left_out() {
        const REFUSED: u64 = 3;
        let found = |acknowledged| Found {
            acknowledged,
            delivered: 9,
            ..Found::default()
        };
        for (acknowledged, tries) in [(REFUSED - 1, 1), (REFUSED, DELIVERIES_MAX)] {
            let (commands, mut queue) = mpsc::channel::<Command<()>>(1);
            let writing = async {
                let (mut floor, mut seen) = (0, 0);
                while let Some(Command::Again {
                    batch,
                    reached,
                    answer,
                }) = queue.recv().await
                {
                    let sequences = || batch.iter().map(|event| event.sequence);
                    let verdict = |sequence| match sequence {
                        REFUSED => Verdict::Retry("not this one".into()),
                        _ => Verdict::Applied,
                    };
                    let verdicts: Vec<_> = sequences().map(verdict).collect();
                    seen += sequences().filter(|sequence| *sequence == REFUSED).count();
                    if !reached.lacks(sequences(), &verdicts) {
                        floor = reached.floor;
                    }
                    let _ = answer.send(Ok(verdicts));
                }
                (floor, seen)
            };
            let reading = async move {
                let mut again = Again::new("COMPUTE", Marks::default(), true);
                let found = found(acknowledged);
                for _ in 1..tries {
                    let read = again.read(found, &mut Numbers, &commands).await;
                    assert!(read.is_err() && !again.is_through());
                }
                again.read(found, &mut Numbers, &commands).await.unwrap();
                assert!(again.is_through());
            };
            let ((floor, seen), ()) = tokio::join!(writing, reading);
            assert_eq!((floor, seen), (9, usize::try_from(tries).unwrap()));
        }
    }

    /// A process that is killed for other reasons goes on from where it was.
    #[tokio::test]
    async fn what_was_stored_is_not_read_once_more() {
        let found = Found {
            delivered: DELIVERED,
            ..Found::default()
        };
        let mut database = Database::default();
        assert!(!database.lived_through(found, 300).await);
        assert!(database.lived_through(found, 0).await);
        assert!(database.handled.iter().copied().eq(1..=DELIVERED));
        assert_eq!((database.floor, database.tries), (DELIVERED, 0));
    }
}
