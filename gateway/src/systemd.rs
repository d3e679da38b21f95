//! What systemd gives (listening sockets) and wants to know (readiness).
//!
//! Without systemd, that is without its variables, all of this does nothing.

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use listenfd::ListenFd;
use rustix::time::{ClockId, clock_gettime};
use tracing::debug;

use crate::listener::{Inherited, Role, UnknownRole};

/// A given socket that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ActivationError {
    /// It is no listening TCP socket.
    #[error("socket {0} of LISTEN_FDS: {1}")]
    Socket(usize, io::Error),
    /// Its name says nothing to us.
    #[error("LISTEN_FDNAMES: {0}")]
    Name(#[from] UnknownRole),
}

/// The sockets of `LISTEN_FDS`, with their roles from `LISTEN_FDNAMES`.
///
/// A name is a role, or `unknown` (what systemd writes for a socket without a name) or absent:
/// then the address decides.
///
/// # Errors
/// A socket of another kind, a name that is no role.
pub fn inherited() -> Result<Inherited, ActivationError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let mut given = ListenFd::from_env();
    let mut inherited = Inherited::default();
    for index in 0..given.len() {
        let role = match names.next().unwrap_or_default() {
            "" | "unknown" => None,
            name => Some(name.parse::<Role>()?),
        };
        let broken = |error| ActivationError::Socket(index, error);
        if let Some(listener) = given.take_tcp_listener(index).map_err(broken)? {
            inherited.add(role, listener).map_err(broken)?;
        }
    }
    Ok(inherited)
}

/// What systemd is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// This process serves, and is the main one from here on.
    Ready,
    /// Routes and certificates are being read again; [`Self::Ready`] follows.
    Reloading,
    /// It drains.
    Stopping,
}

/// Tells systemd, if `NOTIFY_SOCKET` says where. Nothing depends on it.
pub fn notify(state: State) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = address(name.as_bytes()).and_then(|address| {
        let text = text(state);
        UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)
    });
    if let Err(error) = told {
        debug!(?state, %error, "systemd cannot be told");
    }
}

/// A path, or a name in the abstract namespace.
fn address(name: &[u8]) -> io::Result<SocketAddr> {
    match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
    }
}

fn text(state: State) -> String {
    match state {
        State::Ready => format!("READY=1\nMAINPID={}", std::process::id()),
        State::Reloading => {
            let now = clock_gettime(ClockId::Monotonic);
            let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1000;
            format!("RELOADING=1\nMONOTONIC_USEC={micros}")
        }
        State::Stopping => "STOPPING=1".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address_are_understood() {
        let path = address(b"/run/systemd/notify").unwrap();
        assert_eq!(
            path.as_pathname().unwrap().to_str(),
            Some("/run/systemd/notify")
        );
        let name = address(b"@abstract").unwrap();
        assert_eq!(name.as_abstract_name(), Some(&b"abstract"[..]));
    }

    #[test]
    fn a_reload_has_its_time() {
        let text = text(State::Reloading);
        let (_, micros) = text.split_once("MONOTONIC_USEC=").unwrap();
        assert!(micros.parse::<u64>().unwrap() > 0);
    }
}
