//! `https://` targets: whose certificate is believed, and what happens otherwise.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use rustix::process::Signal;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::Acceptor;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::LazyConfigAcceptor;

use super::caller::Caller;
use super::states;
use crate::support::client::{Greeting, request};
use crate::support::daemon::Daemon;
use crate::support::{Gateway, Options, eventually, free_port, replace_file};

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server for `name` with a certificate of `issuer`; says what it was called and whether the session was resumed.
struct Server {
    address: SocketAddr,
    handshakes: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(
        issuer: &Issuer,
        name: &str,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![leaf.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let handshakes = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&handshakes);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&config), Arc::clone(&count)));
            }
        });
        Self {
            address,
            handshakes,
            task,
        }
    }

    fn target(&self, host: &str) -> String {
        format!("https://{host}:{}", self.address.port())
    }
}

async fn serve(stream: TcpStream, config: Arc<ServerConfig>, count: Arc<AtomicUsize>) {
    let Ok(start) = LazyConfigAcceptor::new(Acceptor::default(), stream).await else {
        return;
    };
    let sni = start.client_hello().server_name().unwrap_or("-").to_owned();
    let Ok(mut stream) = start.into_stream(config).await else {
        return;
    };
    count.fetch_add(1, Ordering::SeqCst);
    let (_, session) = stream.get_ref();
    let protocol = session.alpn_protocol().map(String::from_utf8_lossy);
    let text = format!(
        "{sni} {} {:?}",
        protocol.as_deref().unwrap_or("-"),
        session.handshake_kind().unwrap()
    );
    let mut reader = BufReader::new(&mut stream);
    let mut line = String::new();
    // One request, then it closes: each shows a handshake of its own.
    while reader.read_line(&mut line).await.is_ok_and(|read| read > 2) {
        line.clear();
    }
    let length = text.len();
    let answer =
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{text}");
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// A gateway whose folder has `ca.pem`, with these routes.
async fn gateway(ca: &str, routes: String) -> Gateway {
    let folder = Arc::new(tempfile::TempDir::new().unwrap());
    std::fs::write(folder.path().join("ca.pem"), ca).unwrap();
    let options = Options {
        folder: Some(folder),
        ..Options::routes(routes)
    };
    Gateway::start(options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_certificate_that_is_right_in_everything_is_believed() {
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let plain = |_: &mut CertificateParams| {};
    let right = Server::start(&ours, "localhost", plain).await;
    let by_address = Server::start(&ours, "127.0.0.1", plain).await;
    let foreign = Server::start(&theirs, "localhost", plain).await;
    let other_name = Server::start(&ours, "other.test", plain).await;
    let expired = Server::start(&ours, "localhost", |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    })
    .await;
    let early = Server::start(&ours, "localhost", |params| {
        params.not_before = date_time_ymd(2090, 1, 1);
        params.not_after = date_time_ymd(2091, 1, 1);
    })
    .await;
    let mut routes = String::from("routes:\n");
    for (path, target, ca) in [
        ("/right", right.target("localhost"), "ca: ca.pem"),
        ("/address", by_address.target("127.0.0.1"), "ca: ca.pem"),
        ("/foreign", foreign.target("localhost"), "ca: ca.pem"),
        ("/name", other_name.target("localhost"), "ca: ca.pem"),
        ("/number", right.target("127.0.0.1"), "ca: ca.pem"),
        ("/expired", expired.target("localhost"), "ca: ca.pem"),
        ("/early", early.target("localhost"), "ca: ca.pem"),
        // Nobody but the system's roots, which know neither of the two.
        ("/system", right.target("localhost"), ""),
    ] {
        routes += &format!("- {{host: a.test, path: {path}, target: '{target}', {ca}}}\n");
    }
    let gateway = gateway(&ours.pem(), routes.replace(", }", "}")).await;
    let mut caller = Caller::new(&gateway, "a.test");
    let answer = caller.get("/right").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "localhost http/1.1 Full")
    );
    // Tickets come after the handshake, and are used by the next one.
    let answer = caller.get("/right").await;
    assert_eq!(answer.body, "localhost http/1.1 Resumed");
    let answer = caller.get("/address").await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "- http/1.1 Full"),
        "no SNI"
    );
    for path in [
        "/foreign", "/name", "/number", "/expired", "/early", "/system",
    ] {
        let answer = caller.get(path).await;
        assert_eq!(answer.status, 502, "{path}: {answer:?}");
    }
    for server in [&foreign, &other_name, &expired, &early] {
        assert_eq!(server.handshakes.load(Ordering::SeqCst), 0);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_certificate_in_the_file_of_ca_is_followed() {
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let server = Server::start(&ours, "localhost", |_| {}).await;
    let target = server.target("localhost");
    let routes = format!("routes:\n- {{host: a.test, target: '{target}', ca: ca.pem}}\n");
    let gateway = gateway(&theirs.pem(), routes).await;
    assert_eq!(Caller::new(&gateway, "a.test").get("/").await.status, 502);
    replace_file(&gateway.path("ca.pem"), &ours.pem());
    eventually("it is believed", || async {
        Caller::new(&gateway, "a.test").get("/").await.status == 200
    })
    .await;
    // A file that is broken changes nothing.
    let revision = gateway.table().revision;
    replace_file(&gateway.path("ca.pem"), "broken");
    eventually("it is refused", || async {
        super::admin_text(&gateway, "/metrics")
            .await
            .contains("reload_failures_total{kind=\"routes\"} 1\n")
    })
    .await;
    assert_eq!(Caller::new(&gateway, "a.test").get("/").await.status, 200);
    assert_eq!(gateway.table().revision, revision);
    gateway.stop().await;
}

/// Without a `ca` the system's authorities are believed, or those of `SSL_CERT_FILE` in their place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_authorities_of_ssl_cert_file_are_the_systems() {
    let ours = authority("ours");
    let upstream = Server::start(&ours, "localhost", |_| {}).await;
    let folder = tempfile::TempDir::new().unwrap();
    let routes = format!(
        "routes:\n- {{host: a.test, target: '{}'}}\n",
        upstream.target("localhost")
    );
    std::fs::write(folder.path().join("routes.yaml"), routes).unwrap();
    let ca = folder.path().join("ours.pem");
    std::fs::write(&ca, ours.pem()).unwrap();
    for (given, expected) in [(None, "HTTP/1.1 502 "), (Some(&ca), "HTTP/1.1 200 ")] {
        let any =
            ["http", "https", "ssh", "admin"].map(|name| format!("--{name}-addr=127.0.0.1:0"));
        let ports = format!("--ports={}", free_port());
        let flags: Vec<_> = any.into_iter().chain([ports]).collect();
        let mut command = Daemon::command(folder.path(), "exec \"$@\"", &flags);
        if let Some(file) = given {
            command.env("SSL_CERT_FILE", file);
        }
        let mut daemon = Daemon::start(command);
        let https = daemon.address("https").await;
        let mut stream = Greeting::anyone("a.test").dial(https).await.unwrap();
        let answer = request(&mut stream, "a.test").await;
        assert!(answer.starts_with(expected), "{given:?}: {answer}");
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.ended().await.code(), Some(0));
    }
    assert_eq!(upstream.handshakes.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_verify_certificates_too() {
    let (ours, theirs) = (authority("ours"), authority("theirs"));
    let (right, wrong) = (
        Server::start(&ours, "localhost", |_| {}).await,
        Server::start(&theirs, "localhost", |_| {}).await,
    );
    let gateway = gateway(
        &ours.pem(),
        format!(
            "routes:\n- host: a.test\n  ca: ca.pem\n  health: {{path: /, interval: 100ms}}\n  \
             targets: [{{target: '{}'}}, {{target: '{}'}}]\n",
            right.target("localhost"),
            wrong.target("localhost")
        ),
    )
    .await;
    eventually("the wrong one is down", || async {
        let states = states(&gateway).await;
        states[0].1 == "up" && states[1].1.starts_with("down: TLS with ")
    })
    .await;
    let mut caller = Caller::new(&gateway, "a.test");
    for _ in 0..10 {
        assert_eq!(caller.get("/").await.status, 200);
    }
    gateway.stop().await;
}
