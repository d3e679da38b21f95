//! The listening sockets as a whole: when they are accepted from, and what a successor gets.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// `--admin-addr`.
    Admin,
    /// `--http-addr`.
    Http,
    /// `--https-addr`.
    Https,
    /// One of `--ports`.
    Port,
    /// `--ssh-addr`.
    Ssh,
}

impl Role {
    const ALL: [(&'static str, Self); 5] = [
        ("admin", Self::Admin),
        ("http", Self::Http),
        ("https", Self::Https),
        ("port", Self::Port),
        ("ssh", Self::Ssh),
    ];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = Self::ALL.iter().find(|(_, role)| role == self);
        f.write_str(named.map_or("", |(name, _)| name))
    }
}

/// A name that is no [`Role`]'s.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is none of admin, http, https, port, ssh")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        let named = Self::ALL.iter().find(|(known, _)| *known == name);
        named
            .map(|(_, role)| *role)
            .ok_or_else(|| UnknownRole(name.to_owned()))
    }
}

/// All listening sockets of the process. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Doors(Arc<State>);

#[derive(Debug, Default)]
struct State {
    open: CancellationToken,
    handed_over: AtomicBool,
    sockets: Mutex<Vec<(Role, Socket)>>,
}

#[derive(Debug)]
enum Socket {
    /// Somebody accepts from it, and closes it when that ends.
    Used(Weak<TcpListener>),
    /// A second handle, for what is given away whole.
    Kept(OwnedFd),
}

impl Doors {
    /// Doors that are closed: whoever serves them waits for [`Self::open`].
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on connections are accepted.
    pub fn open(&self) {
        self.0.open.cancel();
    }

    /// Waits until they are open.
    pub async fn opened(&self) {
        self.0.open.cancelled().await;
    }

    /// Tells of a socket that is accepted from as long as the caller holds it.
    pub fn add(&self, role: Role, listener: TcpListener) -> Arc<TcpListener> {
        let listener = Arc::new(listener);
        let mut sockets = self.sockets();
        sockets.push((role, Socket::Used(Arc::downgrade(&listener))));
        listener
    }

    /// Keeps a second handle of a socket until [`Self::forget`].
    pub fn keep(&self, role: Role, socket: OwnedFd) {
        self.sockets().push((role, Socket::Kept(socket)));
    }

    /// Lets go of what was kept.
    pub fn forget(&self) {
        self.sockets().clear();
    }

    /// The sockets that are open, to be sent to a successor.
    pub fn all(&self) -> Vec<(Role, Open)> {
        let mut sockets = self.sockets();
        sockets.retain(|(_, socket)| match socket {
            Socket::Used(listener) => listener.strong_count() > 0,
            Socket::Kept(_) => true,
        });
        let open = sockets.iter().filter_map(|(role, socket)| {
            let open = match socket {
                Socket::Used(listener) => Open::Used(listener.upgrade()?),
                Socket::Kept(socket) => Open::Kept(socket.try_clone().ok()?),
            };
            Some((*role, open))
        });
        open.collect()
    }

    /// Somebody else accepts from the same sockets: what waits there is theirs.
    pub fn hand_over(&self) {
        self.0.handed_over.store(true, Ordering::Release);
        self.forget();
    }

    /// Whether somebody else accepts from the same sockets.
    pub fn are_handed_over(&self) -> bool {
        self.0.handed_over.load(Ordering::Acquire)
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<(Role, Socket)>> {
        self.0
            .sockets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A socket on its way to a successor. Drop it soon: it keeps the socket open.
#[derive(Debug)]
pub enum Open {
    /// Of someone who accepts from it.
    Used(Arc<TcpListener>),
    /// A handle of its own.
    Kept(OwnedFd),
}

impl Open {
    /// Its descriptor.
    pub fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Used(listener) => listener.as_fd(),
            Self::Kept(socket) => socket.as_fd(),
        }
    }
}

/// Listening sockets that were given to this process: by its predecessor or by systemd.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Given>);

#[derive(Debug)]
struct Given {
    /// None: only its address tells.
    role: Option<Role>,
    addr: SocketAddr,
    listener: std::net::TcpListener,
}

impl Inherited {
    /// Adds a socket.
    ///
    /// # Errors
    /// It has no address: not a TCP socket.
    pub fn add(
        &mut self,
        role: Option<Role>,
        listener: std::net::TcpListener,
    ) -> std::io::Result<()> {
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        self.0.push(Given {
            role,
            addr,
            listener,
        });
        Ok(())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes those that serve `wanted`; with port 0 any port of that role and address does.
    pub(crate) fn take(&mut self, role: Role, wanted: SocketAddr) -> Vec<std::net::TcpListener> {
        let fits = |given: &mut Given| {
            let same = match wanted.port() {
                0 => given.role == Some(role) && given.addr.ip() == wanted.ip(),
                _ => given.addr == wanted,
            };
            same && given.role.is_none_or(|given| given == role)
        };
        let taken = self.0.extract_if(.., fits);
        taken.map(|given| given.listener).collect()
    }

    /// What nobody wanted.
    pub(crate) fn rest(self) -> Vec<(Option<Role>, SocketAddr)> {
        let rest = self.0.into_iter();
        rest.map(|given| (given.role, given.addr)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener as StdListener;

    use super::*;

    #[test]
    fn roles_are_read_as_they_are_written() {
        for (name, role) in Role::ALL {
            assert_eq!(role.to_string(), name);
            assert_eq!(name.parse::<Role>().unwrap(), role);
        }
        assert!("ftp".parse::<Role>().is_err());
    }

    #[test]
    fn a_given_socket_serves_its_address_and_role_only() {
        let mut inherited = Inherited::default();
        let mut addresses = Vec::new();
        for role in [Some(Role::Http), Some(Role::Port), None] {
            let listener = StdListener::bind("127.0.0.1:0").unwrap();
            addresses.push(listener.local_addr().unwrap());
            inherited.add(role, listener).unwrap();
        }
        let any = "127.0.0.1:0".parse().unwrap();
        assert!(inherited.take(Role::Https, any).is_empty());
        assert!(inherited.take(Role::Https, addresses[0]).is_empty());
        assert_eq!(inherited.take(Role::Http, any).len(), 1);
        assert_eq!(inherited.take(Role::Port, addresses[1]).len(), 1);
        assert_eq!(inherited.take(Role::Ssh, addresses[2]).len(), 1);
        assert!(inherited.is_empty() && inherited.rest().is_empty());
    }

    #[tokio::test]
    async fn a_socket_that_nobody_holds_is_not_given_away() {
        let doors = Doors::new();
        let [one, other] = ["127.0.0.1:0"; 2].map(|addr| {
            let listener = StdListener::bind(addr).unwrap();
            listener.set_nonblocking(true).unwrap();
            doors.add(Role::Port, TcpListener::from_std(listener).unwrap())
        });
        drop(one);
        assert_eq!(doors.all().len(), 1);
        drop(other);
        assert!(doors.all().is_empty());
    }
}
