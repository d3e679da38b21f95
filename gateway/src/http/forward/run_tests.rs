//! The exchange pump between two sides that do what a test says, on a clock that stands still.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use arc_swap::ArcSwap;
use clap::Parser;
use edd_http1::Trailers;
use edd_route::{Admission, ContainerId, Door, Fact, RouteTable, Settings};
use prometheus_client::registry::Registry;
use tokio::runtime::Handle;
use tokio::time::advance;

use super::*;
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
struct Stage {
    down: Downstream,
    forward: Forward,
    _folder: tempfile::TempDir,
}

impl Stage {
    /// Of a request with this body, to a container that depends on `facts`.
    fn new(body: RequestBody, facts: Vec<Fact>) -> Self {
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
    async fn play(&self, scene: impl AsyncFnOnce(&mut Play<'_, '_>)) {
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

struct Play<'r, 'f> {
    run: Run<'r, 'f>,
    client: Side,
    server: Side,
    alarm: Alarm,
}

impl Play<'_, '_> {
    /// Lets the pump do what can be done; how the attempt ended, if it did.
    async fn go(&mut self) -> Option<End> {
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
    async fn until(&mut self, limit: Duration) -> (Duration, End) {
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
    async fn lasts(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            let end = self.go().await;
            assert!(end.is_none(), "{end:?} after {:?}", begun.elapsed());
            advance(STEP).await;
        }
    }

    fn answers(&mut self, status: u16, body: AnswerBody) {
        self.server.comes(Coming::Head(status, body));
    }
}

const STEP: Duration = Duration::from_millis(100);

/// Whether it was `limit` by a clock that goes in steps.
fn is_about(time: Duration, limit: Duration) -> bool {
    time >= limit && time <= limit + 3 * STEP
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

/// What comes from a side.
#[derive(Clone, Copy, Debug)]
enum Coming {
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
struct Side {
    coming: VecDeque<Coming>,
    /// What it does not take now, and keeps.
    kept: usize,
    taken: usize,
    /// It takes nothing.
    deaf: bool,
    /// It is gone.
    gone: bool,
    half_closed: bool,
    ended: bool,
    switched: bool,
    /// Statuses it was told.
    told: Vec<u16>,
    aborted: Option<bool>,
    begun: bool,
    most_kept: usize,
}

impl Side {
    fn comes(&mut self, what: Coming) {
        self.coming.push_back(what);
    }

    /// Takes all that is kept.
    fn takes(&mut self) {
        self.deaf = false;
        self.taken += std::mem::take(&mut self.kept);
    }
}

/// With so much kept it wants no more.
const KEPT_MAX: usize = 10;

fn lost() -> SideError {
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

fn is_complete(end: &End) -> bool {
    matches!(end, End::Complete { reusable: true, .. })
}

#[tokio::test(start_paused = true)]
async fn an_exchange_is_complete_when_both_directions_are() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            play.client.comes(Coming::Data(5));
            play.answers(200, AnswerBody::Open);
            play.server.comes(Coming::Data(3));
            play.server.comes(Coming::End);
            play.lasts(secs(1)).await;
            play.client.comes(Coming::End);
            assert!(is_complete(&play.go().await.unwrap()));
            assert_eq!((play.server.taken, play.client.taken), (5, 3));
            assert!(play.server.ended && play.client.ended);
            assert_eq!(play.client.told, [200]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stalls_is_the_clients_fault_and_silence_after_it_the_upstreams() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            for _ in 0..3 {
                play.client.comes(Coming::Data(1));
                play.lasts(secs(50)).await;
            }
            let (_, end) = play.until(secs(20)).await;
            assert!(
                matches!(end, End::Failed(Failure::ClientStalled)),
                "{end:?}"
            );
        })
        .await;
    stage
        .play(async |play| {
            play.client.comes(Coming::Data(1));
            play.client.comes(Coming::End);
            let (time, end) = play.until(secs(40)).await;
            assert!(matches!(end, End::Failed(Failure::TimedOut)), "{end:?}");
            assert!(is_about(time, secs(30)), "{time:?}");
        })
        .await;
    // An upload that the upstream does not take is the upstream's fault too.
    stage
        .play(async |play| {
            play.server.deaf = true;
            play.client.comes(Coming::Data(KEPT_MAX));
            let (time, end) = play.until(secs(40)).await;
            assert!(matches!(end, End::Failed(Failure::TimedOut)), "{end:?}");
            assert!(is_about(time, secs(30)), "{time:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_for_a_100_gets_one_of_ours_after_a_second() {
    let mut stage = Stage::new(RequestBody::Length(5), vec![]);
    stage.forward.expects_continue = true;
    stage
        .play(async |play| {
            play.lasts(Duration::from_millis(900)).await;
            assert!(play.client.told.is_empty());
            play.lasts(Duration::from_millis(300)).await;
            assert_eq!(play.client.told, [100]);
            play.lasts(secs(3)).await;
            assert_eq!(play.client.told, [100], "once");
        })
        .await;
    // Not where the upstream has said its own.
    stage
        .play(async |play| {
            play.server.comes(Coming::Interim(100));
            play.lasts(secs(3)).await;
            assert_eq!(play.client.told, [100]);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn silence_on_a_stream_is_cut_only_after_its_own_time() {
    let stage = Stage::new(RequestBody::None, vec![]);
    stage
        .play(async |play| {
            play.answers(200, AnswerBody::Open);
            play.server.comes(Coming::Data(1));
            let (time, end) = play.until(secs(3700)).await;
            assert!(matches!(end, End::Cut), "{end:?}");
            assert!(is_about(time, secs(3600)), "{time:?}");
            assert_eq!(play.client.aborted, Some(false));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_an_answered_upload_has_two_seconds_between_its_pieces() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            play.answers(413, AnswerBody::Length(3));
            play.server.comes(Coming::Data(3));
            play.server.comes(Coming::End);
            for _ in 0..5 {
                play.client.comes(Coming::Data(1));
                play.lasts(Duration::from_millis(1500)).await;
            }
            let (_, end) = play.until(secs(1)).await;
            let cut = matches!(
                end,
                End::Complete {
                    reusable: false,
                    ..
                }
            );
            assert!(cut, "{end:?}");
            assert_eq!(play.client.aborted, None);
        })
        .await;
}

/// The upload may rest for as long as the client is busy with the answer.
#[tokio::test(start_paused = true)]
async fn an_early_answer_is_not_cut_while_the_client_reads_it_slowly() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            play.client.deaf = true;
            play.answers(413, AnswerBody::Length(3));
            play.server.comes(Coming::Data(3));
            play.server.comes(Coming::End);
            play.lasts(secs(30)).await;
            assert!(play.client.ended);
            play.client.takes();
            let (time, end) = play.until(secs(5)).await;
            let cut = matches!(
                end,
                End::Complete {
                    reusable: false,
                    ..
                }
            );
            assert!(cut, "{end:?}");
            assert!(is_about(time, UPLOAD_REST), "{time:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_ended_its_side_waits_five_seconds_and_a_tunnel_for_ever() {
    let stage = Stage::new(RequestBody::None, vec![]);
    stage
        .play(async |play| {
            play.client.half_closed = true;
            let (time, end) = play.until(secs(10)).await;
            assert!(matches!(end, End::Failed(Failure::ClientLeft)), "{end:?}");
            assert!(is_about(time, HALF_CLOSED_WAIT), "{time:?}");
        })
        .await;
    // Closed before the switch: what was meant for HTTP is forgotten.
    stage
        .play(async |play| {
            play.client.half_closed = true;
            play.lasts(secs(1)).await;
            play.answers(101, AnswerBody::None(None));
            play.lasts(secs(600)).await;
            assert!(play.client.switched && play.server.switched);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn each_direction_of_a_tunnel_ends_for_itself() {
    let stage = Stage::new(RequestBody::None, vec![]);
    stage
        .play(async |play| {
            play.answers(101, AnswerBody::None(None));
            play.go().await;
            play.client.comes(Coming::Data(2));
            play.client.comes(Coming::End);
            play.lasts(secs(60)).await;
            assert!(play.server.ended && !play.client.ended);
            play.server.comes(Coming::Data(4));
            play.server.comes(Coming::End);
            assert!(is_complete(&play.go().await.unwrap()));
            assert_eq!((play.server.taken, play.client.taken), (2, 4));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_lost_is_a_failure_before_the_answer_and_a_cut_after_it() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    for answered in [false, true] {
        stage
            .play(async |play| {
                if answered {
                    play.answers(200, AnswerBody::Open);
                }
                play.server.comes(Coming::Lost);
                let end = play.go().await.unwrap();
                match answered {
                    true => assert!(matches!(end, End::Cut), "{end:?}"),
                    false => assert!(matches!(end, End::Failed(Failure::Broke(_))), "{end:?}"),
                }
                // What was written may arrive.
                assert_eq!(play.client.aborted, answered.then_some(true));
            })
            .await;
        stage
            .play(async |play| {
                if answered {
                    play.answers(200, AnswerBody::Open);
                    play.go().await;
                }
                play.client.comes(Coming::Lost);
                let end = play.go().await.unwrap();
                let failed = matches!(end, End::Failed(Failure::ClientBroke(_)));
                assert!(failed || answered && matches!(end, End::Cut), "{end:?}");
                assert!(!play.server.ended, "it must not look whole");
            })
            .await;
        stage
            .play(async |play| {
                play.client.comes(Coming::End);
                if answered {
                    play.answers(200, AnswerBody::Open);
                }
                play.go().await;
                play.client.gone = true;
                let end = play.go().await.unwrap();
                let left = matches!(end, End::Failed(Failure::ClientLeft));
                assert!(left || answered && matches!(end, End::Cut), "{end:?}");
            })
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_takes_no_more_is_still_heard() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            play.server.gone = true;
            play.client.comes(Coming::Data(5));
            play.go().await;
            play.answers(413, AnswerBody::Length(3));
            play.server.comes(Coming::Data(3));
            play.server.comes(Coming::End);
            let end = play.go().await.unwrap();
            let complete = matches!(
                end,
                End::Complete {
                    reusable: false,
                    ..
                }
            );
            assert!(complete, "{end:?}");
            assert_eq!(
                (play.client.told.as_slice(), play.client.taken),
                (&[413][..], 3)
            );
        })
        .await;
}

/// One piece at most waits for a side that does not take it, whatever the other one has to say.
#[tokio::test(start_paused = true)]
async fn nothing_piles_up_before_a_side_that_takes_nothing() {
    let stage = Stage::new(RequestBody::Open, vec![]);
    stage
        .play(async |play| {
            (play.client.deaf, play.server.deaf) = (true, true);
            play.answers(200, AnswerBody::Open);
            for _ in 0..100 {
                play.client.comes(Coming::Data(10));
                play.server.comes(Coming::Data(10));
            }
            play.lasts(secs(5)).await;
            assert_eq!((play.client.most_kept, play.server.most_kept), (10, 10));
            assert_eq!(
                (play.client.coming.len(), play.server.coming.len()),
                (99, 99)
            );
            play.client.takes();
            play.server.takes();
            play.lasts(secs(1)).await;
            assert_eq!((play.client.taken, play.server.taken), (1000, 1000));
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_exchange_ends_with_what_admitted_it_and_with_the_drain() {
    let fact = Fact::new();
    let stage = Stage::new(RequestBody::None, vec![fact.clone()]);
    stage
        .play(async |play| {
            play.answers(200, AnswerBody::Open);
            play.lasts(secs(10)).await;
            fact.revoke();
            assert!(matches!(play.go().await, Some(End::Cut)));
            assert_eq!(play.client.aborted, Some(false));
        })
        .await;
    stage
        .play(async |play| {
            let end = play.go().await.unwrap();
            assert!(matches!(end, End::Failed(Failure::Revoked)), "{end:?}");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn the_status_of_a_grpc_call_is_recorded_from_its_trailers() {
    let stage = Stage::new(RequestBody::None, vec![]);
    for (is_grpc, said, status) in [
        (true, &b"14"[..], Some(14)),
        (true, b"99999", None),
        (true, b"+1", None),
        (false, b"14", None),
    ] {
        stage
            .play(async |play| {
                play.run.exchange.is_grpc = is_grpc;
                play.answers(200, AnswerBody::Open);
                play.server.comes(Coming::Status(said));
                assert!(is_complete(&play.go().await.unwrap()));
                assert_eq!(play.run.exchange.grpc_status, status, "{said:?}");
            })
            .await;
    }
}
