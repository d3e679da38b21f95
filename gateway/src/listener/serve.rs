//! What becomes of an accepted connection: detection, TLS, and whoever speaks the protocol.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use edd_detect::{ClientHello, HelloError, Verdict};
use edd_route::decide::{TlsDecision, TlsRefusal};
use edd_route::{Door, Host};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tracing::debug;

use super::answer::Answer;
use super::close::close;
use super::first::{First, Patience, read_first};
use super::proxy_in::{Identified, Who, identify};
use super::{Permit, Prefixed, Refused, Worker};
use crate::http::{ConnectionFacts, serve_h1, serve_h2};
use crate::shared::Shared;
use crate::ssh::SshServer;
use crate::tcp::{self, Caller, RawKind};
use crate::telemetry::ConnectionGauge;
use crate::tls::{HandshakeError, Secured};

/// A connection that was let in, and nothing read from it yet.
#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) peer: SocketAddr,
    pub(super) door: Door,
    pub(super) held: Held,
}

/// What a connection holds for as long as it lives, whoever serves it.
#[derive(Debug)]
pub(super) struct Held {
    permit: Permit,
    _gauge: ConnectionGauge,
    _live: TaskTrackerToken,
}

impl Held {
    /// Of a connection that came to `door`.
    pub(super) fn of(shared: &Shared, door: Door, permit: Permit) -> Self {
        Self {
            permit,
            _gauge: shared.metrics.connection(label(door)),
            _live: shared.drain.guard(),
        }
    }

    /// Counts the connection for its client, if it was not when it came.
    fn count_for(&mut self, client: IpAddr) -> Result<(), Refused> {
        self.permit.count_for(client)
    }
}

/// The metric's label.
fn label(door: Door) -> &'static str {
    match door {
        Door::Dynamic(_) => "dynamic",
        Door::PublicHttp => "http",
        Door::PublicHttps => "https",
    }
}

/// Serves one connection to its end. Every wait in here has a deadline.
pub(super) async fn serve(accepted: Accepted, worker: &Rc<Worker>, ssh: &SshServer) {
    // Each part of its life is boxed and gone when it is over: who is served for
    // hours does not hold what it took to find out what it speaks, and who has
    // said nothing yet does not hold what it takes to serve it.
    if let Some((rest, _held)) = Box::pin(begin(accepted, worker, ssh)).await {
        rest.await;
    }
}

/// The rest of a connection's life.
type Rest<'w> = Pin<Box<dyn Future<Output = ()> + 'w>>;

/// Finds out whose it is and what it speaks; returns whoever serves it, if anyone does.
async fn begin<'w>(
    accepted: Accepted,
    worker: &'w Rc<Worker>,
    ssh: &SshServer,
) -> Option<(Rest<'w>, Held)> {
    let Accepted {
        mut stream,
        peer: messenger,
        door,
        mut held,
    } = accepted;
    let shared = &worker.shared;
    if let Door::Dynamic(port) = door
        && !shared.table().port_has_rules(port)
    {
        shared.metrics.connection_refused("no_rule");
        close(stream, b"").await;
        return None;
    }
    let begun = Instant::now();
    let mut patience = Patience {
        deadline: begun + shared.config.timeouts.header,
        silence: matches!(door, Door::Dynamic(_)).then_some(SILENCE),
        draining: shared.drain.idle(),
    };
    let (peer, who, bytes) = match identify(&mut stream, messenger, &shared.config, patience).await
    {
        Ok(Identified {
            client,
            who,
            bytes,
            was_silent,
        }) => {
            if was_silent {
                patience.silence = Some(Duration::ZERO);
            }
            (client, who, bytes)
        }
        Err(unidentified) => {
            debug!(peer = %messenger, ?door, %unidentified, "refused");
            shared.metrics.connection_refused(unidentified.label());
            return None;
        }
    };
    // Who stands for himself was counted when he came, unless he is a trusted proxy.
    if who != Who::Peer
        && let Err(refused) = held.count_for(peer.ip())
    {
        debug!(%peer, ?door, %refused, "refused");
        shared.metrics.connection_refused(refused.label());
        return None;
    }
    let first = read_first(&mut stream, bytes, patience, shared.gate.beginnings()).await;
    let announces = shared.fleet.announces();
    let connection = Connection {
        worker,
        door,
        peer,
        who,
        // A system call that hardly anybody needs.
        local: announces.then(|| stream.local_addr().ok()).flatten(),
        begun,
        deadline: patience.deadline,
    };
    let rest = match (door, first) {
        (_, First::Crowded) => {
            debug!(%peer, ?door, "refused: too much is held of connections that are not clear yet");
            shared.metrics.connection_refused("first_bytes_limit");
            return None;
        }
        (Door::Dynamic(_), First::Known(Verdict::Ssh, bytes)) => {
            match stream.into_std() {
                Ok(stream) => ssh.hand_over(stream, bytes, peer, held),
                Err(error) => debug!(%peer, %error, "connection lost on its way to SSH"),
            }
            return None;
        }
        (Door::Dynamic(port), first) => connection.dynamic(port, stream, first).await,
        (Door::PublicHttp, first) => connection.public_http(stream, first).await,
        (Door::PublicHttps, first) => connection.public_https(stream, first).await,
    };
    rest.map(|rest| (rest, held))
}

/// What is known of a connection from its first byte to its last.
struct Connection<'w> {
    worker: &'w Rc<Worker>,
    door: Door,
    peer: SocketAddr,
    who: Who,
    local: Option<SocketAddr>,
    begun: Instant,
    /// For the first bytes and the TLS handshake together.
    deadline: Instant,
}

impl<'w> Connection<'w> {
    async fn public_http(self, stream: TcpStream, first: First) -> Option<Rest<'w>> {
        match first {
            First::Known(Verdict::Http1, bytes) => return Some(self.http1(stream, bytes)),
            First::Known(Verdict::Http2Preface, bytes) => return Some(self.http2(stream, bytes)),
            First::Known(..) => self.answer(stream, Answer::NotHttp).await,
            First::Ended(bytes) | First::Silent(bytes) if !bytes.is_empty() => {
                self.answer(stream, Answer::NotHttp).await;
            }
            First::TimedOut(bytes, _) if !bytes.is_empty() => {
                self.answer(stream, Answer::Timeout).await;
            }
            First::Crowded
            | First::Ended(_)
            | First::Gone
            | First::Silent(_)
            | First::TimedOut(..) => {}
        }
        None
    }

    async fn public_https(self, stream: TcpStream, first: First) -> Option<Rest<'w>> {
        match first {
            First::Known(Verdict::Tls(hello), bytes) => {
                return self.tls(stream, bytes, hello).await;
            }
            First::Known(Verdict::BadTls(error), _) => self.bad_tls(stream, error).await,
            First::Known(Verdict::Http1 | Verdict::Http2Preface, _) => {
                self.answer(stream, Answer::NotTls).await;
            }
            First::TimedOut(_, true) => {
                self.worker.shared.metrics.tls_handshake("timeout", "none");
            }
            First::Crowded
            | First::Ended(_)
            | First::Gone
            | First::Known(..)
            | First::Silent(_)
            | First::TimedOut(_, false) => close(stream, b"").await,
        }
        None
    }

    async fn dynamic(self, port: u16, stream: TcpStream, first: First) -> Option<Rest<'w>> {
        match first {
            First::Known(Verdict::Http1, bytes) => Some(self.http1(stream, bytes)),
            First::Known(Verdict::Http2Preface, bytes) => Some(self.http2(stream, bytes)),
            First::Known(Verdict::Tls(hello), bytes) => self.tls(stream, bytes, hello).await,
            First::Known(Verdict::BadTls(error), _) => {
                self.bad_tls(stream, error).await;
                None
            }
            First::Known(_, bytes)
            | First::Silent(bytes)
            | First::Ended(bytes)
            | First::TimedOut(bytes, false) => self.raw(port, stream, bytes).await,
            First::TimedOut(_, true) => {
                self.worker.shared.metrics.tls_handshake("timeout", "none");
                None
            }
            First::Crowded | First::Gone => None,
        }
    }

    async fn raw(self, port: u16, stream: TcpStream, bytes: Bytes) -> Option<Rest<'w>> {
        let shared = &self.worker.shared;
        let table = shared.table();
        match table.decide_raw(port) {
            Ok(to) => {
                let stream = Prefixed::new(bytes, stream);
                let revision = table.revision;
                let raw = tcp::raw(shared, stream, self.caller(), to, RawKind::Tcp, revision);
                Some(Box::pin(raw))
            }
            Err(refusal) => {
                debug!(peer = %self.peer, port, %refusal, "closed");
                shared.metrics.connection_refused("no_owner");
                close(stream, b"").await;
                None
            }
        }
    }

    async fn tls(self, stream: TcpStream, bytes: Bytes, hello: ClientHello) -> Option<Rest<'w>> {
        let shared = &self.worker.shared;
        let table = shared.table();
        let name = hello.sni.as_deref().map(Host::parse);
        let decision = match &name {
            None => table.decide_tls(self.door, None),
            Some(Ok(name)) => table.decide_tls(self.door, Some(name)),
            // No such container. On the public port TLS itself says what is wrong.
            Some(Err(_)) if matches!(self.door, Door::Dynamic(_)) => {
                TlsDecision::Close(TlsRefusal::UnknownName)
            }
            Some(Err(_)) => TlsDecision::Terminate,
        };
        let revision = table.revision;
        drop(table);
        match decision {
            TlsDecision::Close(refusal) => {
                debug!(peer = %self.peer, door = ?self.door, %refusal, "closed");
                shared.metrics.connection_refused("tls_name");
                close(stream, &alert(UNRECOGNIZED_NAME)).await;
                None
            }
            TlsDecision::Passthrough(to) => {
                let stream = Prefixed::new(bytes, stream);
                let kind = RawKind::TlsPassthrough;
                let raw = tcp::raw(shared, stream, self.caller(), to, kind, revision);
                Some(Box::pin(raw))
            }
            TlsDecision::Terminate => {
                let stream = Prefixed::new(bytes, stream);
                // Boxed: most that wait have not come so far.
                Box::pin(self.terminate(stream, hello.sni)).await
            }
        }
    }

    async fn terminate(self, stream: Prefixed<TcpStream>, sni: Option<String>) -> Option<Rest<'w>> {
        let certs = &self.worker.shared.certs;
        match certs.accept(stream, sni, self.deadline).await {
            Ok((stream, secured)) => {
                let h2 = secured.alpn_h2;
                let facts = self.facts(Some(secured));
                Some(match h2 {
                    true => Box::pin(serve_h2(stream, facts, self.worker)),
                    false => Box::pin(serve_h1(stream, facts, self.worker)),
                })
            }
            Err(HandshakeError::Failed {
                error,
                last,
                stream,
            }) => {
                debug!(peer = %self.peer, %error, "TLS handshake failed");
                close(stream.into_parts().1, &last).await;
                None
            }
            Err(HandshakeError::TimedOut) => {
                debug!(peer = %self.peer, "TLS handshake timed out");
                None
            }
        }
    }

    async fn bad_tls(self, stream: TcpStream, error: HelloError) {
        debug!(peer = %self.peer, %error, "TLS handshake failed");
        self.worker.shared.metrics.tls_handshake("failed", "none");
        close(stream, &alert(DECODE_ERROR)).await;
    }

    async fn answer(self, stream: TcpStream, answer: Answer) {
        let text = answer.give(&self.worker.shared, self.peer, self.begun.elapsed());
        close(stream, text.as_bytes()).await;
    }

    fn caller(&self) -> Caller {
        Caller {
            peer: self.peer,
            is_known: self.who != Who::Unknown,
        }
    }

    fn http1(self, stream: TcpStream, bytes: Bytes) -> Rest<'w> {
        let stream = Prefixed::new(bytes, stream);
        Box::pin(serve_h1(stream, self.facts(None), self.worker))
    }

    fn http2(self, stream: TcpStream, bytes: Bytes) -> Rest<'w> {
        let stream = Prefixed::new(bytes, stream);
        Box::pin(serve_h2(stream, self.facts(None), self.worker))
    }

    fn facts(&self, tls: Option<Secured>) -> ConnectionFacts {
        ConnectionFacts {
            door: self.door,
            peer: self.peer,
            is_known: self.who != Who::Unknown,
            local: self.local,
            tls,
            admission: None,
        }
    }
}

/// A fatal alert in a record of its own (RFC 8446, section 6).
fn alert(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

const DECODE_ERROR: u8 = 50;
const UNRECOGNIZED_NAME: u8 = 112;

/// Contract with users of server-first protocols: so long their clients wait for the first byte.
const SILENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F>(_: impl FnOnce(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    type Thread = &'static Rc<Worker>;
    type Ssh = &'static SshServer;

    /// S13: what a connection costs before it has said anything, and what is left of that after.
    #[test]
    fn waiting_and_being_served_hold_little() {
        let waiting = size(|a: Accepted, w: Thread, s: Ssh| begin(a, w, s));
        let around = size(|a: Accepted, w: Thread, s: Ssh| serve(a, w, s));
        type Tls = tokio_rustls::server::TlsStream<crate::tls::Together<Prefixed<TcpStream>>>;
        let h1 = size(|io: Box<Tls>, facts, w: Thread| serve_h1(io, facts, w));
        eprintln!("waiting {waiting}, around what serves {around}, h1 {h1}");
        assert!(waiting <= 2048, "{waiting}");
        assert!(around <= 512, "{around}");
        // Optimised it is less.
        assert!(h1 <= 5 * 1024, "{h1}");
    }
}
