//! The ClientHello in whatever pieces it comes, terminated here or passed through.

use std::sync::Arc;

use rustls::client::ClientConnection;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, NamedGroup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::ports::tls_echo;
use crate::support::client::{Anyone, dial};
use crate::support::containers::{Containers, container_address};
use crate::support::tls::Client;
use crate::support::{DEADLINE, Gateway, Options};

/// A client that sends its first message in records of `record` bytes and segments of `segment`.
struct Pieces {
    tls: ClientConnection,
    stream: TcpStream,
}

impl Pieces {
    async fn greet(addr: std::net::SocketAddr, name: &str, record: usize, segment: usize) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone))
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut tls = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut hello = Vec::new();
        tls.write_tls(&mut hello).unwrap();
        // One record, as rustls writes it; with a post-quantum key share it fills two segments.
        let message = &hello[5..];
        assert_eq!(
            usize::from(hello[3]) * 256 + usize::from(hello[4]),
            message.len()
        );
        assert!(message.len() > 1200, "{}", message.len());
        let records: Vec<u8> = message
            .chunks(record)
            .flat_map(|part| {
                let length = u16::try_from(part.len()).unwrap().to_be_bytes();
                [&[22, 3, 1][..], &length, part].concat()
            })
            .collect();
        let mut stream = dial(addr).await;
        for part in records.chunks(segment) {
            stream.write_all(part).await.unwrap();
            tokio::task::yield_now().await;
        }
        Self { tls, stream }
    }

    /// Sends what is to be sent and reads until there is plain text, or the handshake is done.
    async fn exchange(&mut self, send: &[u8], wanted: usize) -> Vec<u8> {
        use std::io::{Read, Write};
        self.tls.writer().write_all(send).unwrap();
        let mut plain = Vec::new();
        let work = async {
            loop {
                let mut out = Vec::new();
                while self.tls.wants_write() {
                    self.tls.write_tls(&mut out).unwrap();
                }
                self.stream.write_all(&out).await.unwrap();
                if !self.tls.is_handshaking() && plain.len() >= wanted {
                    return;
                }
                let mut bytes = [0; 4096];
                let count = self.stream.read(&mut bytes).await.unwrap();
                assert!(count > 0, "closed");
                let mut rest = &bytes[..count];
                while !rest.is_empty() {
                    self.tls.read_tls(&mut rest).unwrap();
                    let state = self.tls.process_new_packets().unwrap();
                    let mut ready = vec![0; state.plaintext_bytes_to_read()];
                    self.tls.reader().read_exact(&mut ready).unwrap();
                    plain.extend(ready);
                }
            }
        };
        tokio::time::timeout(DEADLINE, work).await.expect("in time");
        plain
    }
}

const CUTS: [(usize, usize); 6] = [
    (16_384, 1),
    (1, 7),
    (3, 1448),
    (100, 64),
    (700, 1448),
    (16_384, 16_384),
];

/// C22, C23: a hello over any number of records and segments, with X25519MLKEM768.
#[tokio::test]
async fn a_hello_in_any_pieces_is_answered_here() {
    let gateway = Gateway::start(Options::default()).await;
    for (record, segment) in CUTS {
        let https = gateway.addresses.https;
        let mut client = Pieces::greet(https, "localhost", record, segment).await;
        client.exchange(b"", 0).await;
        let group = client.tls.negotiated_key_exchange_group().unwrap();
        assert_eq!(group.name(), NamedGroup::X25519MLKEM768);
        let ask = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        let answer = client.exchange(ask, 12).await;
        assert!(
            answer.starts_with(b"HTTP/1.1 404"),
            "{}",
            answer.escape_ascii()
        );
    }
}

/// C22, C23: passed through by its name, as it came, on the public port and on a dynamic one.
#[tokio::test]
async fn a_hello_in_any_pieces_is_passed_through() {
    let gateway = Gateway::start(Options::default()).await;
    let mut containers = Containers::of(&gateway);
    let (name, port) = ("a1.compute.localhost", gateway.port(0));
    let (through, other) = (container_address(), container_address());
    tls_echo((through, 443).into(), name).await;
    tls_echo((other, 8443).into(), "a2.compute.localhost").await;
    containers.run("a1", through, &[(443, 443), (port.port(), 443)]);
    containers.run("a2", other, &[(port.port(), 8443)]);
    for addr in [gateway.addresses.https, port] {
        for (record, segment) in CUTS {
            let mut client = Pieces::greet(addr, name, record, segment).await;
            assert_eq!(client.exchange(b"over", 4).await, b"over");
            let seen = client.tls.peer_certificates().unwrap()[0].clone();
            let names = edd_gateway::tls::CertNames::of_leaf(&seen).unwrap();
            assert!(names.contains(name));
        }
    }
}

/// C23: whoever names nobody gets the default certificate and an answer.
#[tokio::test]
async fn a_hello_without_a_name_gets_the_default_certificate() {
    let gateway = Gateway::start(Options::default()).await;
    let client = Client::new(None);
    let (_, answer) = client.visit(gateway.addresses.https, "127.0.0.1").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

/// S7: a Host that the connection's certificate does not cover is told so, over both versions of
/// HTTP; so is the name of a container whose TLS is passed through.
#[tokio::test]
async fn a_host_that_the_certificate_does_not_cover_is_misdirected() {
    let gateway = Gateway::start(Options::default()).await;
    let mut containers = Containers::of(&gateway);
    containers.run("a1", container_address(), &[(443, 443)]);
    for host in ["other.test", "a.b.localhost", "a1.compute.localhost"] {
        for flag in ["--http1.1", "--http2"] {
            let port = gateway.addresses.https.port();
            let header = format!("host: {host}:{port}");
            let got = gateway
                .https("localhost", "/", &["--header", &header, flag])
                .await;
            assert_eq!(got.status, 421, "{host} {flag}");
        }
    }
}
