//! Containers put into a gateway's table by hand, and servers that stand for them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use edd_gateway::shared::Shared;
use edd_route::{
    ContainerId, ContainerSpec, KeySpec, Origin, RuleSpec, RunSpec, TableWriter, UserId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::Gateway;

/// Writes the table in the place of the control path, which has no events here.
pub(crate) struct Containers {
    shared: Arc<Shared>,
    writer: TableWriter,
}

impl Containers {
    pub(crate) fn of(gateway: &Gateway) -> Self {
        Self {
            shared: Arc::clone(&gateway.shared),
            writer: TableWriter::new((*gateway.table()).clone()),
        }
    }

    /// Starts a container that answers on `address`, with rules `port -> target port`.
    pub(crate) fn run(&mut self, id: &str, address: IpAddr, rules: &[(u16, u16)]) {
        self.run_of(UserId(1), id, address, rules);
    }

    /// [`Self::run`] for another owner than the usual one.
    pub(crate) fn run_of(
        &mut self,
        owner: UserId,
        id: &str,
        address: IpAddr,
        rules: &[(u16, u16)],
    ) {
        let spec = ContainerSpec {
            id: ContainerId::new(id).unwrap(),
            owner,
            name: id.to_owned(),
            running: Some(RunSpec {
                address,
                ssh_host_key: None,
                start: NEXT.fetch_add(1, Ordering::Relaxed),
                origin: origin(),
            }),
            ssh_enabled: false,
            https_enabled: true,
            rules: rules
                .iter()
                .map(|&(port, target_port)| RuleSpec {
                    port,
                    target_port,
                    origin: origin(),
                })
                .collect(),
            origin: origin(),
        };
        self.writer.put_container(spec);
        self.publish();
    }

    /// Lets the usual owner's key with this fingerprint in by SSH; of its host key the first one
    /// counts.
    pub(crate) fn ssh(&mut self, id: &str, fingerprint: &str) {
        let mut spec = self.writer.table().container(id).unwrap().to_spec();
        spec.ssh_enabled = true;
        let key = KeySpec {
            id: 1,
            fingerprint: fingerprint.to_owned(),
            origin: origin(),
        };
        self.writer.put_keys(spec.owner, vec![key]);
        self.writer.put_container(spec);
        self.publish();
    }

    /// Stops it; its rules stay.
    pub(crate) fn stop(&mut self, id: &str) {
        let mut spec = self.writer.table().container(id).unwrap().to_spec();
        spec.running = None;
        self.writer.put_container(spec);
        self.publish();
    }

    fn publish(&mut self) {
        let published = self.writer.publish(0).expect("a change");
        self.shared.swap(published);
    }
}

fn origin() -> Origin {
    Origin::Event {
        subject: "compute.container.test.started".into(),
        sequence: 1,
        event_id: "test".into(),
        at_ms: 0,
    }
}

static NEXT: AtomicU64 = AtomicU64::new(1);

/// An address of loopback that no other test uses.
pub(crate) fn container_address() -> IpAddr {
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let process = std::process::id();
    let [_, _, high, low] = process.to_be_bytes();
    // Several test processes may run at once.
    IpAddr::from([
        127,
        64 | (high & 0x3f),
        low,
        u8::try_from(n % 250 + 2).unwrap(),
    ])
}

/// A server on `address` that gives each connection to `serve`.
pub(crate) async fn server<F, S>(address: SocketAddr, serve: S) -> SocketAddr
where
    F: Future<Output = std::io::Result<()>> + Send + 'static,
    S: Fn(TcpStream) -> F + Send + 'static,
{
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Sends back what it gets, ends when the client ends.
pub(crate) async fn echo(address: IpAddr) -> SocketAddr {
    server((address, 0).into(), |mut stream| async move {
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await
    })
    .await
}

/// Answers one request for each connection with this body.
pub(crate) async fn web(address: IpAddr, body: &'static str) -> SocketAddr {
    server((address, 0).into(), move |mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let length = body.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        stream.write_all(answer.as_bytes()).await?;
        stream.shutdown().await
    })
    .await
}

/// Whether some connection to `upstream` has a keepalive's timer: it has, once what was sent is
/// acknowledged.
pub(crate) fn is_kept_alive(upstream: SocketAddr) -> bool {
    let IpAddr::V4(address) = upstream.ip() else {
        panic!("{upstream}");
    };
    let number = u32::from_le_bytes(address.octets());
    let remote = format!("{number:08X}:{:04X}", upstream.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        fields.get(2) == Some(&&*remote)
            && fields.get(5).is_some_and(|timer| timer.starts_with("02:"))
    })
}
