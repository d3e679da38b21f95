//! Binds every address of the gateway, or says all that is in the way.
//!
//! The data-plane threads share their addresses by SO_REUSEPORT, which would
//! let two gateways share them too without a word. So each address is first
//! taken alone. What was given to this process is taken as it is: it is bound
//! and listened on already, and connections may wait in it.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use edd_route::Door;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tracing::info;

use super::doors::{Inherited, Role};
use crate::config::Config;

/// Addresses that cannot be listened on, all of them.
#[derive(Debug)]
pub struct BindError(pub Vec<BindFailure>);

/// One address that cannot be listened on.
#[derive(Debug)]
pub struct BindFailure {
    /// The flag that it comes from.
    pub flag: &'static str,
    /// The address.
    pub addr: SocketAddr,
    /// Why.
    pub source: io::Error,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("cannot listen on ")?;
        for (index, failure) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{failure}")?;
        }
        Ok(())
    }
}

impl std::error::Error for BindError {}

impl fmt::Display for BindFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { flag, addr, source } = self;
        match source.kind() {
            io::ErrorKind::AddrInUse => write!(f, "{addr} ({flag}): already in use"),
            io::ErrorKind::PermissionDenied => write!(
                f,
                "{addr} ({flag}): no permission; ports below 1024 need CAP_NET_BIND_SERVICE"
            ),
            _ => write!(f, "{addr} ({flag}): {source}"),
        }
    }
}

/// Where the gateway listens, with the ports that were chosen for port 0.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Addresses {
    /// Behind public port 80.
    pub http: SocketAddr,
    /// Behind public port 443.
    pub https: SocketAddr,
    /// Behind public port 22.
    pub ssh: SocketAddr,
    /// The admin endpoint.
    pub admin: SocketAddr,
    /// The dynamic ports, in the order of `--ports`.
    pub ports: Vec<SocketAddr>,
}

impl Addresses {
    /// All of them, as [`super::Gate::listening_on`] wants them.
    pub fn all(&self) -> Vec<SocketAddr> {
        let fixed = [self.http, self.https, self.ssh, self.admin];
        fixed
            .into_iter()
            .chain(self.ports.iter().copied())
            .collect()
    }
}

/// The open sockets.
#[derive(Debug)]
pub struct Bound {
    addresses: Addresses,
    ssh: TcpListener,
    admin: TcpListener,
    threads: Vec<Vec<DoorListener>>,
}

/// A data-plane thread's own socket for a door.
#[derive(Debug)]
pub(super) struct DoorListener {
    pub(super) door: Door,
    /// Not blocking.
    pub(super) listener: TcpListener,
}

/// For each data-plane thread its own socket of each door.
#[derive(Debug)]
pub struct DataListeners(pub(super) Vec<Vec<DoorListener>>);

impl Bound {
    /// Where they listen.
    pub fn addresses(&self) -> Addresses {
        self.addresses.clone()
    }

    /// The sockets of the data-plane threads, that of the SSH server and that of the admin
    /// endpoint.
    pub fn split(self) -> (DataListeners, TcpListener, TcpListener) {
        (DataListeners(self.threads), self.ssh, self.admin)
    }
}

/// An address to listen on.
struct Wanted {
    flag: &'static str,
    role: Role,
    addr: SocketAddr,
    /// None: the data-plane threads have no part in it.
    door: Option<Door>,
}

/// Listens on everything that `config` asks for, where possible on what was given. Call it
/// before anything else is started.
///
/// # Errors
/// Every address that cannot be listened on, and every given socket that nobody asked for.
pub fn bind(config: &Config, mut inherited: Inherited) -> Result<Bound, BindError> {
    let fixed = |flag, role, addr, door| Wanted {
        flag,
        role,
        addr,
        door,
    };
    let all = [
        fixed(
            "--http-addr",
            Role::Http,
            config.http_addr,
            Some(Door::PublicHttp),
        ),
        fixed(
            "--https-addr",
            Role::Https,
            config.https_addr,
            Some(Door::PublicHttps),
        ),
        fixed("--ssh-addr", Role::Ssh, config.ssh_addr, None),
        fixed("--admin-addr", Role::Admin, config.admin_addr, None),
    ]
    .into_iter()
    .chain(config.ports.iter().map(|port| Wanted {
        flag: "--ports",
        role: Role::Port,
        addr: SocketAddr::new(config.ports_addr, port),
        door: Some(Door::Dynamic(port)),
    }));

    // All are held until all are tried, so that two flags with one address clash.
    let mut failures = Vec::new();
    let tried: Vec<_> = all
        .map(|wanted| {
            let Wanted { flag, addr, .. } = wanted;
            let given = inherited.take(wanted.role, addr);
            let alone = given.is_empty().then(|| open(addr, false));
            let alone = alone.transpose().unwrap_or_else(|source| {
                failures.push(BindFailure { flag, addr, source });
                None
            });
            (wanted, given, alone)
        })
        .collect();
    for (role, addr) in inherited.rest() {
        info!(role = role.map(|role| role.to_string()), %addr, "a given socket is not asked for and is closed");
    }
    if !failures.is_empty() {
        return Err(BindError(failures));
    }

    let mut threads: Vec<Vec<_>> = (0..config.workers).map(|_| Vec::new()).collect();
    let (mut ssh, mut admin) = (None, None);
    let mut addresses = Vec::new();
    // The probes of the others stay until it is their turn.
    for (
        Wanted {
            flag,
            role,
            addr,
            door,
        },
        given,
        alone,
    ) in tried
    {
        let opened = match door {
            Some(door) => {
                let shared = match given.is_empty() {
                    true => {
                        drop(alone);
                        open_shared(addr, threads.len())
                    }
                    false => Ok(given),
                };
                shared.and_then(|shared| spread(&mut threads, door, &shared))
            }
            None => {
                let listener = given.into_iter().next().or(alone);
                let addr = listener.as_ref().map(TcpListener::local_addr);
                match role {
                    Role::Admin => admin = listener,
                    _ => ssh = listener,
                }
                addr.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
            }
        };
        match opened {
            Ok(addr) => addresses.push(addr),
            Err(source) => failures.push(BindFailure { flag, addr, source }),
        }
    }
    let mut addresses = addresses.into_iter();
    let mut next = || addresses.next();
    match (next(), next(), next(), next(), ssh, admin) {
        (Some(http), Some(https), Some(ssh_addr), Some(admin_addr), Some(ssh), Some(admin))
            if failures.is_empty() =>
        {
            Ok(Bound {
                addresses: Addresses {
                    http,
                    https,
                    ssh: ssh_addr,
                    admin: admin_addr,
                    ports: addresses.collect(),
                },
                ssh,
                admin,
                threads,
            })
        }
        _ => Err(BindError(failures)),
    }
}

/// A socket for each of `count` threads. Port 0 is chosen for the first; the others share it.
fn open_shared(mut addr: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut shared = Vec::with_capacity(count);
    for _ in 0..count {
        let listener = open(addr, true)?;
        addr = listener.local_addr()?;
        shared.push(listener);
    }
    Ok(shared)
}

/// Gives the sockets of a door to the threads: each socket to some thread, each thread some
/// socket. The kernel deals connections out by socket, so none may be left alone.
fn spread(
    threads: &mut [Vec<DoorListener>],
    door: Door,
    sockets: &[TcpListener],
) -> io::Result<SocketAddr> {
    let rounds = threads.len().max(sockets.len());
    let seats = (0..threads.len()).cycle();
    for (thread, socket) in seats.zip(sockets.iter().cycle()).take(rounds) {
        let listener = socket.try_clone()?;
        if let Some(thread) = threads.get_mut(thread) {
            thread.push(DoorListener { door, listener });
        }
    }
    let first = sockets.first().ok_or(io::ErrorKind::NotFound)?;
    first.local_addr()
}

/// What is set here is inherited by the connections, which saves calls on each of them.
fn open(addr: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    // Only for connections of an earlier process that are still in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    let listener = TcpListener::from(socket);
    let socket = SockRef::from(&listener);
    socket.set_tcp_nodelay(true)?;
    // A peer that vanished is noticed in two minutes, long before an idle limit.
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    socket.set_tcp_keepalive(&keepalive)?;
    Ok(listener)
}

/// Connections that wait to be accepted; the system may cap it lower.
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::ServeArgs;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn config(flags: &[(&str, &str)]) -> Config {
        let any = "127.0.0.1:0";
        let usual = [
            ("--http-addr", any),
            ("--https-addr", any),
            ("--ssh-addr", any),
            ("--admin-addr", any),
            ("--ports-addr", "127.0.0.1"),
            ("--workers", "3"),
        ];
        let given = |flag: &str| flags.iter().any(|(given, _)| *given == flag);
        let usual = usual.iter().filter(|(flag, _)| !given(flag));
        let words = usual.chain(flags).flat_map(|(flag, value)| [*flag, *value]);
        let args = Flags::parse_from(std::iter::once("test").chain(words));
        args.serve.check().unwrap()
    }

    fn taken() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        (listener, addr)
    }

    /// The doors of each thread, and which socket (by its address) is behind each.
    fn seats(sockets: usize, workers: &str) -> Vec<Vec<Door>> {
        let ports = free_port().to_string();
        let mut inherited = Inherited::default();
        let shared = open_shared("127.0.0.1:0".parse().unwrap(), sockets).unwrap();
        let addr = shared[0].local_addr().unwrap().to_string();
        for socket in shared {
            inherited.add(Some(Role::Http), socket).unwrap();
        }
        let flags = [
            ("--http-addr", addr.as_str()),
            ("--ports", &ports),
            ("--workers", workers),
        ];
        let (DataListeners(threads), ..) = bind(&config(&flags), inherited).unwrap().split();
        let doors = |listeners: Vec<DoorListener>| {
            let doors = listeners.into_iter().map(|listener| listener.door);
            doors.filter(|door| *door == Door::PublicHttp).collect()
        };
        threads.into_iter().map(doors).collect()
    }

    #[test]
    fn every_given_socket_has_a_thread_and_every_thread_a_socket() {
        let counts = |seats: Vec<Vec<Door>>| -> Vec<usize> { seats.iter().map(Vec::len).collect() };
        assert_eq!(counts(seats(5, "2")), [3, 2]);
        assert_eq!(counts(seats(2, "3")), [1, 1, 1]);
        assert_eq!(counts(seats(1, "3")), [1, 1, 1]);
    }

    fn free_port() -> u16 {
        taken().0.local_addr().unwrap().port()
    }

    /// R5.
    #[test]
    fn every_address_in_the_way_is_named_at_once() {
        let (_http, http) = taken();
        let (_admin, admin) = taken();
        let (_port, port) = taken();
        let (_, number) = port.rsplit_once(':').unwrap();
        let flags = [
            ("--http-addr", http.as_str()),
            ("--admin-addr", &admin),
            ("--ssh-addr", "192.0.2.1:22"),
            ("--ports", number),
        ];
        let error = bind(&config(&flags), Inherited::default())
            .unwrap_err()
            .to_string();
        for part in [
            format!("{http} (--http-addr): already in use"),
            format!("{admin} (--admin-addr): already in use"),
            format!("{port} (--ports): already in use"),
            "192.0.2.1:22 (--ssh-addr): ".to_owned(),
        ] {
            assert!(error.contains(&part), "{part} in {error}");
        }
        assert!(!error.contains('\n') && !error.contains("--https-addr"));
    }

    #[test]
    fn a_second_gateway_and_a_second_flag_cannot_share_an_address() {
        let port = free_port();
        let addr = format!("127.0.0.1:{port}");
        let ports = free_port().to_string();
        let flags = [("--https-addr", addr.as_str()), ("--ports", &ports)];
        let first = bind(&config(&flags), Inherited::default()).unwrap();
        let error = bind(&config(&flags), Inherited::default()).unwrap_err();
        assert_eq!(error.0.len(), 2, "{error}");
        drop(first);

        let twice = [
            ("--https-addr", addr.as_str()),
            ("--http-addr", addr.as_str()),
            ("--ports", &ports),
        ];
        assert_eq!(
            bind(&config(&twice), Inherited::default())
                .unwrap_err()
                .0
                .len(),
            1
        );
        assert!(bind(&config(&flags), Inherited::default()).is_ok());
    }

    #[test]
    fn all_threads_share_the_port_that_was_chosen() {
        let ports = free_port().to_string();
        let bound = bind(&config(&[("--ports", &ports)]), Inherited::default()).unwrap();
        let addresses = bound.addresses();
        assert_eq!(addresses.all().len(), 5);
        let (DataListeners(threads), ssh, admin) = bound.split();
        assert_eq!(admin.local_addr().unwrap(), addresses.admin);
        assert_eq!(ssh.local_addr().unwrap(), addresses.ssh);
        assert_eq!(threads.len(), 3);
        for listeners in threads {
            let bound: Vec<_> = listeners
                .iter()
                .map(|door| door.listener.local_addr().unwrap())
                .collect();
            assert_eq!(bound, [addresses.http, addresses.https, addresses.ports[0]]);
        }
    }
}
