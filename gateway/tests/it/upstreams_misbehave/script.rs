//! What a raw upstream does, step by step, and the gateway before it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::support::ask::{Asker, Heard, Question, Speaks};
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, read_head};

pub(super) const HOST: &str = "c1.compute.localhost";

/// A step of a script. After the last one the connection takes its next request.
#[derive(Clone, Debug)]
pub(super) enum Act {
    /// Sends this.
    Say(&'static str),
    /// Sends these bytes.
    Bytes(Vec<u8>),
    /// Sends it again and again until nobody takes it any more.
    Endless(&'static [u8]),
    /// Sends it byte by byte, each as a segment of its own.
    Drip(&'static str),
    /// Goes on when the client has seen the first byte of the answer's body.
    Seen,
    /// Reads this many bytes of the request's body.
    Read(usize),
    /// Lets the test know.
    Done,
    /// Ends both directions, with a FIN where nothing is left unread.
    Close,
    /// Ends with a RST.
    Reset,
    /// Says nothing more and keeps the connection until the gateway ends it, then lets the test
    /// know. What comes is left unread.
    Stall,
    /// Ends the sending direction only, and reads what comes until its end.
    HalfClose,
}

use Act::{Bytes, Close, Done, Drip, Endless, HalfClose, Read, Reset, Say, Seen, Stall};

/// Scripts by the path that plays them.
pub(super) type Scripts = Vec<(&'static str, Vec<Act>)>;

/// A gateway before an upstream that plays scripts.
pub(super) struct Stage {
    pub(super) gateway: Gateway,
    _upstream: Origin,
    /// A permit for each answer whose body began to arrive.
    pub(super) seen: Arc<Semaphore>,
    /// A permit for each [`Act::Done`] and each [`Act::Stall`] that ended.
    pub(super) done: Arc<Semaphore>,
    /// How often a path was asked for.
    heads: Arc<HashMap<&'static str, AtomicUsize>>,
    _table: Table,
}

impl Stage {
    /// With one worker, so that every request finds the connections of those before it.
    pub(super) async fn set(scripts: Scripts, options: Options) -> Self {
        let seen = Arc::new(Semaphore::new(0));
        let done = Arc::new(Semaphore::new(0));
        let names = scripts
            .iter()
            .map(|(path, _)| (*path, AtomicUsize::new(0)))
            .collect();
        let heads = Arc::new(names);
        let upstream = upstream("127.64.0.2", scripts, &seen, &done, &heads).await;
        let gateway = Gateway::start(options.flag("--workers", "1")).await;
        let mut table = Table::of(&gateway);
        table.run("c1", 80, upstream.address);
        Self {
            gateway,
            _upstream: upstream,
            seen,
            done,
            heads,
            _table: table,
        }
    }

    pub(super) async fn dial(&self, speaks: Speaks) -> Asker {
        Asker::dial(speaks, self.gateway.addresses.http).await
    }

    pub(super) async fn ask(&self, asker: &mut Asker, path: &str) -> Heard {
        self.put(asker, &Question::get(HOST, path)).await
    }

    pub(super) async fn put(&self, asker: &mut Asker, question: &Question<'_>) -> Heard {
        // What answers before this one have shown says nothing about it.
        self.seen.forget_permits(usize::MAX);
        asker.ask(question, &self.seen).await
    }

    /// Waits for a [`Act::Done`].
    pub(super) async fn done(&self, what: &str) {
        let done = timeout(DEADLINE, self.done.acquire()).await;
        let permit = done.unwrap_or_else(|_| panic!("the upstream never came to its end: {what}"));
        permit.expect("open").forget();
    }

    /// How often the upstream read a head for `path`.
    pub(super) fn asked(&self, path: &str) -> usize {
        self.heads[path].load(Ordering::SeqCst)
    }

    /// Whoever asks next gets what was asked for: on the same connection if it goes on, and on a
    /// new one.
    pub(super) async fn is_sane(&self, asker: &mut Asker, speaks: Speaks, after: &str) {
        for round in 0..3 {
            if round == 0 && !asker.goes_on() {
                continue;
            }
            let mut fresh;
            let asker = match round {
                0 | 1 if asker.goes_on() => &mut *asker,
                _ => {
                    fresh = self.dial(speaks).await;
                    &mut fresh
                }
            };
            let path = format!("/ok/{after}-{round}").replace('/', "_");
            let path = format!("/ok{path}");
            let heard = self.ask(asker, &path).await;
            assert!(
                heard.is(200, &path),
                "after {after} by {speaks:?}: {heard:?}"
            );
        }
    }

    /// Plays every script for clients of both versions.
    pub(super) async fn each(
        &self,
        paths: impl IntoIterator<Item = &'static str>,
        check: impl Fn(&str, Speaks, &Heard),
    ) {
        for path in paths {
            for speaks in [Speaks::H1, Speaks::H2] {
                let mut asker = self.dial(speaks).await;
                let heard = self.ask(&mut asker, path).await;
                check(path, speaks, &heard);
                assert!(
                    heard.field("x-request-id").is_some(),
                    "{path} {speaks:?}: no id, {heard:?}"
                );
                self.is_sane(&mut asker, speaks, path).await;
            }
        }
    }
}

/// Plays scripts; any other path is answered with the path itself.
pub(super) async fn upstream(
    ip: &str,
    scripts: Scripts,
    seen: &Arc<Semaphore>,
    done: &Arc<Semaphore>,
    heads: &Arc<HashMap<&'static str, AtomicUsize>>,
) -> Origin {
    let scripts: Arc<HashMap<&'static str, Vec<Act>>> = Arc::new(scripts.into_iter().collect());
    let (seen, done, heads) = (Arc::clone(seen), Arc::clone(done), Arc::clone(heads));
    Origin::raw(ip, move |_, mut stream: TcpStream| {
        let (scripts, heads) = (Arc::clone(&scripts), Arc::clone(&heads));
        let (seen, done) = (Arc::clone(&seen), Arc::clone(&done));
        async move {
            stream.set_nodelay(true).unwrap();
            loop {
                let head = read_head(&mut stream).await;
                let Some(path) = head.split(' ').nth(1) else {
                    return;
                };
                let Some(script) = scripts.get(path) else {
                    let length = path.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{path}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                    continue;
                };
                heads[path].fetch_add(1, Ordering::SeqCst);
                for act in script {
                    match act.play(&mut stream, &seen, &done).await {
                        Some(()) => {}
                        None => return,
                    }
                }
            }
        }
    })
    .await
}

impl Act {
    /// None ends the connection.
    async fn play(&self, stream: &mut TcpStream, seen: &Semaphore, done: &Semaphore) -> Option<()> {
        match self {
            Say(text) => stream.write_all(text.as_bytes()).await.ok()?,
            Bytes(bytes) => stream.write_all(bytes).await.ok()?,
            Endless(piece) => {
                let pieces = piece.repeat(1 + 16_384 / piece.len());
                while stream.write_all(&pieces).await.is_ok() {}
                done.add_permits(1);
                return None;
            }
            Drip(text) => {
                for byte in text.as_bytes() {
                    stream.write_all(&[*byte]).await.ok()?;
                    tokio::task::yield_now().await;
                }
            }
            Seen => seen.acquire().await.expect("open").forget(),
            Read(len) => {
                stream.read_exact(&mut vec![0; *len]).await.ok()?;
            }
            Done => done.add_permits(1),
            Close => return None,
            Reset => {
                stream.set_zero_linger().ok()?;
                return None;
            }
            Stall => {
                gone(stream).await;
                done.add_permits(1);
                return None;
            }
            HalfClose => {
                stream.shutdown().await.ok()?;
                let _ = stream.read_to_end(&mut Vec::new()).await;
                done.add_permits(1);
                return None;
            }
        }
        Some(())
    }
}

/// Waits until the other side has ended its direction or the connection, without reading.
async fn gone(stream: &TcpStream) {
    loop {
        let ready = stream.ready(Interest::READABLE).await;
        if ready.map_or(true, |ready| ready.is_read_closed()) {
            return;
        }
        if !matches!(stream.take_error(), Ok(None)) {
            return;
        }
        // Something unread is there, so readiness says no more.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
