//! Certificates of clients: demanded, told to upstreams, and never got around.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::HandshakeKind::{Full, Resumed};
use rustls::version::{TLS12, TLS13};
use serde_json::Value;
use tempfile::TempDir;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::{dial, request};
use crate::support::tls::{Client, ClientCa, Identity};
use crate::support::{Gateway, Options, Origin, eventually, replace_file};
use crate::tls::{pair, put};

/// Hosts that demand nothing, a certificate, and one if there is one.
const OPEN: &str = "open.example";
const CLOSED: &str = "closed.example";
const EITHER: &str = "either.example";

struct Rig {
    gateway: Gateway,
    ca: ClientCa,
    client: Identity,
    stranger: Identity,
    _origin: Origin,
}

impl Rig {
    /// The default certificate covers all hosts; two of them have others of their own.
    async fn start() -> Self {
        let origin = Origin::friendly("127.64.0.2").await;
        let ca = ClientCa::new("the authority");
        let folder = Arc::new(TempDir::new().unwrap());
        let certs = folder.path().join("certs");
        put(&certs, &pair(&["*.example"]));
        put(&certs.join("closed"), &pair(&[CLOSED, OPEN]));
        put(&certs.join("either"), &pair(&[EITHER]));
        // The name decides: this one serves it, the other only lists it too.
        put(&certs.join("a-open"), &pair(&[OPEN]));
        fs::write(certs.join("closed/client-ca.crt"), ca.pem()).unwrap();
        fs::write(certs.join("either/client-ca-optional.crt"), ca.pem()).unwrap();
        let target = origin.address;
        let routes: String = [OPEN, CLOSED, EITHER]
            .map(|host| format!("  - host: {host}\n    target: {target}\n"))
            .concat();
        let gateway = Gateway::start(Options {
            folder: Some(folder),
            ..Options::routes(format!("routes:\n{routes}"))
        })
        .await;
        Self {
            client: ca.issue("client"),
            stranger: ClientCa::new("the authority").issue("client"),
            gateway,
            ca,
            _origin: origin,
        }
    }

    /// The status that `host` answers on a connection made for `name`.
    async fn ask(&self, who: Option<&Identity>, name: &str, host: &str) -> u16 {
        let client = Client::new(who);
        let mut stream = client
            .dial(self.gateway.addresses.https, name)
            .await
            .unwrap();
        status(&request(&mut stream, host).await)
    }
}

fn status(answer: &str) -> u16 {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    // A TLS alert ends the connection without one.
    code.unwrap_or(0)
}

fn told<'j>(mirrored: &'j Value, name: &str) -> Vec<&'j str> {
    let fields = mirrored["fields"].as_array().expect("fields");
    let named = fields.iter().filter(|field| field[0] == name);
    named.filter_map(|field| field[1].as_str()).collect()
}

fn body(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
    serde_json::from_str(body).unwrap_or_else(|_| panic!("{answer}"))
}

/// S7: neither another name in the handshake nor a wider certificate gets around it.
#[tokio::test]
async fn a_host_that_demands_a_certificate_is_reached_with_one_only() {
    let rig = Rig::start().await;
    let (client, stranger) = (Some(&rig.client), Some(&rig.stranger));
    for (who, name, host, expected) in [
        (None, OPEN, OPEN, 200),
        (client, OPEN, OPEN, 200),
        (client, CLOSED, CLOSED, 200),
        (client, EITHER, EITHER, 200),
        (None, EITHER, EITHER, 200),
        // No certificate, or another authority's of the same name.
        (None, CLOSED, CLOSED, 0),
        (stranger, CLOSED, CLOSED, 0),
        (stranger, EITHER, EITHER, 0),
        // Through the door of another host.
        (None, OPEN, CLOSED, 421),
        (client, OPEN, CLOSED, 421),
        (None, "other.example", CLOSED, 421),
        (client, "other.example", CLOSED, 421),
        (client, EITHER, CLOSED, 421),
        (None, EITHER, CLOSED, 421),
        (None, "127.0.0.1", CLOSED, 421),
        (None, "other.example", "CLOSED.example.", 421),
        (None, "other.example", EITHER, 421),
        // The certificate of this connection has that name, and another one answers to it.
        (client, CLOSED, OPEN, 421),
    ] {
        let found = rig.ask(who, name, host).await;
        assert_eq!(found, expected, "{} {name} {host}", who.is_some());
    }
    // Nor does asking without TLS.
    let http = rig.gateway.addresses.http;
    let plain = request(&mut dial(http).await, CLOSED).await;
    assert!(
        plain.starts_with("HTTP/1.1 308 ") || plain.starts_with("HTTP/1.1 421 "),
        "{plain}"
    );
}

/// RFC 9440; the client's own word for it is never passed on.
#[tokio::test]
async fn upstreams_are_told_the_verified_certificate_and_nothing_else() {
    let rig = Rig::start().await;
    let claims = "Client-Cert: :bWluZQ==:\r\nclient_cert: :bWluZQ==:\r\n\
                  Client-Cert-Chain: :bWluZQ==:\r\nCLIENT_CERT_CHAIN: :bWluZQ==:\r\n\
                  X-Real-IP: 6.6.6.6\r\nx_real_ip: 6.6.6.6\r\n";
    let verified = format!(":{}:", STANDARD.encode(&rig.client.leaf));
    for (who, host, expected) in [
        (None, OPEN, vec![]),
        (Some(&rig.client), OPEN, vec![]),
        (None, EITHER, vec![]),
        (Some(&rig.client), EITHER, vec![verified.as_str()]),
        (Some(&rig.client), CLOSED, vec![verified.as_str()]),
    ] {
        let client = Client::new(who);
        let mut stream = client
            .dial(rig.gateway.addresses.https, host)
            .await
            .unwrap();
        let ask = format!("GET / HTTP/1.1\r\nHost: {host}\r\n{claims}Connection: close\r\n\r\n");
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer).await;
        let told_all = body(&answer);
        assert_eq!(told(&told_all, "client-cert"), expected, "{host}");
        for dropped in [
            "client_cert",
            "client-cert-chain",
            "client_cert_chain",
            "x-real-ip",
            "x_real_ip",
        ] {
            assert!(told(&told_all, dropped).is_empty(), "{dropped}");
        }
    }
}

/// S7: an HTTP/2 connection made for one host and used for another.
#[tokio::test]
async fn connections_that_are_coalesced_do_not_get_around_it_either() {
    let rig = Rig::start().await;
    let identity = rig.gateway.path("client.pem");
    fs::write(&identity, &rig.client.pem).unwrap();
    let identity = identity.display().to_string();
    let port = rig.gateway.addresses.https.port();
    for (is_known, name, host, expected) in [
        (true, CLOSED, CLOSED, 200),
        (true, EITHER, EITHER, 200),
        (false, EITHER, EITHER, 200),
        (true, OPEN, CLOSED, 421),
        (false, OPEN, CLOSED, 421),
        (true, EITHER, CLOSED, 421),
        (true, CLOSED, OPEN, 421),
    ] {
        let authority = format!("host: {host}:{port}");
        let mut more = vec!["--http2", "--insecure", "--header", &authority];
        if is_known {
            more.extend(["--cert", &identity]);
        }
        let got = rig.gateway.https(name, "/", &more).await;
        assert_eq!(
            (got.status, &*got.version),
            (expected, "2"),
            "{name} {host}"
        );
        if got.status == 200 {
            let verified = format!(":{}:", STANDARD.encode(&rig.client.leaf));
            let expected: Vec<_> = is_known.then_some(&*verified).into_iter().collect();
            assert_eq!(told(&got.json(), "client-cert"), expected, "{name}");
        }
    }
    let got = rig
        .gateway
        .https(CLOSED, "/", &["--http2", "--insecure"])
        .await;
    assert_eq!(got.status, 0);
}

#[tokio::test]
async fn a_ticket_brings_the_certificate_back_and_opens_no_other_door() {
    let rig = Rig::start().await;
    let https = rig.gateway.addresses.https;
    let verified = format!(":{}:", STANDARD.encode(&rig.client.leaf));
    for version in [&TLS12, &TLS13] {
        let client = Client::with(Some(&rig.client), &[version], &[]);
        let (kind, answer) = client.visit(https, CLOSED).await;
        assert_eq!((kind, status(&answer)), (Full, 200));
        let (kind, answer) = client.visit(https, CLOSED).await;
        assert_eq!((kind, status(&answer)), (Resumed, 200));
        assert_eq!(told(&body(&answer), "client-cert"), [verified.as_str()]);
    }

    // The authority is replaced: the ticket of before is worth nothing, nor is the connection.
    let client = Client::new(Some(&rig.client));
    let mut open = client.dial(https, CLOSED).await.unwrap();
    let (_, answer) = client.visit(https, CLOSED).await;
    assert_eq!(status(&answer), 200);
    let file = rig.gateway.path("certs/closed/client-ca.crt");
    let other = ClientCa::new("the next authority");
    replace_file(&file, other.pem());
    let admitted = other.issue("client");
    eventually("the new authority is in force", || async {
        rig.ask(Some(&admitted), CLOSED, CLOSED).await == 200
    })
    .await;
    let mut stream = client.dial(https, CLOSED).await.unwrap();
    assert_eq!(status(&request(&mut stream, CLOSED).await), 0);
    assert_eq!(status(&request(&mut open, CLOSED).await), 421);

    // What cannot be read leaves the last one in force.
    replace_file(&file, "no certificate");
    put(&rig.gateway.path("certs/mark"), &pair(&["mark.example"]));
    eventually("the folder was read again", || async {
        let covers = rig.gateway.shared.certs.covers(Some("mark.example"));
        covers.exact().any(|name| name == "mark.example")
    })
    .await;
    assert_eq!(rig.ask(Some(&admitted), CLOSED, CLOSED).await, 200);
    assert_eq!(rig.ask(None, CLOSED, CLOSED).await, 0);
    drop(rig.ca);
}

/// A ticket brings back what was verified once; whether it would be today is asked again.
#[tokio::test]
async fn a_ticket_does_not_outlive_the_certificate_it_brings_back() {
    let rig = Rig::start().await;
    let https = rig.gateway.addresses.https;
    for version in [&TLS12, &TLS13] {
        let end = OffsetDateTime::now_utc() + Duration::from_secs(6);
        let passing = rig.ca.issue_until("passing", end);
        let client = Client::with(Some(&passing), &[version], &[]);
        let (kind, answer) = client.visit(https, CLOSED).await;
        assert_eq!((kind, status(&answer)), (Full, 200));
        let last = Mutex::new(None);
        eventually("the certificate is out of date", || async {
            let (kind, answer) = client.visit(https, CLOSED).await;
            *last.lock().unwrap() = Some(kind);
            status(&answer) != 200
        })
        .await;
        // By its ticket it still could have come.
        assert_eq!(*last.lock().unwrap(), Some(Resumed));
        assert!(OffsetDateTime::now_utc() > end);
    }
}
