//! Greetings that come in pieces.

use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use crate::support::client::{dial, request};
use crate::support::containers::{Containers, container_address, web};
use crate::support::{Gateway, Options};

/// A client whose handshake messages come in records of at most `size` bytes.
fn connector(gateway: &Gateway, size: usize) -> TlsConnector {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(gateway.ca()).unwrap() {
        roots.add(root.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.max_fragment_size = Some(size);
    // A greeting beyond 16 KiB, which cannot be one record.
    config.alpn_protocols = (0..100)
        .map(|number| format!("{number:0200}").into_bytes())
        .chain([b"http/1.1".to_vec()])
        .collect();
    TlsConnector::from(Arc::new(config))
}

/// C23: a greeting in two records, or one beyond 16 KiB, or without a name, was closed in silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_greeting_may_come_in_many_records_and_be_long() {
    let gateway = Gateway::start(Options::default()).await;
    let mut containers = Containers::of(&gateway);
    let upstream = web(container_address(), "here").await;
    let port = gateway.port(0);
    let rules = [(443, upstream.port()), (port.port(), upstream.port())];
    containers.run("a1", upstream.ip(), &rules);
    for address in [gateway.addresses.https, port] {
        for size in [64, 1000, 16_384 + 5] {
            let name = ServerName::try_from("a1.compute.localhost").unwrap();
            let stream = connector(&gateway, size)
                .connect(name, dial(address).await)
                .await;
            let mut stream = stream.unwrap_or_else(|error| panic!("records of {size}: {error}"));
            let answer = request(&mut stream, "a1.compute.localhost").await;
            assert!(answer.ends_with("here"), "{size}: {answer}");
        }
    }
    // Without a name: the default certificate on the public port, which covers a container's host.
    let address = gateway.addresses.https;
    let greeting = crate::support::client::Greeting::anyone("127.0.0.1");
    let mut stream = greeting.dial(address).await.unwrap();
    let answer = request(&mut stream, "a1.compute.localhost").await;
    assert!(answer.ends_with("here"), "{answer}");
    gateway.stop().await;
}
