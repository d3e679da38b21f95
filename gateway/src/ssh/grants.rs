//! What a container may open towards the client, and on which connection.
//!
//! A container opens channels only where the client asked for them: agent and
//! X11 on the connection of the session that asked, forwarded ports and
//! sockets on the one that carries all remote forwards. Each connection to a
//! container has its own [`Grants`]; nothing is granted until somebody asks,
//! so a container that opens channels unasked is refused by us already.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::connection::Connection;
use super::downlink::Backlog;

/// Remote forwards of one client connection at once.
pub(crate) const FORWARDS_MAX: usize = 64;

/// A remote forward: what the container listens on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Listen {
    /// A TCP port (`-R 8080:…`); 0 stands for any while the container chooses one.
    Port {
        /// The address as the client wrote it.
        address: String,
        /// The port.
        port: u32,
    },
    /// A Unix socket.
    Socket {
        /// Its path.
        path: String,
    },
}

/// A channel that a container opens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Inbound {
    /// To the client's SSH agent.
    Agent,
    /// From a forwarded port.
    Port {
        /// The listening address, as the container says.
        address: String,
        /// The listening port.
        port: u32,
        /// Who connected there.
        from: (String, u32),
    },
    /// From a forwarded Unix socket.
    Socket {
        /// Its path.
        path: String,
    },
    /// To the client's display.
    X11 {
        /// Who connected.
        from: (String, u32),
    },
}

impl Inbound {
    /// The channel's type, as the protocol names it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Agent => "auth-agent@openssh.com",
            Self::Port { .. } => "forwarded-tcpip",
            Self::Socket { .. } => "forwarded-streamlocal@openssh.com",
            Self::X11 { .. } => "x11",
        }
    }

    /// What it comes from, for the log.
    pub(crate) fn source(&self) -> String {
        match self {
            Self::Agent => String::new(),
            Self::Port { address, port, .. } => format!("{address}:{port}"),
            Self::Socket { path } => path.clone(),
            Self::X11 { from: (from, _) } => from.clone(),
        }
    }
}

/// What one connection to a container may carry back, and what it does.
#[derive(Default)]
pub(crate) struct Grants {
    /// Whose client asked; empty until one does.
    client: OnceLock<Weak<Connection>>,
    /// Short sections: a request of the client, an opening by the container.
    granted: Mutex<Granted>,
    /// Told when the last channel that the container opened has ended.
    quiet: Notify,
    /// What waits for the client in those channels.
    pub(crate) backlog: Arc<Backlog>,
    /// Cancelled when the connection has ended.
    pub(crate) ended: CancellationToken,
}

#[derive(Default)]
struct Granted {
    agent: bool,
    x11: X11,
    listens: Vec<Listen>,
    /// Channels of the container that live.
    live: usize,
}

/// How many X11 channels may be opened.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum X11 {
    Any,
    #[default]
    None,
    /// One more.
    One,
}

/// A container's channel that lives.
pub(crate) struct Live(Arc<Grants>);

impl Grants {
    /// The client wants its agent to be reachable.
    pub(crate) fn allow_agent(&self, client: &Arc<Connection>) {
        self.belong_to(client);
        self.lock().agent = true;
    }

    /// The client wants its display to be reachable, once or any number of times.
    pub(crate) fn allow_x11(&self, client: &Arc<Connection>, single: bool) {
        self.belong_to(client);
        self.lock().x11 = if single { X11::One } else { X11::Any };
    }

    /// The client wants a forward; false when it has too many.
    pub(crate) fn allow(&self, client: &Arc<Connection>, listen: Listen) -> bool {
        self.belong_to(client);
        let mut granted = self.lock();
        let room = granted.listens.len() < FORWARDS_MAX;
        if room {
            granted.listens.push(listen);
        }
        room
    }

    /// The container has chosen a port for a forward that left it the choice; false, and nothing
    /// is changed, if that is none.
    pub(crate) fn chosen(&self, listen: &Listen, port: u32) -> bool {
        let is_port = u16::try_from(port).is_ok_and(|port| port > 0);
        let mut granted = self.lock();
        let found = granted.listens.iter_mut().find(|it| *it == listen);
        match found {
            Some(Listen::Port { port: any, .. }) if is_port => {
                *any = port;
                true
            }
            _ => false,
        }
    }

    /// Takes one forward back; whether there was one.
    pub(crate) fn take_back(&self, listen: &Listen) -> bool {
        let mut granted = self.lock();
        let found = granted.listens.iter().position(|it| it == listen);
        if let Some(index) = found {
            granted.listens.swap_remove(index);
        }
        found.is_some()
    }

    /// Whether forwards stand on this connection.
    pub(crate) fn has_forwards(&self) -> bool {
        !self.lock().listens.is_empty()
    }

    /// Nothing more may be opened; what lives goes on.
    pub(crate) fn end(&self) {
        let mut granted = self.lock();
        granted.agent = false;
        granted.x11 = X11::None;
        granted.listens.clear();
    }

    /// Whether the container may open this, and towards which client. What is admitted lives
    /// until the guard is dropped.
    pub(crate) fn admit(self: &Arc<Self>, inbound: &Inbound) -> Option<(Arc<Connection>, Live)> {
        let client = self.client.get()?.upgrade()?;
        let mut granted = self.lock();
        if !granted.covers(inbound) {
            return None;
        }
        if granted.x11 == X11::One && matches!(inbound, Inbound::X11 { .. }) {
            granted.x11 = X11::None;
        }
        granted.live += 1;
        drop(granted);
        Some((client, Live(Arc::clone(self))))
    }

    /// Waits until no channel of the container lives. Cancellation safe; one waiter only.
    pub(crate) async fn quiet(&self) {
        loop {
            let told = self.quiet.notified();
            if self.lock().live == 0 {
                return;
            }
            told.await;
        }
    }

    fn belong_to(&self, client: &Arc<Connection>) {
        let _ = self.client.set(Arc::downgrade(client));
    }

    fn lock(&self) -> MutexGuard<'_, Granted> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Granted {
    fn covers(&self, inbound: &Inbound) -> bool {
        match inbound {
            Inbound::Agent => self.agent,
            // Servers spell addresses in their own way, so the port decides. 0 stands here only
            // until the container has answered which one it chose.
            Inbound::Port { port: wanted, .. } => self.listens.iter().any(
                |listen| matches!(listen, Listen::Port { port, .. } if port == wanted || *port == 0),
            ),
            Inbound::Socket { path: wanted } => self
                .listens
                .iter()
                .any(|listen| matches!(listen, Listen::Socket { path } if path == wanted)),
            Inbound::X11 { .. } => self.x11 != X11::None,
        }
    }
}

impl Live {
    /// Of its connection.
    pub(crate) fn grants(&self) -> &Arc<Grants> {
        &self.0
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let mut granted = self.0.lock();
        granted.live -= 1;
        if granted.live == 0 {
            self.0.quiet.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(port: u32) -> Inbound {
        Inbound::Port {
            address: "localhost".into(),
            port,
            from: ("127.0.0.1".into(), 1),
        }
    }

    fn listen(port: u32) -> Listen {
        let address = "localhost".into();
        Listen::Port { address, port }
    }

    #[test]
    fn only_what_was_asked_for_is_covered() {
        let mut granted = Granted::default();
        let socket = |path: &str| Inbound::Socket { path: path.into() };
        let x11 = Inbound::X11 {
            from: (String::new(), 0),
        };
        for inbound in [&Inbound::Agent, &port(80), &socket("/a"), &x11] {
            assert!(!granted.covers(inbound), "{inbound:?}");
        }
        granted.agent = true;
        granted.x11 = X11::Any;
        granted.listens = vec![listen(80), Listen::Socket { path: "/a".into() }];
        for inbound in [&Inbound::Agent, &port(80), &socket("/a"), &x11] {
            assert!(granted.covers(inbound), "{inbound:?}");
        }
        assert!(!granted.covers(&port(81)));
        assert!(!granted.covers(&socket("/b")));
    }

    #[test]
    fn the_chosen_port_takes_the_place_of_the_choice() {
        let grants = Grants::default();
        grants.lock().listens.push(listen(0));
        for none in [0, 65_536] {
            assert!(!grants.chosen(&listen(0), none));
            assert!(grants.lock().covers(&port(1)), "as before");
        }
        assert!(grants.chosen(&listen(0), 4711));
        assert!(grants.lock().covers(&port(4711)));
        assert!(!grants.lock().covers(&port(1)));
        assert!(!grants.chosen(&listen(0), 4712), "chosen once");
    }

    #[test]
    fn any_port_is_covered_while_the_container_chooses() {
        let grants = Grants::default();
        grants.lock().listens.push(listen(0));
        assert!(grants.lock().covers(&port(4711)));
        assert!(grants.take_back(&listen(0)));
        assert!(!grants.take_back(&listen(0)));
        assert!(!grants.lock().covers(&port(4711)));
        assert!(!grants.has_forwards());
    }
}
