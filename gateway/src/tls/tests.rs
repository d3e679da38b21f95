//! The store as clients see it: real handshakes over an in-memory stream.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{CertError, CertNames, CertStore, HandshakeError, PairError, Secured};
use crate::telemetry::Metrics;

const DOMAIN: &str = "cloud.example";

/// Certificates in a folder of their own, and all of their roots.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("certs")).unwrap();
        Self { dir }
    }

    fn certs(&self) -> std::path::PathBuf {
        self.dir.path().join("certs")
    }

    fn state(&self) -> std::path::PathBuf {
        self.dir.path().join("state")
    }

    fn open(&self) -> Result<CertStore, CertError> {
        let metrics = Metrics::register(&mut Registry::default());
        CertStore::open_in(&self.certs(), &self.state(), DOMAIN, metrics)
    }
}

/// A self-signed pair in PEM, for the client to trust as it is.
fn pair(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key);
    (certificate.unwrap().pem(), key.serialize_pem())
}

fn put(folder: &Path, pair: &(String, String)) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("tls.crt"), &pair.0).unwrap();
    fs::write(folder.join("tls.key"), &pair.1).unwrap();
}

fn client(roots: &[&str], alpn: &[&[u8]]) -> TlsConnector {
    let mut store = RootCertStore::empty();
    for root in roots {
        for certificate in CertificateDer::pem_slice_iter(root.as_bytes()) {
            store.add(certificate.unwrap()).unwrap();
        }
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(store)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

type Shaken = (
    Result<TlsStream<DuplexStream>, std::io::Error>,
    Result<Secured, HandshakeError<DuplexStream>>,
);

async fn shake(store: &CertStore, connector: TlsConnector, name: &str) -> Shaken {
    let (near, far) = duplex(64 * 1024);
    let server_name = ServerName::try_from(name.to_owned()).unwrap();
    let sni = matches!(server_name, ServerName::DnsName(_)).then(|| name.to_owned());
    let deadline = Instant::now() + Duration::from_secs(10);
    let serve = async {
        let (mut stream, secured) = store.accept(far, sni, deadline).await?;
        let _ = stream.write_all(b"hello").await;
        Ok(secured)
    };
    tokio::join!(connector.connect(server_name, near), serve)
}

/// What the leaf that answers `name` covers; the client checks nothing but that it trusts it.
async fn answers(store: &CertStore, roots: &[&str], name: &str) -> Arc<CertNames> {
    let (client, server) = shake(store, client(roots, &[]), name).await;
    let mut stream = client.unwrap();
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).await.unwrap();
    let secured = server.unwrap();
    let leaf = &stream.get_ref().1.peer_certificates().unwrap()[0];
    assert_eq!(CertNames::of_leaf(leaf).as_ref(), Some(&*secured.covers));
    secured.covers
}

#[tokio::test]
async fn an_empty_folder_gets_a_development_ca_that_stays() {
    let place = Place::new();
    let store = place.open().unwrap();
    let dev = place.state().join("dev-certs");
    let ca = fs::read_to_string(dev.join("dev-ca.crt")).unwrap();
    for key in ["dev-ca.key", "tls.key"] {
        let mode = fs::metadata(dev.join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    for name in [
        "cloud.example",
        "www.cloud.example",
        "abc.compute.cloud.example",
        "localhost",
        "127.0.0.1",
    ] {
        answers(&store, &[&ca], name).await;
    }

    assert!(!store.covers(None).contains("new.example"));
    store.cover(["new.example".to_owned(), "*.more.example".to_owned()]);
    for name in ["new.example", "x.more.example", "cloud.example"] {
        answers(&store, &[&ca], name).await;
    }
    let leaf = fs::read(dev.join("tls.crt")).unwrap();
    store.cover(["new.example".to_owned()]);
    assert_eq!(fs::read(dev.join("tls.crt")).unwrap(), leaf);

    let again = place.open().unwrap();
    assert_eq!(fs::read_to_string(dev.join("dev-ca.crt")).unwrap(), ca);
    answers(&again, &[&ca], "cloud.example").await;
}

/// As a process and its successor do.
#[test]
fn several_issue_into_one_folder_at_once() {
    let place = Place::new();
    place.open().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    place.open().unwrap();
                }
            });
        }
    });
    let left = fs::read_dir(place.state().join("dev-certs")).unwrap();
    let mut left: Vec<_> = left.map(|file| file.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["dev-ca.crt", "dev-ca.key", "tls.crt", "tls.key"]);
}

#[tokio::test]
async fn a_broken_development_ca_is_replaced() {
    let place = Place::new();
    place.open().unwrap();
    let dev = place.state().join("dev-certs");
    let old = fs::read_to_string(dev.join("dev-ca.crt")).unwrap();
    for (file, text) in [("dev-ca.key", "no key"), ("dev-ca.crt", &old)] {
        fs::write(dev.join(file), text).unwrap();
    }
    let store = place.open().unwrap();
    let new = fs::read_to_string(dev.join("dev-ca.crt")).unwrap();
    assert_ne!(old, new);
    answers(&store, &[&new], "cloud.example").await;
}

#[tokio::test]
async fn the_name_chooses_and_the_default_answers_the_rest() {
    let place = Place::new();
    let default = pair(&["default.example", "1.example"]);
    let wild = pair(&["*.example", "2.example"]);
    let deep = pair(&["a.example", "*.b.example"]);
    put(&place.certs(), &default);
    put(&place.certs().join("wild"), &wild);
    put(&place.certs().join("deep"), &deep);
    fs::write(place.certs().join("README.md"), "not a pair").unwrap();
    let store = place.open().unwrap();
    let covers = |name| store.covers(name);
    for (name, mark) in [
        (None, "default.example"),
        (Some("other.test"), "default.example"),
        (Some("a.b.c.example"), "default.example"),
        (Some("1.example"), "default.example"),
        (Some("A.Example."), "a.example"),
        (Some("x.b.example"), "a.example"),
        (Some("c.example"), "2.example"),
        (Some("2.example"), "2.example"),
    ] {
        assert!(covers(name).contains(mark), "{name:?}");
    }
    let roots = [default.0.as_str(), &wild.0, &deep.0];
    assert!(
        answers(&store, &roots, "a.example")
            .await
            .contains("x.b.example")
    );
    assert!(
        answers(&store, &roots, "1.example")
            .await
            .contains("default.example")
    );
}

#[tokio::test]
async fn protocols_and_versions_are_agreed() {
    let place = Place::new();
    let default = pair(&["a.example"]);
    put(&place.certs(), &default);
    let store = place.open().unwrap();
    let roots = [default.0.as_str()];
    for (offer, h2) in [
        (&[&b"h2"[..], b"http/1.1"][..], true),
        (&[b"http/1.1"], false),
        (&[], false),
    ] {
        let (_, server) = shake(&store, client(&roots, offer), "a.example").await;
        let secured = server.unwrap();
        assert_eq!((secured.alpn_h2, secured.version), (h2, "1.3"));
        assert_eq!(secured.sni.as_deref(), Some("a.example"));
    }
    let (refused, server) = shake(&store, client(&roots, &[b"smtp"]), "a.example").await;
    let alert = refused.unwrap_err().to_string();
    assert!(alert.contains("NoApplicationProtocol"), "{alert}");
    assert!(matches!(server, Err(HandshakeError::Failed { .. })));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_ends_at_its_deadline() {
    let place = Place::new();
    let store = place.open().unwrap();
    let (_near, far) = duplex(1024);
    let deadline = Instant::now() + Duration::from_secs(10);
    let error = store.accept(far, None, deadline).await.unwrap_err();
    assert!(matches!(error, HandshakeError::TimedOut));
    assert_eq!(Instant::now(), deadline);
}

#[test]
fn only_bad_pairs_are_an_error_and_all_are_named() {
    let place = Place::new();
    let (one, two) = (pair(&["a.example"]), pair(&["b.example"]));
    put(&place.certs(), &(one.0.clone(), two.1.clone()));
    put(&place.certs().join("half"), &one);
    fs::remove_file(place.certs().join("half/tls.key")).unwrap();
    put(&place.certs().join("text"), &("no".into(), "no".into()));
    put(
        &place.certs().join("keyless"),
        &(one.0.clone(), "no".into()),
    );
    let error = place.open().unwrap_err();
    let text = error.to_string();
    let CertError::OnlyBadPairs(errors) = error else {
        panic!("{text}")
    };
    assert!(matches!(
        errors[..],
        [
            PairError::Mismatch { .. },
            PairError::Missing(_),
            PairError::Key(_),
            PairError::Certificate(_)
        ]
    ));
    for part in ["half/tls.key is missing", "text/tls.crt", "keyless/tls.key"] {
        assert!(text.contains(part), "{text}");
    }
    // Nothing was made up behind the operator's back.
    assert!(!place.state().exists());

    put(&place.certs().join("half"), &one);
    assert!(place.open().is_ok());
}

#[test]
fn at_the_start_no_pair_that_demands_client_certificates_may_be_missing() {
    let place = Place::new();
    let (wide, own) = (pair(&["*.example"]), pair(&["a.example"]));
    put(&place.certs(), &wide);
    let folder = place.certs().join("a");
    put(&folder, &own);
    let required = folder.join("client-ca.crt");
    fs::write(&required, "no authority").unwrap();
    let named = |part: &str| {
        let text = place.open().unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    named("a/client-ca.crt holds no CA certificates");
    fs::write(&required, &own.0).unwrap();
    assert!(place.open().is_ok());
    fs::write(folder.join("client-ca-optional.crt"), &own.0).unwrap();
    named("exclude each other");
    fs::remove_file(folder.join("client-ca-optional.crt")).unwrap();
    // Its names would be the wider certificate's to serve.
    fs::write(folder.join("tls.key"), &wide.1).unwrap();
    named("do not fit");
    fs::remove_file(folder.join("tls.crt")).unwrap();
    fs::remove_file(folder.join("tls.key")).unwrap();
    named("a/tls.crt is missing");
}

/// A link that leads nowhere (a volume that is being swapped) is not the operator's wish to let
/// everyone in.
#[test]
fn a_demand_whose_link_leads_nowhere_is_still_one() {
    let place = Place::new();
    put(&place.certs(), &pair(&["*.example"]));
    let (own, folder) = (pair(&["a.example"]), place.certs().join("a"));
    put(&folder, &own);
    fs::write(folder.join("authority"), &own.0).unwrap();
    let link = folder.join("client-ca.crt");
    symlink("authority", &link).unwrap();
    let store = place.open().unwrap();
    let lets_anyone_in = || store.proves(None, "a.example");
    assert!(!lets_anyone_in());
    fs::remove_file(folder.join("authority")).unwrap();
    store.reload();
    assert!(!lets_anyone_in(), "the last demand stays");
    let text = place.open().unwrap_err().to_string();
    assert!(text.contains("a/client-ca.crt"), "{text}");
    // Without the link nothing is demanded.
    fs::remove_file(link).unwrap();
    store.reload();
    assert!(lets_anyone_in());
    assert!(place.open().is_ok());
}

#[test]
fn a_pair_that_does_not_fit_keeps_the_old_one_until_it_does() {
    let place = Place::new();
    let (old, new) = (pair(&["old.example"]), pair(&["new.example"]));
    put(&place.certs(), &old);
    put(&place.certs().join("more"), &pair(&["more.example"]));
    let store = place.open().unwrap();
    let serves = |name: &str| store.covers(None).contains(name);

    fs::write(place.certs().join("tls.crt"), &new.0).unwrap();
    store.reload();
    assert!(serves("old.example"));
    fs::remove_file(place.certs().join("tls.key")).unwrap();
    store.reload();
    assert!(serves("old.example"));
    fs::write(place.certs().join("tls.key"), &new.1).unwrap();
    store.reload();
    assert!(serves("new.example") && !serves("old.example"));

    assert!(store.covers(Some("more.example")).contains("more.example"));
    fs::remove_dir_all(place.certs().join("more")).unwrap();
    store.reload();
    assert!(store.covers(Some("more.example")).contains("new.example"));

    // An empty folder is more likely a mistake than a wish.
    fs::remove_file(place.certs().join("tls.key")).unwrap();
    fs::remove_file(place.certs().join("tls.crt")).unwrap();
    store.reload();
    assert!(serves("new.example"));
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(
        timeout(Duration::from_secs(10), wait).await.is_ok(),
        "{what}"
    );
}

#[tokio::test]
async fn the_folder_is_followed_through_writes_renames_and_volume_swaps() {
    let place = Place::new();
    let volume = place.certs().join("secret");
    put(&volume.join("..one"), &pair(&["one.example"]));
    symlink("..one", volume.join("..data")).unwrap();
    for file in ["tls.crt", "tls.key"] {
        symlink(format!("..data/{file}"), volume.join(file)).unwrap();
    }
    let store = Arc::new(place.open().unwrap());
    let stop = CancellationToken::new();
    let watch = tokio::spawn(Arc::clone(&store).watch(stop.clone()));
    let serves = |name: &'static str| {
        let store = Arc::clone(&store);
        move || store.covers(Some(name)).contains(name)
    };
    assert!(serves("one.example")());
    // Only once the watcher is there are changes events.
    put(&place.certs(), &pair(&["default.example"]));
    until("the watcher is there", serves("default.example")).await;

    put(&volume.join("..two"), &pair(&["two.example"]));
    symlink("..two", volume.join("..data_tmp")).unwrap();
    fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    until("the swap is seen", serves("two.example")).await;

    put(&place.certs(), &pair(&["three.example"]));
    until("the write is seen", serves("three.example")).await;

    put(&place.certs().join("late"), &pair(&["four.example"]));
    until("the new folder is seen", serves("four.example")).await;

    stop.cancel();
    timeout(Duration::from_secs(5), watch)
        .await
        .unwrap()
        .unwrap();
}
