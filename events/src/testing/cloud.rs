//! The server of the committed `deploy/nats/nats.conf`, with keys and certificates of its own.

use std::path::PathBuf;

use async_nats::Client;
use tempfile::TempDir;

use super::NatsServer;
use crate::connect::{NatsOptions, connect};

const CONFIG: &str = include_str!("../../../deploy/nats/nats.conf");

const SERVICES: [&str; 5] = ["auth", "compute", "sfs", "gateway", "operator"];

/// NATS as it runs in the cloud: TLS, one nkey per service, and what each may say.
#[derive(Debug)]
pub struct Cloud {
    /// The server.
    pub server: NatsServer,
    /// CA, certificate, keys.
    files: TempDir,
}

impl Cloud {
    /// Starts the server.
    ///
    /// # Panics
    /// As [`NatsServer::start`].
    pub async fn start() -> Self {
        let files = tempfile::tempdir().expect("a temporary folder for keys");
        let path = |name: &str| files.path().join(name).display().to_string();
        let write = |name: &str, text: String| std::fs::write(path(name), text).expect("a file");
        let ca_key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("a CA");
        let issuer = rcgen::Issuer::new(params, ca_key);
        let key = rcgen::KeyPair::generate().expect("a key");
        let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .and_then(|params| params.signed_by(&key, &issuer))
            .expect("a certificate");
        write("ca.pem", ca.pem());
        write("tls.crt", leaf.pem());
        write("tls.key", key.serialize_pem());
        let mut env = vec![
            ("EDD_NATS_TLS_CERT".to_owned(), path("tls.crt")),
            ("EDD_NATS_TLS_KEY".to_owned(), path("tls.key")),
            (
                "EDD_NATS_STORE_KEY".to_owned(),
                "secret-of-the-store".to_owned(),
            ),
        ];
        for service in SERVICES {
            let user = nkeys::KeyPair::new_user();
            let variable = format!("EDD_NATS_{}_NKEY", service.to_uppercase());
            env.push((variable, user.public_key()));
            write(service, user.seed().expect("a seed"));
        }
        let server = NatsServer::start_with(CONFIG, env).await;
        Self { server, files }
    }

    /// Where a file of it is: `ca.pem`, and the seed of each service by its name.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// How `service` (`auth`, `compute`, `sfs`, `gateway`, `operator`) connects.
    #[must_use]
    pub fn options(&self, service: &str) -> NatsOptions {
        NatsOptions {
            url: format!("tls://127.0.0.1:{}", self.server.port()),
            nkey: Some(self.file(service)),
            ca: Some(self.file("ca.pem")),
            name: format!("edd-{service}"),
            ..NatsOptions::default()
        }
    }

    /// The same as flags of its binary.
    #[must_use]
    pub fn flags(&self, service: &str) -> Vec<String> {
        vec![
            format!("--nats-url=tls://127.0.0.1:{}", self.server.port()),
            format!("--nats-nkey={}", self.file(service).display()),
            format!("--nats-ca={}", self.file("ca.pem").display()),
        ]
    }

    /// A connected client with the rights of `service`.
    ///
    /// # Panics
    /// When the server cannot be reached in time.
    pub async fn client(&self, service: &str) -> Client {
        let client = connect(&self.options(service)).await.expect("good options");
        tokio::time::timeout(super::START_TIMEOUT, client.flush())
            .await
            .expect("nats-server answers in time")
            .expect("a flush of a live connection");
        client
    }

    /// Publishes `subject` as `service`, and waits until the server has refused it and said so.
    ///
    /// # Panics
    /// When it does not.
    pub async fn refuses(&self, service: &str, subject: &str) {
        let client = self.client(service).await;
        let sent = client.publish(subject.to_owned(), "forged".into()).await;
        sent.expect("handed to the client");
        client.flush().await.expect("a flush of a live connection");
        let said = |line: &str| {
            line.contains("Publish Violation") && line.contains(&format!("\"{subject}\""))
        };
        let refused = async {
            while !self.server.log().lines().any(said) {
                tokio::time::sleep(super::POLL).await;
            }
        };
        tokio::time::timeout(super::START_TIMEOUT, refused)
            .await
            .unwrap_or_else(|_| panic!("{service} may say {subject}"));
    }
}
