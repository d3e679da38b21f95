//! An exchange between two sides that do what a test says, on a clock that stands still.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use clap::Parser;
use edd_http1::Trailers;
use edd_route::{Admission, ContainerId, Door, Fact, RouteTable, Settings, UserId};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::time::advance;

use super::super::*;
use crate::config::ServeArgs;
use crate::drain::Drain;
use crate::http::ConnectionFacts;
use crate::http::decide::Upstream;
use crate::http::head::Version;
use crate::http::side::{Ask, Field};
use crate::listener::{Doors, Gate, RequestGate, Worker};
use crate::shared::Shared;
use crate::telemetry::{AccessLog, Metrics};
use crate::tls::CertStore;
use crate::upstream::{Destination, Fleet, UpstreamKey};

#[derive(Parser)]
struct Flags {
    #[command(flatten)]
    serve: ServeArgs,
}

/// What an exchange needs beside its sides.
pub(super) struct Stage {
    pub(super) down: Downstream,
    pub(super) forward: Forward,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// Of a request with this body, to a container that depends on `facts`.
    pub(super) fn new(body: RequestBody, facts: Vec<Fact>) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::create_dir_all(path("certs")).unwrap();
        let flags = [
            "edd-gateway",
            "--certs-dir",
            &path("certs"),
            "--state-dir",
            &path("state"),
            "--body-timeout=60s",
            "--upstream-timeout=30s",
            "--stream-idle-timeout=1h",
        ];
        let config = Flags::parse_from(flags).serve.check().unwrap();
        let metrics = Metrics::register(&mut Registry::default());
        let gate = Gate::new(9, None, 9);
        let table = RouteTable::empty(Settings::new("example", vec![]));
        let shared = Arc::new(Shared {
            table: ArcSwap::new(Arc::new(table)),
            certs: Arc::new(CertStore::open(&config, metrics.clone()).unwrap()),
            doors: Doors::new(),
            request_gate: RequestGate::new(None),
            fleet: Fleet::new(gate.clone(), metrics.clone(), vec![], Handle::current()),
            metrics,
            access: AccessLog::off(),
            drain: Drain::new(),
            config,
            gate,
        });
        let worker = Rc::new(Worker::new(shared));
        let facts_of_client = ConnectionFacts {
            door: Door::PublicHttp,
            peer: ([192, 0, 2, 1], 1).into(),
            is_known: true,
            local: None,
            tls: None,
            admission: None,
        };
        let key = UpstreamKey::Container {
            id: ContainerId::new("c1").unwrap(),
            start: 1,
            port: 80,
            target_port: 80,
        };
        let upstream = Upstream {
            to: Destination::Container {
                key,
                address: ([127, 0, 0, 1], 1).into(),
                owner: UserId(1),
            },
            admission: Admission::new(facts),
            timeout: None,
            connect_timeout: None,
            idle_timeout: None,
            path: None,
        };
        Self {
            down: Downstream::new(&worker, facts_of_client),
            forward: Forward {
                upstream,
                ask: Ask {
                    head: Vec::new(),
                    body,
                    is_head: false,
                    may_switch: true,
                    secure: false,
                },
                expects_continue: false,
                is_repeatable: false,
            },
            _folder: folder,
        }
    }

    /// Plays `scene` with fresh sides.
    pub(super) async fn play(&self, scene: impl AsyncFnOnce(&mut Play<'_, '_>)) {
        let now = Instant::now();
        let worker = &self.down.worker;
        let (to, peer) = (&self.forward.upstream.to, self.down.facts.peer);
        let upstreams = &worker.pool.upstreams;
        let mut attempts = upstreams.attempts(to, &worker.shared.fleet, peer, now);
        let mut choice = attempts.next(true).unwrap();
        let mut exchange = Exchange::begin(&self.down, Version::H11, "POST", "/", now);
        let mut play = Play {
            run: Run::new(&self.forward, &mut exchange, &self.down, &mut choice, now),
            client: Side::default(),
            server: Side::default(),
            alarm: Alarm::new(now + Duration::from_secs(1)),
        };
        scene(&mut play).await;
    }
}

pub(super) struct Play<'r, 'f> {
    pub(super) run: Run<'r, 'f>,
    pub(super) client: Side,
    pub(super) server: Side,
    pub(super) alarm: Alarm,
}

impl Play<'_, '_> {
    /// Lets the pump do what can be done; how the attempt ended, if it did.
    pub(super) async fn go(&mut self) -> Option<End> {
        let mut polls = |cx: &mut Context<'_>| {
            self.run
                .poll(cx, &mut self.client, &mut self.server, &mut self.alarm)
        };
        // As often as its own wakes would have it polled.
        for _ in 0..3 {
            if let Poll::Ready(end) = poll_fn(|cx| Poll::Ready(polls(cx))).await {
                return Some(end);
            }
        }
        None
    }

    /// Goes on for so long, step by step; when it ended, and how.
    pub(super) async fn until(&mut self, limit: Duration) -> (Duration, End) {
        let begun = Instant::now();
        loop {
            if let Some(end) = self.go().await {
                return (begun.elapsed(), end);
            }
            assert!(begun.elapsed() < limit, "no end in {limit:?}");
            advance(STEP).await;
        }
    }

    /// Nothing ends for so long.
    pub(super) async fn lasts(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            let end = self.go().await;
            assert!(end.is_none(), "{end:?} after {:?}", begun.elapsed());
            advance(STEP).await;
        }
    }

    pub(super) fn answers(&mut self, status: u16, body: AnswerBody) {
        self.server.comes(Coming::Head(status, body));
    }
}

pub(super) const STEP: Duration = Duration::from_millis(100);

/// Whether it was `limit` by a clock that goes in steps.
pub(super) fn is_about(time: Duration, limit: Duration) -> bool {
    time >= limit && time <= limit + 3 * STEP
}

pub(super) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What comes from a side.
#[derive(Clone, Copy, Debug)]
pub(super) enum Coming {
    Data(usize),
    End,
    Head(u16, AnswerBody),
    Interim(u16),
    Lost,
    /// Trailers with this `grpc-status`, and the end.
    Status(&'static [u8]),
}

/// A side of an exchange: what it says, and how much it takes.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) coming: VecDeque<Coming>,
    /// What it does not take now, and keeps.
    pub(super) kept: usize,
    pub(super) taken: usize,
    /// It takes nothing.
    pub(super) deaf: bool,
    /// It is gone.
    pub(super) gone: bool,
    pub(super) half_closed: bool,
    pub(super) ended: bool,
    pub(super) switched: bool,
    /// Statuses it was told.
    pub(super) told: Vec<u16>,
    pub(super) aborted: Option<bool>,
    pub(super) begun: bool,
    pub(super) most_kept: usize,
}

impl Side {
    pub(super) fn comes(&mut self, what: Coming) {
        self.coming.push_back(what);
    }

    /// Takes all that is kept.
    pub(super) fn takes(&mut self) {
        self.deaf = false;
        self.taken += std::mem::take(&mut self.kept);
    }
}

/// With so much kept it wants no more.
pub(super) const KEPT_MAX: usize = 10;

pub(super) fn lost() -> SideError {
    SideError::Broke(io::ErrorKind::ConnectionReset.into())
}

impl Outlet for Side {
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        match self.gone {
            true => Poll::Ready(Err(lost())),
            false if self.kept >= KEPT_MAX => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }

    fn put(&mut self, _: &mut Context<'_>, piece: Piece<'_>) -> Result<Room, SideError> {
        if self.gone {
            return Err(lost());
        }
        match piece {
            Piece::Data(data) if self.deaf => self.kept += data.len(),
            Piece::Data(data) => self.taken += data.len(),
            Piece::Trailers(_) => {}
            Piece::End => self.ended = true,
        }
        self.most_kept = self.most_kept.max(self.kept);
        Ok(if self.kept > 0 {
            Room::Full
        } else {
            Room::More
        })
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), SideError>> {
        match self.gone {
            true => Poll::Ready(Err(lost())),
            false if self.kept > 0 => Poll::Pending,
            false => Poll::Ready(Ok(())),
        }
    }

    fn switch(&mut self) {
        self.switched = true;
    }

    fn abort(&mut self, gently: bool) {
        self.aborted = Some(gently);
    }
}

impl Client for Side {
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut Context<'_>, Piece<'_>) -> Room,
    ) -> Poll<Result<(), SideError>> {
        let mut any = false;
        while let Some(coming) = self.coming.pop_front() {
            any = true;
            let room = match coming {
                Coming::Data(count) => take(cx, Piece::Data(&vec![7; count])),
                Coming::End => take(cx, Piece::End),
                _ => return Poll::Ready(Err(lost())),
            };
            if room == Room::Full || matches!(coming, Coming::End) {
                break;
            }
        }
        if any {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<SideError> {
        match self.gone {
            true => Poll::Ready(lost()),
            false => Poll::Pending,
        }
    }

    fn owes_body(&self) -> bool {
        false
    }

    fn is_half_closed(&self) -> bool {
        self.half_closed
    }

    fn inform(&mut self, status: u16, _: &[Field<'_>]) {
        self.told.push(status);
    }

    fn answer(&mut self, head: &AnswerHead<'_>) {
        self.told.push(head.status);
    }
}

impl Server for Side {
    fn ask(&mut self, _: &mut Context<'_>, _: &Ask) -> Result<(), SideError> {
        Ok(())
    }

    fn poll_event(
        &mut self,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut Context<'_>, Event<'_>) -> Room,
    ) -> Poll<Result<(), SideError>> {
        let mut any = false;
        while let Some(coming) = self.coming.pop_front() {
            any = true;
            self.begun = true;
            let view = |status, body| AnswerView {
                status,
                reason: b"",
                fields: &[],
                body,
            };
            let none = AnswerBody::None(None);
            let room = match coming {
                Coming::Data(count) => take(cx, Event::Piece(Piece::Data(&vec![7; count]))),
                Coming::End => {
                    let _ = take(cx, Event::Piece(Piece::Trailers(&Trailers::new())));
                    take(cx, Event::Piece(Piece::End))
                }
                Coming::Status(status) => {
                    let mut trailers = Trailers::new();
                    trailers.push(b"grpc-status", status).unwrap();
                    let _ = take(cx, Event::Piece(Piece::Trailers(&trailers)));
                    take(cx, Event::Piece(Piece::End))
                }
                Coming::Head(status, body) => take(cx, Event::Answered(view(status, body))),
                Coming::Interim(status) => take(cx, Event::Informed(view(status, none))),
                Coming::Lost => return Poll::Ready(Err(lost())),
            };
            if room == Room::Full || matches!(coming, Coming::End | Coming::Status(_)) {
                break;
            }
        }
        if any {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }

    fn has_begun(&self) -> bool {
        self.begun
    }

    fn is_unsent(&self) -> bool {
        false
    }

    fn is_reusable(&self) -> bool {
        false
    }
}
