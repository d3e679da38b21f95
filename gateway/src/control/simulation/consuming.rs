//! Plays `sources::events` with the consumers of the event library.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::sync::MutexGuard;
use std::time::Duration;

use edd_events::consumer::{CatchUp, Silence, Unavailable, Verdict};
use edd_events::envelope::Cause;
use edd_route::Origin;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::opening::Opening;
use super::process::{Opened, Process};
use super::streams::{Message, STREAMS};
use crate::control::reconcile::{Change, Stamp};
use crate::control::sources::again::{Again, Reader};
use crate::control::status::{DatabaseStatus, Status};
use crate::control::store;
use crate::control::writer::{Command, Floor, Incoming};

/// Most events of one batch.
const BATCH_MAX: usize = 8;

/// A database that others share may be away for so long before they get the events.
const HAND_BACK_AFTER: Duration = Duration::from_secs(2);

/// How often to look how far the durable consumer is, until all is in effect.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

type Commands = mpsc::Sender<Command<Opening>>;

impl Process {
    pub(super) async fn events(
        &self,
        commands: &Commands,
        mut sessions: watch::Receiver<Option<Opened>>,
    ) {
        let mut after = 0;
        let mut is_first = true;
        loop {
            let is_later =
                |opened: &Option<Opened>| opened.as_ref().is_some_and(|o| o.number > after);
            let opened = sessions.wait_for(is_later).await.expect("it runs").clone();
            let opened = opened.expect("there");
            let number = opened.number;
            let anew = |later: &Option<Opened>| {
                let later = later.as_ref();
                later.is_some_and(|l| l.number > number && (l.lost || l.replaced))
            };
            tokio::select! {
                biased;
                _ = sessions.wait_for(anew) => {}
                later = self.set_back(number) => after = later - 1,
                () = self.away() => after = number,
                () = self.consume(commands, opened, is_first) => {}
            }
            is_first = false;
            for (stream, making, sequence) in std::mem::take(&mut *self.held()) {
                self.world
                    .hand_back(self.seat, (stream, making), &[sequence]);
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<(usize, u32, u64)>> {
        self.held
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Ends when a later opening than the `number`th found the database older than it was.
    async fn set_back(&self, number: u64) -> u64 {
        let mut status = self.board.watch();
        let later = status.wait_for(|status| status.set_back > number).await;
        later.expect("it runs").set_back
    }

    /// Ends when a database that others share has been away for longer than a moment.
    async fn away(&self) {
        if self.world.gateways() == 1 {
            return std::future::pending().await;
        }
        let is_away = |status: &Status| status.database == DatabaseStatus::Unavailable;
        let mut status = self.board.watch();
        loop {
            let _ = status.wait_for(|status| !is_away(status)).await;
            let _ = status.wait_for(is_away).await;
            let back = status.wait_for(|status| !is_away(status));
            if tokio::time::timeout(HAND_BACK_AFTER, back).await.is_err() {
                return;
            }
        }
    }

    async fn consume(&self, commands: &Commands, opened: Opened, is_first: bool) {
        let mut agains = Vec::new();
        for (stream, name) in STREAMS.into_iter().enumerate() {
            let marks = opened.streams.get(name).copied().unwrap_or_default();
            let mut again = Again::new(name, marks, is_first);
            loop {
                self.world.point(self.seat).await;
                self.world.nats(self.seat).await;
                let found = self.world.found(stream);
                if again.identify(found, commands).await.is_ok() {
                    break;
                }
                self.world.pause(500).await;
            }
            agains.push(again);
        }
        self.board.update(|status| status.consuming = true);
        let through = [Cell::new(false), Cell::new(false)];
        let compute = agains.pop().expect("two");
        let auth = agains.pop().expect("two");
        tokio::join!(
            self.consumer(0, auth, &through[0], commands),
            self.consumer(1, compute, &through[1], commands),
            self.caught_up(&through, commands, opened.number),
        );
    }

    async fn caught_up(&self, through: &[Cell<bool>; 2], commands: &Commands, number: u64) {
        let mut told = false;
        loop {
            let now = through.iter().all(Cell::get);
            let has_nats = self.world.lock().seats[self.seat].has_nats();
            if now && has_nats && (!told || self.world.percent(5)) {
                let floors = STREAMS.into_iter().enumerate().map(|(stream, name)| {
                    let found = self.world.found(stream);
                    Floor {
                        stream: name,
                        created: found.created,
                        sequence: found.acknowledged,
                    }
                });
                let floors = floors.collect();
                self.world.point(self.seat).await;
                let _ = commands.send(Command::Acknowledged(number, floors)).await;
            }
            if now && !told {
                let _ = commands.send(Command::CaughtUp(number)).await;
            }
            if told && !now {
                self.board.update(|status| status.caught_up = false);
            }
            told = now;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn consumer(
        &self,
        stream: usize,
        mut again: Again,
        through: &Cell<bool>,
        commands: &Commands,
    ) {
        let others = self.world.gateways() > 1;
        let mut catch_up = CatchUp::default();
        let mut silence = Silence::default();
        loop {
            self.world.nats(self.seat).await;
            self.world.bind(stream);
            let making = self.world.making(stream);
            let found = self.world.found(stream);
            let (state, of) = self.world.states(stream);
            self.world.point(self.seat).await;
            let mut reader = Reading {
                process: self,
                stream,
                making,
                last: 0,
            };
            let greeted = async {
                again.identify(found, commands).await?;
                again.read(found, &mut reader, commands).await
            };
            if greeted.await.is_err() {
                self.world.pause(5_000).await;
                continue;
            }
            catch_up.bind(&state, &of, true, false);
            let mut look_at = Instant::now();
            loop {
                if !through.replace(catch_up.is_done()) && through.get() {
                    let all = 1..=catch_up.target();
                    super::model::are_durable(&self.world, (stream, making), all);
                }
                if others {
                    // Whoever is first.
                    self.world.pause(5).await;
                }
                let max =
                    1 + usize::try_from(self.shared.table().revision).unwrap_or(0) % BATCH_MAX;
                let before = self.world.found(stream).delivered;
                let Some(batch) = self.world.fetch(self.seat, (stream, making), max) else {
                    break;
                };
                if batch.is_empty() {
                    if !catch_up.is_done() && Instant::now() >= look_at {
                        let (state, _) = self.world.states(stream);
                        self.world.point(self.seat).await;
                        catch_up.look(&state, Instant::now());
                        look_at = Instant::now() + LOOK_INTERVAL;
                        if catch_up.is_quiet(Instant::now()) {
                            self.world.lock().counts.bound_again += 1;
                            break;
                        }
                        continue;
                    }
                    let (state, _) = self.world.states(stream);
                    if silence.look(&state, Instant::now()) {
                        self.world.lock().counts.bound_again += 1;
                        break;
                    }
                    let news = self.world.news.notified();
                    let _ = tokio::time::timeout(LOOK_INTERVAL, news).await;
                    continue;
                }
                let (state, _) = self.world.states(stream);
                let delivered = batch
                    .iter()
                    .map(|(sequence, _)| (stream, making, *sequence));
                self.held().extend(delivered);
                self.world.point(self.seat).await;
                let restarts = again.restarts();
                self.work((stream, making), restarts, &batch, commands)
                    .await;
                for (sequence, _) in &batch {
                    let deliveries = 1 + u64::from(*sequence <= before);
                    catch_up.handled(*sequence, deliveries, state.pending);
                }
                look_at = match catch_up.is_near() {
                    true => Instant::now(),
                    false => Instant::now() + LOOK_INTERVAL,
                };
            }
            if through.replace(false) {
                catch_up.begin_again();
            }
        }
    }

    async fn work(
        &self,
        of: (usize, u32),
        restarts: u64,
        batch: &[(u64, Message)],
        commands: &Commands,
    ) {
        let (stream, making) = of;
        let sequences: Vec<u64> = batch.iter().map(|(sequence, _)| *sequence).collect();
        let verdicts = loop {
            let (answer, verdicts) = oneshot::channel();
            let events = batch.iter().map(|(at, event)| incoming(stream, *at, event));
            let command = Command::Events {
                batch: events.collect(),
                restarts,
                answer,
            };
            let sent = commands.send(command).await;
            assert!(sent.is_ok(), "the writer ends with the process");
            match verdicts.await.expect("an answer") {
                Ok(verdicts) => break verdicts,
                Err(_unavailable) => {
                    self.world.pause(5_000).await;
                    self.world.progress(self.seat, of, &sequences);
                }
            }
        };
        assert_eq!(verdicts.len(), batch.len());
        for ((sequence, message), verdict) in batch.iter().zip(verdicts) {
            self.world.point(self.seat).await;
            if let Verdict::Reject(_) = verdict {
                assert!(message.what.is_none(), "a good event refused: {message:?}");
                self.world.nats(self.seat).await;
                let letter = (stream, making, *sequence);
                self.world.lock().dead_letters.insert(letter);
                self.world.point(self.seat).await;
            } else {
                super::model::is_durable(&self.world, message);
            }
            self.world.acknowledge(self.seat, of, *sequence);
            self.held().remove(&(stream, making, *sequence));
        }
    }
}

/// The stream past its durable consumer.
struct Reading<'a> {
    process: &'a Process,
    stream: usize,
    making: u32,
    /// Events that were read last.
    last: usize,
}

impl Reader for Reading<'_> {
    async fn read(
        &mut self,
        from: u64,
        to: u64,
        max: usize,
    ) -> Result<(Vec<Incoming>, u64), Unavailable> {
        let Process { world, seat, .. } = self.process;
        world.point(*seat).await;
        let up_to = to.min(from + u64::try_from(max.min(BATCH_MAX)).expect("small") - 1);
        let has_nats = world.lock().seats[*seat].has_nats();
        let messages = world.read(self.stream, self.making, from..=up_to);
        let messages = messages.filter(|_| has_nats);
        let messages = messages.ok_or_else(|| Unavailable("another stream".into()))?;
        world.lock().counts.read += 1;
        self.last = messages.len();
        let events = messages
            .iter()
            .map(|(at, event)| incoming(self.stream, *at, event));
        Ok((events.collect(), up_to))
    }

    fn handled(&mut self, verdicts: &[Verdict]) {
        if verdicts.len() < self.last {
            self.process.world.left_out();
        }
    }
}

fn incoming(stream: usize, sequence: u64, message: &Message) -> Incoming {
    let stamp = Stamp {
        version: message.version,
        sequence,
    };
    let origin = Origin::Event {
        subject: "simulated".into(),
        sequence,
        event_id: message.event_id.clone(),
        at_ms: 0,
    };
    let change = match &message.what {
        Some(what) => Ok(Change {
            stamp,
            origin,
            what: what.clone(),
        }),
        None => Err("poison".to_owned()),
    };
    Incoming {
        event_id: message.event_id.clone(),
        stream: STREAMS[stream].to_owned(),
        sequence,
        told: store::Cause {
            subject: "simulated".to_owned(),
            event_id: message.event_id.clone(),
            ..store::Cause::default()
        },
        cause: Cause {
            causation_id: Some(message.event_id.clone()),
            ..Cause::default()
        },
        change,
    }
}
