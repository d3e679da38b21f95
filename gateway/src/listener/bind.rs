//! Binds every address of the gateway, or says all that is in the way.
//!
//! The data-plane threads share their addresses by SO_REUSEPORT, which would
//! let two gateways share them too without a word. So each address is first
//! taken alone.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use edd_route::Door;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

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
    /// The dynamic ports, in the order of `--ports`.
    pub ports: Vec<SocketAddr>,
}

impl Addresses {
    /// All of them, as [`super::Gate::listening_on`] wants them.
    pub fn all(&self) -> Vec<SocketAddr> {
        let fixed = [self.http, self.https, self.ssh];
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

    /// The sockets of the data-plane threads, and that of the SSH server.
    pub fn split_ssh(self) -> (DataListeners, TcpListener) {
        (DataListeners(self.threads), self.ssh)
    }
}

/// Binds everything that `config` asks for. Call it before anything else is started.
///
/// The admin address is only tried, so that its failure is listed with the others.
pub fn bind(config: &Config) -> Result<Bound, BindError> {
    let dynamic = config.ports.iter().map(|port| {
        let addr = SocketAddr::new(config.ports_addr, port);
        ("--ports", addr, Door::Dynamic(port))
    });
    let doors: Vec<_> = [
        ("--http-addr", config.http_addr, Door::PublicHttp),
        ("--https-addr", config.https_addr, Door::PublicHttps),
    ]
    .into_iter()
    .chain(dynamic)
    .collect();

    // All are held until all are tried, so that two flags with one address clash.
    let mut failures = Vec::new();
    let mut alone = |flag, addr| {
        let bound = open(addr, false).and_then(|listener| Ok((listener.local_addr()?, listener)));
        bound
            .map_err(|source| failures.push(BindFailure { flag, addr, source }))
            .ok()
    };
    let probes: Vec<_> = doors
        .iter()
        .map(|&(flag, addr, _)| alone(flag, addr))
        .collect();
    let ssh = alone("--ssh-addr", config.ssh_addr);
    let admin = alone("--admin-addr", config.admin_addr);
    drop((probes, admin));
    let (Some((ssh_addr, ssh)), true) = (ssh, failures.is_empty()) else {
        return Err(BindError(failures));
    };

    let mut threads: Vec<Vec<_>> = (0..config.workers).map(|_| Vec::new()).collect();
    let mut addresses = Vec::new();
    for (flag, mut addr, door) in doors {
        for thread in &mut threads {
            let bound = open(addr, true).and_then(|listener| {
                // Port 0 is chosen for the first thread; the others share it.
                addr = listener.local_addr()?;
                Ok(listener)
            });
            match bound {
                Ok(listener) => thread.push(DoorListener { door, listener }),
                Err(source) => failures.push(BindFailure { flag, addr, source }),
            }
        }
        addresses.push(addr);
    }
    let mut addresses = addresses.into_iter();
    let (Some(http), Some(https), true) = (addresses.next(), addresses.next(), failures.is_empty())
    else {
        return Err(BindError(failures));
    };
    Ok(Bound {
        addresses: Addresses {
            http,
            https,
            ssh: ssh_addr,
            ports: addresses.collect(),
        },
        ssh,
        threads,
    })
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

    fn free_port() -> u16 {
        taken().0.local_addr().unwrap().port()
    }

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
        let error = bind(&config(&flags)).unwrap_err().to_string();
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
        let first = bind(&config(&flags)).unwrap();
        let error = bind(&config(&flags)).unwrap_err();
        assert_eq!(error.0.len(), 2, "{error}");
        drop(first);

        let twice = [
            ("--https-addr", addr.as_str()),
            ("--http-addr", addr.as_str()),
            ("--ports", &ports),
        ];
        assert_eq!(bind(&config(&twice)).unwrap_err().0.len(), 1);
        assert!(bind(&config(&flags)).is_ok());
    }

    #[test]
    fn all_threads_share_the_port_that_was_chosen() {
        let ports = free_port().to_string();
        let bound = bind(&config(&[("--ports", &ports)])).unwrap();
        let addresses = bound.addresses();
        assert_eq!(addresses.all().len(), 4);
        let (DataListeners(threads), ssh) = bound.split_ssh();
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
