//! What becomes of an accepted connection: detection, TLS, and whoever speaks the protocol.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use edd_detect::{ClientHello, HelloError, Verdict};
use edd_route::decide::{TlsDecision, TlsRefusal};
use edd_route::{Door, Host};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::debug;

use super::accept::{Accepted, Held};
use super::answer::Answer;
use super::close::close;
use super::first::{First, Patience, read_first};
use super::proxy_in::{Identified, identify};
use super::{Prefixed, Worker};
use crate::http::{ConnectionFacts, serve_h1, serve_h2};
use crate::ssh::SshServer;
use crate::tcp::{self, RawKind};
use crate::tls::{HandshakeError, Secured};

/// Serves one connection to its end. Every wait in here has a deadline.
pub(super) async fn serve(accepted: Accepted, worker: &Rc<Worker>, ssh: &SshServer) {
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
        return close(stream, b"").await;
    }
    let begun = Instant::now();
    let mut patience = Patience {
        deadline: begun + shared.config.timeouts.header,
        silence: matches!(door, Door::Dynamic(_)).then_some(SILENCE),
        draining: shared.drain.idle(),
    };
    let (peer, bytes) = match identify(&mut stream, messenger, &shared.config, patience).await {
        Ok(Identified {
            client,
            bytes,
            was_silent,
        }) => {
            if was_silent {
                patience.silence = Some(Duration::ZERO);
            }
            (client, bytes)
        }
        Err(unidentified) => {
            debug!(peer = %messenger, ?door, %unidentified, "refused");
            shared.metrics.connection_refused(unidentified.label());
            return;
        }
    };
    if let Err(refused) = held.count_for(peer.ip()) {
        debug!(%peer, ?door, %refused, "refused");
        shared.metrics.connection_refused(refused.label());
        return;
    }
    let first = read_first(&mut stream, bytes, patience).await;
    let connection = Connection {
        worker,
        door,
        peer,
        begun,
        deadline: patience.deadline,
    };
    match door {
        Door::Dynamic(port) => connection.dynamic(port, stream, first, ssh, held).await,
        Door::PublicHttp => connection.public_http(stream, first).await,
        Door::PublicHttps => connection.public_https(stream, first).await,
    }
}

/// What is known of a connection from its first byte to its last.
struct Connection<'w> {
    worker: &'w Rc<Worker>,
    door: Door,
    peer: SocketAddr,
    begun: Instant,
    /// For the first bytes and the TLS handshake together.
    deadline: Instant,
}

impl Connection<'_> {
    async fn public_http(self, stream: TcpStream, first: First) {
        match first {
            First::Known(Verdict::Http1, bytes) => self.http1(stream, bytes).await,
            First::Known(Verdict::Http2Preface, bytes) => self.http2(stream, bytes).await,
            First::Known(..) => self.answer(stream, Answer::NotHttp).await,
            First::Ended(bytes) | First::Silent(bytes) if !bytes.is_empty() => {
                self.answer(stream, Answer::NotHttp).await;
            }
            First::TimedOut(bytes, _) if !bytes.is_empty() => {
                self.answer(stream, Answer::Timeout).await;
            }
            First::Ended(_) | First::Gone | First::Silent(_) | First::TimedOut(..) => {}
        }
    }

    async fn public_https(self, stream: TcpStream, first: First) {
        match first {
            First::Known(Verdict::Tls(hello), bytes) => self.tls(stream, bytes, hello).await,
            First::Known(Verdict::BadTls(error), _) => self.bad_tls(stream, error).await,
            First::Known(Verdict::Http1 | Verdict::Http2Preface, _) => {
                self.answer(stream, Answer::NotTls).await;
            }
            First::TimedOut(_, true) => {
                self.worker.shared.metrics.tls_handshake("timeout", "none");
            }
            First::Ended(_)
            | First::Gone
            | First::Known(..)
            | First::Silent(_)
            | First::TimedOut(_, false) => close(stream, b"").await,
        }
    }

    async fn dynamic(
        self,
        port: u16,
        stream: TcpStream,
        first: First,
        ssh: &SshServer,
        held: Held,
    ) {
        match first {
            First::Known(Verdict::Http1, bytes) => self.http1(stream, bytes).await,
            First::Known(Verdict::Http2Preface, bytes) => self.http2(stream, bytes).await,
            First::Known(Verdict::Ssh, bytes) => match stream.into_std() {
                Ok(stream) => ssh.hand_over(stream, bytes, self.peer, held),
                Err(error) => {
                    debug!(peer = %self.peer, %error, "connection lost on its way to SSH")
                }
            },
            First::Known(Verdict::Tls(hello), bytes) => self.tls(stream, bytes, hello).await,
            First::Known(Verdict::BadTls(error), _) => self.bad_tls(stream, error).await,
            First::Known(_, bytes)
            | First::Silent(bytes)
            | First::Ended(bytes)
            | First::TimedOut(bytes, false) => self.raw(port, stream, bytes).await,
            First::TimedOut(_, true) => {
                self.worker.shared.metrics.tls_handshake("timeout", "none");
            }
            First::Gone => {}
        }
    }

    async fn raw(self, port: u16, stream: TcpStream, bytes: Bytes) {
        let table = self.worker.shared.table();
        match table.decide_raw(port) {
            Ok(to) => {
                let stream = Prefixed::new(bytes, stream);
                let shared = &self.worker.shared;
                tcp::raw(shared, stream, self.peer, to, RawKind::Tcp, table.revision).await;
            }
            Err(refusal) => {
                debug!(peer = %self.peer, port, %refusal, "closed");
                self.worker.shared.metrics.connection_refused("no_owner");
                close(stream, b"").await;
            }
        }
    }

    async fn tls(self, stream: TcpStream, bytes: Bytes, hello: ClientHello) {
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
        match decision {
            TlsDecision::Close(refusal) => {
                debug!(peer = %self.peer, door = ?self.door, %refusal, "closed");
                shared.metrics.connection_refused("tls_name");
                close(stream, &alert(UNRECOGNIZED_NAME)).await;
            }
            TlsDecision::Passthrough(to) => {
                let stream = Prefixed::new(bytes, stream);
                let kind = RawKind::TlsPassthrough;
                tcp::raw(shared, stream, self.peer, to, kind, table.revision).await;
            }
            TlsDecision::Terminate => {
                drop(table);
                self.terminate(Prefixed::new(bytes, stream), hello.sni)
                    .await;
            }
        }
    }

    async fn terminate(self, stream: Prefixed<TcpStream>, sni: Option<String>) {
        let certs = &self.worker.shared.certs;
        match certs.accept(stream, sni, self.deadline).await {
            Ok((stream, secured)) => {
                let h2 = secured.alpn_h2;
                let facts = self.facts(Some(secured));
                if h2 {
                    serve_h2(stream, facts, self.worker).await;
                } else {
                    serve_h1(stream, facts, self.worker).await;
                }
            }
            Err(HandshakeError::Failed { error, stream }) => {
                debug!(peer = %self.peer, %error, "TLS handshake failed");
                close(stream.into_parts().1, b"").await;
            }
            Err(HandshakeError::TimedOut) => debug!(peer = %self.peer, "TLS handshake timed out"),
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

    async fn http1(self, stream: TcpStream, bytes: Bytes) {
        let stream = Prefixed::new(bytes, stream);
        serve_h1(stream, self.facts(None), self.worker).await;
    }

    async fn http2(self, stream: TcpStream, bytes: Bytes) {
        let stream = Prefixed::new(bytes, stream);
        serve_h2(stream, self.facts(None), self.worker).await;
    }

    fn facts(&self, tls: Option<Secured>) -> ConnectionFacts {
        ConnectionFacts {
            door: self.door,
            peer: self.peer,
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
