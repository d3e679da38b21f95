//! A new process takes over from a running one, and nothing is lost.
//!
//! The running gateway listens on `<state-dir>/take-over.sock`. What is said on
//! it, and what it means:
//!
//! ```text
//! new ──> take over 1   old ──> its listening sockets   both have them, the old one accepts
//! new ──> release       old ──> released                the old one's control path has ended: database
//!                                                       and consumers are the new one's
//! new ──> ready         old ──> go                      the new one accepts
//! new ──> going                                         the old one stops and drains
//! ```
//!
//! Up to `going` the old one serves. If its own control path does not end in
//! time it says `busy` instead of `released`, and nothing has happened. If the new
//! one ends or says nothing for too long after `released`, the old one takes its
//! control path up again and goes on unharmed, but not before the new one has
//! closed this socket: that says that its control path has ended, or that it is
//! gone itself. One that hangs is killed. The sockets themselves never close, so
//! that no connection that waits in them is lost.
//!
//! The socket stays open for as long as the old one drains: it follows the last
//! good table until then.
//!
//! Owns the conversation ([`Successor`], [`Predecessor`]) and the socket; what
//! is done at each step is `app`'s.

mod wire;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tracing::error;

use crate::listener::{Doors, Inherited, Role};

/// The socket's name in `--state-dir`.
const FILE: &str = "take-over.sock";

/// For each answer that needs no work.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// For the other side to end its control path, or to read its configuration.
const WORK_MAX: Duration = Duration::from_secs(30);

/// For a successor that is not wanted any more to end its control path.
const END_MAX: Duration = Duration::from_secs(10);

/// For the successor to become ready, which takes a whole catch-up.
const READY_MAX: Duration = Duration::from_secs(120);

/// Why a take-over does not happen.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// The old process's control path does not end.
    #[error("the control path of the running gateway does not end in time")]
    Busy,
    /// The socket or the conversation failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The other process is not of this user.
    #[error("the process at the other end is of user {0}, not of ours")]
    Stranger(u32),
    /// It says nothing.
    #[error("the process at the other end does not answer")]
    TimedOut,
    /// It says what it should not.
    #[error("the process at the other end says {0:?}")]
    Unexpected(String),
    /// It has gone.
    #[error("the process at the other end has gone")]
    Gone,
}

/// Where the socket is.
pub fn path(state_dir: &Path) -> PathBuf {
    state_dir.join(FILE)
}

/// Waits for successors.
#[derive(Debug)]
pub struct Successors(UnixListener);

impl Successors {
    /// Listens under `state_dir`, in place of whoever did before. Only our user may connect.
    ///
    /// # Errors
    /// The socket cannot be made there.
    pub fn listen(state_dir: &Path) -> io::Result<Self> {
        let new = state_dir.join(format!("{FILE}.new"));
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&new, path(state_dir))?;
        Ok(Self(listener))
    }

    /// The next process that asks. Cancel safe.
    pub async fn next(&self) -> Result<Successor, TakeOverError> {
        let (stream, _) = self.0.accept().await?;
        check_peer(&stream)?;
        let pid = stream.peer_cred()?.pid();
        Ok(Successor { stream, pid })
    }
}

/// A process that wants to take over from this one.
#[derive(Debug)]
pub struct Successor {
    stream: UnixStream,
    /// Its process id, if the system tells.
    pub pid: Option<i32>,
}

impl Successor {
    /// Hears what it wants and sends it the listening sockets.
    pub async fn offer(&mut self, doors: &Doors) -> Result<(), TakeOverError> {
        expect(&mut self.stream, "take over 1", ANSWER_MAX).await?;
        let all = doors.all();
        let roles = all.iter().map(|(role, _)| role.to_string()).collect();
        let sockets: Vec<_> = all.iter().map(|(_, socket)| socket.fd()).collect();
        within(ANSWER_MAX, wire::send(&self.stream, roles, &sockets)).await
    }

    /// Waits until it wants the control path.
    pub async fn wants_release(&mut self) -> Result<(), TakeOverError> {
        expect(&mut self.stream, "release", WORK_MAX).await
    }

    /// Says that it cannot have the control path.
    pub async fn busy(&mut self) {
        // It learns it from the end of the conversation too.
        let _ = within(ANSWER_MAX, wire::say(&mut self.stream, "busy")).await;
    }

    /// Says that the control path is its own, and waits until it is ready to serve.
    pub async fn becomes_ready(&mut self) -> Result<(), TakeOverError> {
        within(ANSWER_MAX, wire::say(&mut self.stream, "released")).await?;
        expect(&mut self.stream, "ready", READY_MAX).await
    }

    /// Says that this process will stop accepting; returns when the other has taken that in.
    pub async fn go(&mut self) -> Result<(), TakeOverError> {
        within(ANSWER_MAX, wire::say(&mut self.stream, "go")).await?;
        expect(&mut self.stream, "going", ANSWER_MAX).await
    }

    /// Waits, after a failure, until its control path has ended or it is gone; kills it if it hangs.
    ///
    /// Cancel safe.
    pub async fn ends(&mut self) {
        // What it waits for does not come.
        let _ = self.stream.shutdown().await;
        if timeout(END_MAX, closed(&mut self.stream)).await.is_ok() {
            return;
        }
        // Whoever holds the socket lives, so the number is still its own.
        let ours = i32::try_from(std::process::id()).ok();
        let other = self.pid.filter(|pid| *pid > 1 && Some(*pid) != ours);
        error!(pid = self.pid, "the new process does not end, killing it");
        if let Some(pid) = other.and_then(Pid::from_raw)
            && let Err(error) = kill_process(pid, Signal::KILL)
        {
            error!(%error, "it cannot be killed; going on without the control path until it ends");
        }
        closed(&mut self.stream).await;
    }
}

/// The process that this one takes over from.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
}

impl Predecessor {
    /// Asks the gateway of `state_dir` for its listening sockets; none if there is no gateway.
    ///
    /// # Errors
    /// There is one that is not ours or does not answer.
    pub async fn ask(state_dir: &Path) -> Result<Option<(Self, Inherited)>, TakeOverError> {
        let mut stream = match UnixStream::connect(path(state_dir)).await {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        check_peer(&stream)?;
        within(ANSWER_MAX, wire::say(&mut stream, "take over 1")).await?;
        // It may be busy with somebody who gives up.
        let (roles, sockets) = within(WORK_MAX, wire::receive(&stream)).await?;
        let mut inherited = Inherited::default();
        for (role, socket) in roles.into_iter().zip(sockets) {
            // A role that only newer gateways know is closed here.
            if let Ok(role) = role.parse::<Role>() {
                inherited.add(Some(role), socket.into())?;
            }
        }
        Ok(Some((Self { stream }, inherited)))
    }

    /// Asks for the control path; returns when the database and the consumers are ours.
    pub async fn release(&mut self) -> Result<(), TakeOverError> {
        within(ANSWER_MAX, wire::say(&mut self.stream, "release")).await?;
        match expect(&mut self.stream, "released", WORK_MAX).await {
            Err(TakeOverError::Unexpected(word)) if word == "busy" => Err(TakeOverError::Busy),
            other => other,
        }
    }

    /// Returns when it has gone or given up waiting for us.
    pub async fn lost(&mut self) -> TakeOverError {
        match wire::hear(&mut self.stream).await {
            Ok(word) => TakeOverError::Unexpected(word),
            Err(_) => TakeOverError::Gone,
        }
    }

    /// Says that we serve; returns when it stops accepting.
    pub async fn ready(&mut self) -> Result<(), TakeOverError> {
        within(ANSWER_MAX, wire::say(&mut self.stream, "ready")).await?;
        expect(&mut self.stream, "go", ANSWER_MAX).await?;
        within(ANSWER_MAX, wire::say(&mut self.stream, "going")).await
    }

    /// Waits until it has drained or is gone.
    pub async fn ended(mut self) {
        closed(&mut self.stream).await;
    }

    /// Keeps it from going on until this process ends: our control path has not ended.
    pub fn hold(self) {
        std::mem::forget(self);
    }
}

/// Waits until the other end has closed it. Cancel safe.
async fn closed(stream: &mut UnixStream) {
    let mut rest = [0; 64];
    while matches!(stream.read(&mut rest).await, Ok(1..)) {}
}

/// The socket's folder and mode keep strangers out; this holds where they do not.
fn check_peer(stream: &UnixStream) -> Result<(), TakeOverError> {
    match stream.peer_cred()?.uid() {
        uid if uid == geteuid().as_raw() => Ok(()),
        uid => Err(TakeOverError::Stranger(uid)),
    }
}

async fn expect(stream: &mut UnixStream, word: &str, limit: Duration) -> Result<(), TakeOverError> {
    let heard = within(limit, wire::hear(stream)).await?;
    if heard == word {
        Ok(())
    } else {
        Err(TakeOverError::Unexpected(heard))
    }
}

async fn within<T>(
    limit: Duration,
    step: impl Future<Output = io::Result<T>>,
) -> Result<T, TakeOverError> {
    match timeout(limit, step).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(TakeOverError::Gone),
        Ok(Err(error)) => Err(error.into()),
        Err(_) => Err(TakeOverError::TimedOut),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_sockets_arrive_with_their_roles_and_what_waits_in_them() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Predecessor::ask(folder.path()).await.unwrap().is_none());
        let successors = Successors::listen(folder.path()).unwrap();
        let mode = std::fs::metadata(path(folder.path()))
            .unwrap()
            .permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);

        let doors = Doors::new();
        let mut held = Vec::new();
        // More than one message takes.
        for n in 0..200 {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let role = if n == 0 { Role::Http } else { Role::Port };
            held.push(doors.add(role, tokio::net::TcpListener::from_std(listener).unwrap()));
        }
        let addr = held[0].local_addr().unwrap();
        let client = std::net::TcpStream::connect(addr).unwrap();
        let old = async {
            let mut successor = successors.next().await.unwrap();
            assert_eq!(successor.pid, i32::try_from(std::process::id()).ok());
            successor.offer(&doors).await.unwrap();
            successor
        };
        let (asked, mut successor) = tokio::join!(Predecessor::ask(folder.path()), old);
        let (mut predecessor, mut inherited) = asked.unwrap().unwrap();
        assert_eq!(inherited.len(), 200);
        drop(held);
        let http = inherited.take(Role::Http, addr);
        assert_eq!(http.len(), 1);
        let (accepted, _) = http[0].accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), client.local_addr().unwrap());

        let rest = async {
            successor.wants_release().await.unwrap();
            successor.becomes_ready().await.unwrap();
            successor.go().await.unwrap();
        };
        let ours = async {
            predecessor.release().await.unwrap();
            predecessor.ready().await.unwrap();
        };
        tokio::join!(rest, ours);
    }

    #[tokio::test]
    async fn whoever_says_something_else_or_goes_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let successors = Successors::listen(folder.path()).unwrap();
        for said in ["GET / HTTP/1.1\r\n", "take over 2\n", ""] {
            let mut stream = UnixStream::connect(path(folder.path())).await.unwrap();
            tokio::io::AsyncWriteExt::write_all(&mut stream, said.as_bytes())
                .await
                .unwrap();
            drop(stream);
            let mut successor = successors.next().await.unwrap();
            successor.offer(&Doors::new()).await.unwrap_err();
        }
        let mut stream = UnixStream::connect(path(folder.path())).await.unwrap();
        let endless = [b'x'; 4096];
        let mut successor = successors.next().await.unwrap();
        let sent = tokio::io::AsyncWriteExt::write_all(&mut stream, &endless);
        let none = Doors::new();
        let (error, _) = tokio::join!(successor.offer(&none), sent);
        error.unwrap_err();
    }
}
