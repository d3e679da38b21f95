//! A container that is not OpenSSH: it tells what reaches it and misbehaves on demand.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{Algorithm, PrivateKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId, Sig, server};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

/// What reached the container.
pub(crate) struct Fake {
    pub(crate) address: IpAddr,
    pub(crate) host_key: String,
    pub(crate) seen: mpsc::UnboundedReceiver<String>,
}

/// More than the gateway waits for an answer (`ssh::answers`).
const LATE: Duration = Duration::from_millis(1500);

/// How it misbehaves.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Vice {
    /// It opens channels towards the client that nobody asked for, at once and with each command.
    OpensChannels,
    /// It refuses variables, and takes longer for it than anybody waits.
    AnswersLate,
    /// It grants variables, takes longer for it than anybody waits, and refuses the command.
    RefusesLate,
    /// It loses the connection when a command comes.
    DropsOnExec,
    /// It tells the exit status first and the last output behind it, as sshd may with a terminal.
    ExitsEarly,
    /// It tells the exit status and keeps the output open, as sshd does for what a command has
    /// left in the background.
    StaysOpen,
    /// None.
    None,
}

impl Fake {
    pub(crate) async fn start(at: SocketAddr, vice: Vice) -> Self {
        let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        let host_key = key.public_key().to_openssh().unwrap();
        let config = Arc::new(server::Config {
            keys: vec![key],
            ..server::Config::default()
        });
        let listener = TcpListener::bind(at).await.unwrap();
        let (tell, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let tell = tell.clone();
                tokio::spawn(serve(Arc::clone(&config), socket, tell, vice));
            }
        });
        Self {
            address: at.ip(),
            host_key,
            seen,
        }
    }
}

async fn serve(
    config: Arc<server::Config>,
    socket: TcpStream,
    tell: mpsc::UnboundedSender<String>,
    vice: Vice,
) {
    let container = Container { tell, vice };
    if let Ok(session) = server::run_stream(config, socket, container).await {
        let _ = session.await;
    }
}

struct Container {
    tell: mpsc::UnboundedSender<String>,
    vice: Vice,
}

impl Container {
    fn tell(&self, what: impl Into<String>) {
        let _ = self.tell.send(what.into());
    }

    /// Each kind twice: some are for one time only.
    fn open_channels(&self, session: &Session) {
        if self.vice != Vice::OpensChannels {
            return;
        }
        let (handle, tell) = (session.handle(), self.tell.clone());
        tokio::spawn(async move {
            let mut opened = Vec::new();
            for port in [80_u32, 81] {
                let forwarded = handle
                    .channel_open_forwarded_tcpip("a", port, "b", 2_u32)
                    .await;
                let socket = handle.channel_open_forwarded_streamlocal("/s").await;
                let agent = handle.channel_open_agent().await;
                let x11 = handle.channel_open_x11("a", 1).await;
                let session = handle.channel_open_session().await;
                let direct = handle.channel_open_direct_tcpip("a", port, "b", 2).await;
                let all = [forwarded, socket, agent, x11, session, direct];
                opened.extend(all.map(|channel| u8::from(channel.is_ok()).to_string()));
                opened.push(" ".to_owned());
            }
            let _ = tell.send(format!("opened {}", opened.concat().trim()));
        });
    }
}

impl Handler for Container {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        user: &str,
        _key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        self.tell(format!("login {user}"));
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        self.open_channels(session);
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.tell(format!("exec {}", String::from_utf8_lossy(data)));
        if self.vice == Vice::DropsOnExec {
            return Err(russh::Error::Inconsistent);
        }
        if self.vice == Vice::RefusesLate {
            return session.channel_failure(channel);
        }
        session.channel_success(channel)?;
        self.open_channels(session);
        match self.vice {
            Vice::ExitsEarly => {
                session.exit_status_request(channel, 5)?;
                session.data(channel, "last words")?;
                session.eof(channel)?;
                return session.close(channel);
            }
            Vice::StaysOpen => return session.exit_status_request(channel, 5),
            Vice::AnswersLate
            | Vice::DropsOnExec
            | Vice::None
            | Vice::OpensChannels
            | Vice::RefusesLate => {}
        }
        session.data(channel, "started\n")
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.tell(format!("env {name}={value}"));
        if matches!(self.vice, Vice::AnswersLate | Vice::RefusesLate) {
            tokio::time::sleep(LATE).await;
        }
        match self.vice {
            Vice::AnswersLate => session.channel_failure(channel),
            _ => session.channel_success(channel),
        }
    }

    async fn channel_eof(
        &mut self,
        _channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.tell("eof");
        Ok(())
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.tell(format!("signal {signal:?}"));
        // The order that loses exit statuses when the end of data is not held back.
        session.eof(channel)?;
        session.exit_signal_request(channel, signal, true, "core dumped", "")?;
        session.close(channel)
    }
}
