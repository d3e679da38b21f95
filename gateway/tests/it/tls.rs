//! Certificates as clients see them.

use std::fs;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::support::client::{Greeting, dial, leaf, request};
use crate::support::daemon::Daemon;
use crate::support::{Gateway, Options, eventually, free_port};

pub(crate) fn pair(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key);
    (certificate.unwrap().pem(), key.serialize_pem())
}

pub(crate) fn put(folder: &Path, pair: &(String, String)) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("tls.crt"), &pair.0).unwrap();
    fs::write(folder.join("tls.key"), &pair.1).unwrap();
}

pub(crate) fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// A folder whose `certs` already holds pairs when the gateway starts.
fn folder(pairs: &[(&str, &(String, String))]) -> std::sync::Arc<tempfile::TempDir> {
    let folder = tempfile::TempDir::new().unwrap();
    for (name, pair) in pairs {
        put(&folder.path().join("certs").join(name), pair);
    }
    std::sync::Arc::new(folder)
}

fn over(folder: &std::sync::Arc<tempfile::TempDir>) -> Options {
    Options {
        folder: Some(std::sync::Arc::clone(folder)),
        ..Options::default()
    }
}

async fn shown(gateway: &Gateway, name: &str) -> CertificateDer<'static> {
    let stream = Greeting::anyone(name).dial(gateway.addresses.https).await;
    leaf(&stream.unwrap())
}

/// R6: a renewed certificate was never loaded.
/// Of a name in two leaves only one pair's demand counts: nobody is to find that out by being hacked.
#[tokio::test]
async fn a_name_in_several_leaves_is_told_at_every_load() {
    let folder = tempfile::TempDir::new().unwrap();
    fs::write(folder.path().join("routes.yaml"), "routes: []\n").unwrap();
    let certs = folder.path().join("certs");
    put(&certs, &pair(&["localhost", "a.localhost"]));
    let closed = pair(&["a.localhost", "b.localhost"]);
    put(&certs.join("closed"), &closed);
    put(&certs.join("open"), &pair(&["b.localhost"]));
    let any = ["http", "https", "ssh", "admin"].map(|name| format!("--{name}-addr=127.0.0.1:0"));
    let ports = format!("--ports={}", free_port());
    let flags: Vec<_> = any.into_iter().chain([ports]).collect();
    let mut daemon = Daemon::start(Daemon::command(folder.path(), "exec \"$@\"", &flags));
    for (names, first, other) in [
        ("a.localhost", "certs/tls.crt", "certs/closed/tls.crt"),
        ("b.localhost", "certs/closed/tls.crt", "certs/open/tls.crt"),
    ] {
        let line = daemon.line("the first serves them").await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["level"], "WARN", "{line}");
        let told = ["names", "served", "not_served"].map(|field| line[field].as_str().unwrap());
        assert_eq!(told, [names, first, other]);
    }
    daemon.address("https").await;
    fs::write(certs.join("closed/client-ca.crt"), &closed.0).unwrap();
    for said in [
        "the demand for client certificates of certs/closed/tls.crt does not apply to a.localhost",
        "certs/open/tls.crt demands no client certificates, but b.localhost do",
    ] {
        let line = daemon.line(said).await;
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["level"], "ERROR", "{line}");
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(0));
}

#[tokio::test]
async fn the_name_chooses_and_a_renewed_pair_is_served_without_a_restart() {
    let (default, more) = (pair(&["a.example"]), pair(&["*.b.example"]));
    let folder = folder(&[("", &default), ("more", &more)]);
    let gateway = Gateway::start(over(&folder)).await;
    assert_eq!(shown(&gateway, "a.example").await, der(&default.0));
    assert_eq!(shown(&gateway, "x.b.example").await, der(&more.0));
    assert_eq!(shown(&gateway, "x.y.b.example").await, der(&default.0));
    assert_eq!(shown(&gateway, "127.0.0.1").await, der(&default.0));

    let mut open = Greeting::anyone("a.example")
        .dial(gateway.addresses.https)
        .await
        .unwrap();
    // Half of a renewal: the old pair stays.
    let renewed = pair(&["a.example"]);
    let certs = folder.path().join("certs");
    fs::write(certs.join("tls.crt"), &renewed.0).unwrap();
    let later = pair(&["*.b.example"]);
    put(&certs.join("more"), &later);
    eventually("the other pair is new", || async {
        shown(&gateway, "x.b.example").await == der(&later.0)
    })
    .await;
    assert_eq!(shown(&gateway, "a.example").await, der(&default.0));
    fs::write(certs.join("tls.key"), &renewed.1).unwrap();
    eventually("the renewal is whole", || async {
        shown(&gateway, "a.example").await == der(&renewed.0)
    })
    .await;
    // Connections of before go on.
    let answer = request(&mut open, "a.example").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn only_bad_pairs_at_start_are_a_mistake_of_the_command_line() {
    let (one, two) = (pair(&["a.example"]), pair(&["b.example"]));
    let folder = folder(&[("", &(one.0, two.1))]);
    let Err(exit) = Gateway::try_start(over(&folder)).await else {
        panic!("it started");
    };
    let text = format!("{exit:?}");
    assert!(
        text.starts_with("Usage") && text.contains("tls.crt"),
        "{text}"
    );
}

#[tokio::test]
async fn both_versions_of_http_are_offered() {
    let gateway = Gateway::start(Options::default()).await;
    let ca = gateway.ca();
    for (alpn, chosen) in [
        (&[&b"h2"[..], b"http/1.1"][..], Some(&b"h2"[..])),
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let greeting = Greeting {
            name: "localhost",
            ca: Some(&ca),
            alpn,
        };
        let stream = greeting.dial(gateway.addresses.https).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen);
    }
    let smtp = Greeting {
        name: "localhost",
        ca: Some(&ca),
        alpn: &[b"smtp"],
    };
    let refused = smtp.dial(gateway.addresses.https).await.unwrap_err();
    assert!(
        refused.to_string().contains("NoApplicationProtocol"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_new_static_host_is_covered_as_soon_as_it_is_routed() {
    let gateway = Gateway::start(Options::default()).await;
    let ca = gateway.ca();
    let routes = "routes:\n  - host: fresh.example\n    target: 127.0.0.1:9\n";
    fs::write(gateway.path("routes.yaml"), routes).unwrap();
    gateway
        .until("the route is there", |table| {
            table.statics().iter().len() == 1
        })
        .await;
    let greeting = Greeting {
        name: "fresh.example",
        ca: Some(&ca),
        alpn: &[],
    };
    let mut stream = greeting.dial(gateway.addresses.https).await.unwrap();
    let answer = request(&mut stream, "fresh.example").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    drop(dial(gateway.addresses.http).await);
}
