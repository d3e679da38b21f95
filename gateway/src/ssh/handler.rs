//! What russh asks about one client: may it log in, may it open a channel.
//!
//! Called from the connection's only loop, so nothing here waits for a peer, or
//! for a moment only. Requests of a session travel in the channel's own queue,
//! in order with its data; what is answered here is only what must be answered
//! before the next request: russh remembers one wanted reply per channel, and
//! clients send `pty-req`, `env` and `shell` in one go (see `answers`).

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use edd_route::decide::SshMatch;
use russh::keys::{Algorithm, HashAlg, PublicKey};
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::debug;

use super::answers::{self, Awaited, Silence};
use super::bridge;
use super::connection::Connection;
use super::flow::Flow;
use super::forwards::Forwards;
use super::grants::Listen;
use super::inbound::INBOUND_MAX;
use super::lobby::{Stage, Ticket};
use super::patience::REFUSAL;
use super::settings::KEYS_MAX;
use super::uplink::Uplink;
use super::upstream::{Purpose, refusal};
use super::window::{Load, Windows};

/// Channels of one client connection at once: more than a browser opens through `-D`.
pub(crate) const CHANNELS_MAX: usize = 500;

/// Who logged in, and why he may.
#[derive(Clone, Debug)]
pub(crate) struct Login {
    /// The user name as written.
    pub(crate) name: String,
    /// `SHA256:…` of his key.
    pub(crate) fingerprint: String,
    /// The decision.
    pub(crate) target: SshMatch,
    /// The table that made it.
    pub(crate) revision: u64,
}

impl Login {
    /// Decides again, by the table of now.
    fn again(&self, connection: &Connection) -> Option<SshMatch> {
        let table = connection.inner.shared.table();
        table.decide_ssh(&self.name, &self.fingerprint).ok()
    }
}

/// The last refusal, for the log; the client never learns it.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    /// The user name, as written, shortened.
    pub(crate) name: String,
    /// Why.
    pub(crate) reason: String,
}

/// One client's handler.
pub(crate) struct ClientHandler {
    connection: Arc<Connection>,
    /// The place at the door, until the login.
    ticket: Option<Arc<Ticket>>,
    /// Tells the connection's task of the login.
    logged_in: Option<oneshot::Sender<Login>>,
    login: Option<Login>,
    /// It was told that a key would do, and has not signed with it.
    unsigned: bool,
    /// Keys refused so far.
    keys_refused: u32,
    /// Where to count a channel's bytes; a channel's task owns it.
    uplinks: HashMap<ChannelId, Weak<Uplink>>,
    /// What containers answer to the requests of a session. No other channel has any.
    answers: HashMap<ChannelId, Awaited>,
    /// Whether they are worth waiting for.
    silence: Silence,
    windows: Windows<ChannelId>,
    forwards: Forwards,
}

impl ClientHandler {
    /// A handler for a client that has not logged in.
    pub(crate) fn new(
        connection: Arc<Connection>,
        ticket: Arc<Ticket>,
        logged_in: oneshot::Sender<Login>,
    ) -> Self {
        Self {
            connection,
            ticket: Some(ticket),
            logged_in: Some(logged_in),
            login: None,
            unsigned: false,
            keys_refused: 0,
            uplinks: HashMap::new(),
            answers: HashMap::new(),
            silence: Silence::default(),
            windows: Windows::default(),
            forwards: Forwards::default(),
        }
    }

    /// The one decision, for the question and for the login itself.
    fn decide(&self, name: &str, key: &PublicKey, algorithm: &Algorithm) -> Result<Login, Refused> {
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let table = self.connection.inner.shared.table();
        // Looked up first, so that a refused algorithm costs what a refused key costs.
        let decision = table.decide_ssh(name, &fingerprint);
        let refused = |reason: String| Refused {
            name: name.chars().take(64).collect(),
            reason,
        };
        if matches!(algorithm, Algorithm::Rsa { hash: None }) {
            return Err(refused("signature with SHA-1".to_owned()));
        }
        match decision {
            Ok(target) => Ok(Login {
                name: name.to_owned(),
                fingerprint,
                revision: table.revision,
                target,
            }),
            Err(refusal) => Err(refused(refusal.to_string())),
        }
    }

    /// The more of them come from one address, the longer each takes.
    async fn refuse(&mut self, refused: Refused) -> Auth {
        let inner = &self.connection.inner;
        inner.shared.metrics.ssh_auth("refused");
        debug!(peer = %self.connection.peer, user = ?refused.name, reason = refused.reason,
            "ssh key refused");
        self.connection.refused(refused);
        if let Some(ticket) = &self.ticket {
            ticket.refused();
        }
        let time = inner.refusals.refused(self.connection.peer.ip());
        self.delay(time).await;
        self.keys_refused += 1;
        if self.keys_refused >= KEYS_MAX {
            self.connection.exhausted.cancel();
        }
        Auth::reject()
    }

    /// An error once there were too many, should the client be faster than the end.
    fn check_tries(&self) -> Result<(), russh::Error> {
        match self.keys_refused >= KEYS_MAX {
            true => Err(russh::Error::Disconnect),
            false => Ok(()),
        }
    }

    /// A key that would have done was not signed with, or wrongly: russh tells of neither, but the
    /// next question does. It counts as a refused key.
    async fn count_unsigned(&mut self) {
        if std::mem::take(&mut self.unsigned) {
            let time = self.unsigned_refused();
            self.delay(time).await;
        }
    }

    fn unsigned_refused(&self) -> Duration {
        let inner = &self.connection.inner;
        inner.shared.metrics.ssh_auth("unsigned");
        if let Some(ticket) = &self.ticket {
            ticket.refused();
        }
        inner.refusals.refused(self.connection.peer.ip())
    }

    /// Waits, where many were refused; the first ones wait in russh.
    async fn delay(&self, time: Duration) {
        if time > REFUSAL {
            self.connection.inner.shared.metrics.ssh_auth_delayed();
            let gone = self.connection.gone.cancelled();
            let _ = tokio::time::timeout(time, gone).await;
        }
    }

    /// Decides again and hands the channel to a task of its own.
    async fn open(&mut self, channel: Channel<Msg>, purpose: Purpose, reply: ChannelOpenHandle) {
        let connection = &self.connection;
        let audit = connection.audit.channel(purpose.kind(), &purpose.target());
        let (target, permit) = match self.admit() {
            Ok(admitted) => admitted,
            Err(reason) => {
                audit.refused(&reason);
                reply.reject(reason).await;
                return;
            }
        };
        let uplink = Uplink::new(Arc::clone(&connection.flow));
        uplink.watch(audit);
        self.uplinks.retain(|_, uplink| uplink.strong_count() > 0);
        self.uplinks.insert(channel.id(), Arc::downgrade(&uplink));
        let (answers, awaited) = answers::pair(&self.silence);
        self.answers.retain(|_, awaited| awaited.lives());
        if purpose == Purpose::Session {
            self.answers.insert(channel.id(), awaited);
        }
        bridge::spawn(
            Arc::clone(connection),
            bridge::Opening {
                channel,
                purpose,
                reply,
                uplink,
                answers,
                target,
                permit,
            },
        );
    }

    /// Whether there may be another channel, and where to.
    fn admit(&self) -> Result<(SshMatch, OwnedSemaphorePermit), ChannelOpenFailure> {
        let connection = &self.connection;
        let shortage = |why| refusal(&ChannelOpenFailure::ResourceShortage, why);
        // What it would carry would be cut within moments. Channels that the container opens for
        // what runs already, its agent for one, still are.
        if connection.inner.shared.drain.is_draining() {
            return Err(shortage("the gateway is shutting down"));
        }
        let permit = Arc::clone(&connection.channels).try_acquire_owned();
        let permit = permit.map_err(|_| shortage("too many channels of one connection"))?;
        let target = self
            .login
            .as_ref()
            .and_then(|login| login.again(connection));
        let over = "access to this container has ended";
        let target =
            target.ok_or_else(|| refusal(&ChannelOpenFailure::AdministrativelyProhibited, over))?;
        Ok((target, permit))
    }

    /// What the container says to a request that prepares something.
    async fn answer(&mut self, channel: ChannelId) -> bool {
        match self.answers.get_mut(&channel) {
            Some(awaited) => awaited.next().await,
            None => false,
        }
    }

    /// A request to run something: the container's answer goes to the client when it comes, and is
    /// lost if a request that wants none comes before it. So it is waited for, if nobody else has
    /// to wait with it.
    async fn run(&mut self, channel: ChannelId, session: &mut Session) -> Result<(), russh::Error> {
        let is_alone = self.connection.channels.available_permits() + 1 >= CHANNELS_MAX
            && self.connection.inbound.available_permits() == INBOUND_MAX;
        match self.answers.get_mut(&channel) {
            Some(awaited) if is_alone => awaited.next_run().await,
            Some(awaited) => awaited.pass(),
            None => session.channel_failure(channel)?,
        }
        Ok(())
    }

    /// Asks the container to listen for this client.
    async fn listen(&mut self, listen: Listen) -> Option<u32> {
        if self.connection.inner.shared.drain.is_draining() {
            return None;
        }
        let target = self.login.as_ref()?.again(&self.connection)?;
        self.forwards.open(&self.connection, &target, listen).await
    }

    /// Asks it to listen no more.
    async fn unlisten(&mut self, listen: Listen) -> bool {
        self.forwards.close(&self.connection, &listen).await
    }

    fn count(&self, channel: ChannelId, bytes: usize) -> Result<(), russh::Error> {
        let Some(uplink) = self.uplinks.get(&channel).and_then(Weak::upgrade) else {
            return Ok(());
        };
        uplink.arrived(bytes).map_err(|excess| {
            self.connection.note(excess.to_string());
            russh::Error::Inconsistent
        })
    }
}

impl Drop for ClientHandler {
    fn drop(&mut self) {
        if self.unsigned {
            self.unsigned_refused();
        }
    }
}

/// What waits in the channels of a connection.
struct Waiting<'c> {
    flow: &'c Flow,
    uplinks: &'c HashMap<ChannelId, Weak<Uplink>>,
}

impl Load<ChannelId> for Waiting<'_> {
    fn some_over(&self) -> bool {
        self.flow.some_over()
    }

    fn is_over(&self, channel: ChannelId) -> bool {
        let uplink = self.uplinks.get(&channel).and_then(Weak::upgrade);
        uplink.is_some_and(|uplink| uplink.is_over())
    }

    fn is_full(&self) -> bool {
        self.flow.is_full()
    }
}

impl Handler for ClientHandler {
    type Error = russh::Error;

    /// There is none: this is where a client is known to have exchanged keys.
    async fn authentication_banner(&mut self) -> Result<Option<String>, russh::Error> {
        if let Some(ticket) = &self.ticket {
            ticket.advance(Stage::Keyed);
        }
        Ok(None)
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, russh::Error> {
        self.check_tries()?;
        self.count_unsigned().await;
        Ok(match self.decide(user, offer.public_key, offer.algorithm) {
            Ok(login) => {
                // For the log, should nothing follow: the key is known and was only asked about, or
                // somebody signs with another.
                self.connection.refused(Refused {
                    name: login.name.chars().take(64).collect(),
                    reason: format!("no signature by {}", login.fingerprint),
                });
                self.unsigned = true;
                Auth::Accept
            }
            Err(refused) => self.refuse(refused).await,
        })
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        self.check_tries()?;
        self.unsigned = false;
        Ok(match self.decide(user, key.public_key, key.algorithm) {
            Ok(login) => {
                self.login = Some(login);
                Auth::Accept
            }
            Err(refused) => self.refuse(refused).await,
        })
    }

    async fn auth_succeeded(&mut self, session: &mut Session) -> Result<(), russh::Error> {
        let Some(login) = &self.login else {
            // Only `auth_publickey` accepts, so this is a bug; it must not become a login.
            return Err(russh::Error::NotAuthenticated);
        };
        self.ticket = None;
        let connection = &self.connection;
        connection.inner.refusals.welcomed(connection.peer.ip());
        connection.inner.shared.metrics.ssh_auth("accepted");
        connection.warm.begin(&connection.inner, &login.target);
        connection.audit.logged_in(login.clone());
        let account = connection.inner.budget.account(login.target.owner);
        connection.flow.charge(account);
        connection.set_handle(session.handle());
        if let Some(logged_in) = self.logged_in.take() {
            let _ = logged_in.send(login.clone());
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.open(channel, Purpose::Session, reply).await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host_to_connect: &str,
        port_to_connect: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let purpose = Purpose::Forward {
            host: host_to_connect.to_owned(),
            port: port_to_connect,
            from: (originator_address.to_owned(), originator_port),
        };
        self.open(channel, purpose, reply).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let path = socket_path.to_owned();
        self.open(channel, Purpose::Socket { path }, reply).await;
        Ok(())
    }

    /// The client takes a channel that the container has opened.
    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _max_packet_size: u32,
        _window_size: u32,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        let uplink = self.connection.uplink(id);
        self.uplinks.retain(|_, uplink| uplink.strong_count() > 0);
        self.uplinks.insert(id, Arc::downgrade(&uplink));
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.uplinks.remove(&channel);
        self.answers.remove(&channel);
        self.windows.forget(channel);
        self.connection.forget(channel);
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.count(channel, data.len())
    }

    async fn extended_data(
        &mut self,
        channel: ChannelId,
        _code: u32,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.count(channel, data.len())
    }

    fn adjust_window(&mut self, channel: ChannelId, current: u32) -> u32 {
        let load = Waiting {
            flow: &self.connection.flow,
            uplinks: &self.uplinks,
        };
        self.windows.next(channel, current, &load)
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let (address, wanted) = (address.to_owned(), *port);
        let opened = self.listen(Listen::Port {
            address,
            port: wanted,
        });
        let Some(chosen) = opened.await else {
            return Ok(false);
        };
        *port = chosen;
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let address = address.to_owned();
        Ok(self.unlisten(Listen::Port { address, port }).await)
    }

    async fn streamlocal_forward(
        &mut self,
        socket_path: &str,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let path = socket_path.to_owned();
        Ok(self.listen(Listen::Socket { path }).await.is_some())
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        socket_path: &str,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        let path = socket_path.to_owned();
        Ok(self.unlisten(Listen::Socket { path }).await)
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        _col_width: u32,
        _row_height: u32,
        _pix_width: u32,
        _pix_height: u32,
        _modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let accepted = self.answer(channel).await;
        reply(session, channel, accepted)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        _variable_name: &str,
        _variable_value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let accepted = self.answer(channel).await;
        reply(session, channel, accepted)
    }

    async fn x11_request(
        &mut self,
        channel: ChannelId,
        _single_connection: bool,
        _x11_auth_protocol: &str,
        _x11_auth_cookie: &str,
        _x11_screen_number: u32,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let accepted = self.answer(channel).await;
        reply(session, channel, accepted)
    }

    async fn agent_request(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<bool, russh::Error> {
        Ok(self.answer(channel).await)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.run(channel, session).await
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.run(channel, session).await
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _name: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.run(channel, session).await
    }
}

fn reply(session: &mut Session, channel: ChannelId, accepted: bool) -> Result<(), russh::Error> {
    match accepted {
        true => session.channel_success(channel),
        false => session.channel_failure(channel),
    }
}
