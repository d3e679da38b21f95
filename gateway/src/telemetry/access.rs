//! The access log: one line per request, SSH session, channel of one, and raw connection.
//!
//! Target `access`, so that a filter can send it elsewhere. Lines of requests are
//! formatted and written by a thread of their own ([`super::AccessLog`]); those of
//! sessions and raw connections, one per connection, go through `tracing`.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::info;

use super::Text;

/// A request and its answer, as it goes to the log's thread: small, and rarely with memory of
/// its own.
#[derive(Clone, Debug)]
pub struct HttpRecord {
    /// `X-Request-ID` of request and response.
    pub request_id: Text<40>,
    /// The table that decided.
    pub revision: u64,
    /// The client.
    pub peer: SocketAddr,
    /// Protocol version: `1.0`, `1.1` or `2`.
    pub version: &'static str,
    /// Method, one of the known ones or `OTHER`.
    pub method: &'static str,
    /// Host as looked up.
    pub host: Text<40>,
    /// Raw path, without the query (it may hold secrets).
    pub path: Text<64>,
    /// Static route's label, `container` or `none`; the same object each time is found fastest.
    pub route: Arc<str>,
    /// Upstream address.
    pub upstream: Option<SocketAddr>,
    /// Status of the answer.
    pub status: u16,
    /// `grpc-status` of an answer to gRPC, from its trailers or its head.
    pub grpc_status: Option<u16>,
    /// Body bytes from the client.
    pub bytes_in: u64,
    /// Body bytes to the client.
    pub bytes_out: u64,
    /// From the request's head to the end of the answer's body.
    pub duration: Duration,
    /// When it ended.
    pub ended: Instant,
    /// Why it ended early or was refused, if so.
    pub note: Option<Cow<'static, str>>,
}

impl HttpRecord {
    /// Writes the line by `tracing`. [`super::AccessLog`] does it away from the request.
    pub(super) fn trace(&self) {
        let mut upstream = Text::<48>::default();
        // A text in memory takes everything.
        let _ = write!(upstream, "{}", Upstream(self.upstream));
        info!(
            target: "access",
            kind = "http",
            request_id = %self.request_id,
            revision = self.revision,
            peer = %self.peer,
            version = self.version,
            method = self.method,
            host = %self.host,
            path = %self.path,
            route = %self.route,
            upstream = upstream.as_str(),
            status = self.status,
            grpc_status = self.grpc_status,
            bytes_in = self.bytes_in,
            bytes_out = self.bytes_out,
            ms = millis(self.duration),
            note = self.note.as_deref().unwrap_or("-"),
        );
    }
}

/// An upstream as lines name it; `-` if there was none.
pub(super) struct Upstream(pub(super) Option<SocketAddr>);

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("-"),
        }
    }
}

/// The route of what goes to a container, in lines and in metrics.
pub const TO_CONTAINER: &str = "container";

/// A raw TCP connection, or TLS that was passed through.
#[derive(Clone, Debug)]
pub struct RawRecord<'r> {
    /// `tcp` or `tls-passthrough`.
    pub kind: &'static str,
    /// Names it, as a request's does; nobody else is told.
    pub request_id: Text<40>,
    /// The table that decided.
    pub revision: u64,
    /// The client.
    pub peer: SocketAddr,
    /// The listener's port.
    pub port: u16,
    /// The container.
    pub container: &'r str,
    /// Its address.
    pub upstream: SocketAddr,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// How long it lived.
    pub duration: Duration,
    /// Why it ended, if not by itself.
    pub note: Option<&'r str>,
}

impl RawRecord<'_> {
    /// Writes the line.
    pub fn log(&self) {
        info!(
            target: "access",
            kind = self.kind,
            request_id = %self.request_id,
            revision = self.revision,
            peer = %self.peer,
            port = self.port,
            container = self.container,
            route = TO_CONTAINER,
            upstream = %self.upstream,
            bytes_in = self.bytes_in,
            bytes_out = self.bytes_out,
            ms = millis(self.duration),
            note = self.note.unwrap_or("-"),
        );
    }
}

/// An SSH session (one client connection).
#[derive(Clone, Debug)]
pub struct SshRecord<'r> {
    /// Its id, which its channels' lines have, too.
    pub session: &'r str,
    /// The table that let it in.
    pub revision: u64,
    /// The client.
    pub peer: SocketAddr,
    /// The user name as written.
    pub user: &'r str,
    /// The container.
    pub container: &'r str,
    /// The container's owner, whose key it was.
    pub owner: i64,
    /// The Unix user.
    pub unix_user: &'r str,
    /// The owner's key that opened it.
    pub key_id: i64,
    /// Its fingerprint, `SHA256:…`.
    pub fingerprint: &'r str,
    /// The container's address.
    pub upstream: SocketAddr,
    /// Channels opened.
    pub channels: u64,
    /// The first ones that ended, and what they were for.
    pub opened: &'r str,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// How long it lived.
    pub duration: Duration,
    /// Why it ended, if not by the client.
    pub note: Option<&'r str>,
}

impl SshRecord<'_> {
    /// Writes the line.
    pub fn log(&self) {
        info!(
            target: "access",
            kind = "ssh",
            // Under both names: that of all lines for one connection or request, and that of the
            // lines of its channels.
            request_id = self.session,
            session = self.session,
            revision = self.revision,
            peer = %self.peer,
            user = self.user,
            container = self.container,
            owner = self.owner,
            unix_user = self.unix_user,
            key_id = self.key_id,
            fingerprint = self.fingerprint,
            route = TO_CONTAINER,
            upstream = %self.upstream,
            channels = self.channels,
            opened = self.opened,
            bytes_in = self.bytes_in,
            bytes_out = self.bytes_out,
            ms = millis(self.duration),
            note = self.note.unwrap_or("-"),
        );
    }
}

/// A channel of an SSH session.
#[derive(Clone, Debug)]
pub struct SshChannelRecord<'r> {
    /// The session's id.
    pub session: &'r str,
    /// The table that let the session in.
    pub revision: u64,
    /// The container.
    pub container: &'r str,
    /// Which of the session's channels, from 1; 0: it was never open.
    pub channel: u64,
    /// Its type, as the protocol names it.
    pub kind: &'static str,
    /// Where to, of a forward.
    pub target: &'r str,
    /// `shell`, `exec`, `subsystem`.
    pub request: &'r str,
    /// The command, or the subsystem.
    pub command: &'r str,
    /// Whether it had a terminal.
    pub terminal: bool,
    /// Whether that was recorded.
    pub recorded: bool,
    /// Bytes from the client.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Exit status, or the signal's name.
    pub exit: &'r str,
    /// From its request to its end.
    pub duration: Duration,
    /// Why it was not opened, if so.
    pub note: Option<&'r str>,
}

impl SshChannelRecord<'_> {
    /// Writes the line.
    pub fn log(&self) {
        info!(
            target: "access",
            kind = "ssh-channel",
            session = self.session,
            revision = self.revision,
            container = self.container,
            channel = self.channel,
            r#type = self.kind,
            to = self.target,
            request = self.request,
            command = self.command,
            terminal = self.terminal,
            recorded = self.recorded,
            bytes_in = self.bytes_in,
            bytes_out = self.bytes_out,
            exit = self.exit,
            ms = millis(self.duration),
            note = self.note.unwrap_or("-"),
        );
    }
}

/// With three places.
pub(super) fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
