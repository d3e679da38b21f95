//! The certificates in force, and the one writer that replaces them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;
use tracing::{error, info, warn};

use super::dev_ca::{DevCa, DevCaError, DevLeaf};
use super::pair::{self, Found, Pair, PairError};
use super::table::CertTable;
use super::{CertNames, handshake};
use crate::config::Config;
use crate::telemetry::Metrics;

/// Why there is no certificate to start with.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// `--certs-dir` holds pairs, but none that can be used: the command line is wrong (exit 64).
    #[error("--certs-dir: {}", list(.0))]
    OnlyBadPairs(Vec<PairError>),
    /// It is empty, and the development CA cannot be made.
    #[error("--certs-dir is empty, and the development CA fails: {0}")]
    DevCa(#[from] DevCaError),
    /// The TLS library refuses its configuration.
    #[error("setting TLS up: {0}")]
    Library(#[from] rustls::Error),
}

fn list(errors: &[PairError]) -> String {
    let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// Holds the certificates and does handshakes with them.
pub struct CertStore {
    resolver: Arc<Resolver>,
    pub(super) acceptor: TlsAcceptor,
    pub(super) folder: PathBuf,
    pub(super) metrics: Metrics,
    provider: Arc<CryptoProvider>,
    // Writers only: the watcher, and control when routes.yaml changes.
    source: Mutex<Source>,
}

/// Where the certificates come from.
enum Source {
    Dev { ca: Box<DevCa>, leaf: Box<DevLeaf> },
    Folder(Folder),
}

/// What the folder held when it was last read.
#[derive(Default)]
struct Folder {
    found: BTreeMap<String, Found>,
    pairs: BTreeMap<String, Arc<Pair>>,
}

impl CertStore {
    /// Reads `--certs-dir`; if it holds no pairs, opens the development CA instead.
    ///
    /// Bad pairs beside good ones are only reported. Blocks on files.
    pub fn open(config: &Config, metrics: Metrics) -> Result<Self, CertError> {
        let domain = &config.platform_domain;
        Self::open_in(&config.certs_dir, &config.state_dir, domain, metrics)
    }

    pub(super) fn open_in(
        folder: &Path,
        state_dir: &Path,
        domain: &str,
        metrics: Metrics,
    ) -> Result<Self, CertError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let found = pair::scan(folder).map_err(|error| CertError::OnlyBadPairs(vec![error]))?;
        let source = if found.is_empty() {
            let ca = DevCa::open(state_dir, domain)?;
            let leaf = ca.issue(&BTreeSet::new(), &provider)?;
            warn!(
                folder = %folder.display(),
                ca = %ca.certificate_path().display(),
                "no certificates, serving those of a development CA"
            );
            Source::Dev {
                ca: Box::new(ca),
                leaf: Box::new(leaf),
            }
        } else {
            let mut read = Folder::default();
            let errors = read.update(found, &provider);
            if read.pairs.is_empty() {
                return Err(CertError::OnlyBadPairs(errors));
            }
            report(&errors, &metrics);
            Source::Folder(read)
        };
        let resolver = Arc::new(Resolver(ArcSwap::from_pointee(source.table())));
        let acceptor = handshake::acceptor(Arc::clone(&resolver), Arc::clone(&provider))?;
        Ok(Self {
            resolver,
            acceptor,
            folder: folder.to_owned(),
            metrics,
            provider,
            source: Mutex::new(source),
        })
    }

    /// The names that the certificate for this server name covers.
    pub fn covers(&self, sni: Option<&str>) -> Arc<CertNames> {
        let table = self.resolver.0.load();
        table
            .select(sni)
            .map(|pair| Arc::clone(&pair.names))
            .unwrap_or_default()
    }

    /// Reads the folder again and puts what changed in force. Blocks on files.
    ///
    /// A pair that cannot be used leaves the old one of its folder in force; a
    /// folder without any pair leaves everything.
    pub fn reload(&self) {
        let found = match pair::scan(&self.folder) {
            Ok(found) => found,
            Err(error) => return report(&[error], &self.metrics),
        };
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *source {
            _ if found.is_empty() => {}
            Source::Folder(read) => {
                if read.found == found {
                    return;
                }
                let errors = read.update(found, &self.provider);
                report(&errors, &self.metrics);
                info!(pairs = read.pairs.len(), "certificates reloaded");
                self.resolver.0.store(Arc::new(source.table()));
            }
            Source::Dev { .. } => {
                let mut read = Folder::default();
                let errors = read.update(found, &self.provider);
                if read.pairs.is_empty() {
                    return report(&errors, &self.metrics);
                }
                report(&errors, &self.metrics);
                info!(
                    pairs = read.pairs.len(),
                    "certificates found, the development CA is out of use"
                );
                *source = Source::Folder(read);
                self.resolver.0.store(Arc::new(source.table()));
            }
        }
    }

    /// Replaces a development certificate that grows old.
    pub(super) fn renew(&self) {
        let hosts = match &*self.source.lock().unwrap_or_else(PoisonError::into_inner) {
            Source::Dev { leaf, .. } => leaf.hosts().clone(),
            Source::Folder(_) => return,
        };
        self.cover(hosts);
    }

    /// Makes the development certificate cover `hosts` too; without one in use, does nothing.
    ///
    /// Blocks for a few milliseconds, on a file, when there is a new host.
    pub fn cover(&self, hosts: impl IntoIterator<Item = String>) {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let Source::Dev { ca, leaf } = &mut *source else {
            return;
        };
        let hosts: BTreeSet<String> = hosts.into_iter().collect();
        if leaf.serves(&hosts) {
            return;
        }
        match ca.issue(&hosts, &self.provider) {
            Ok(new) => {
                **leaf = new;
                self.resolver.0.store(Arc::new(source.table()));
            }
            Err(error) => {
                self.metrics.reload_failed("certificate");
                error!(%error, "the development certificate does not cover the new hosts");
            }
        }
    }
}

impl fmt::Debug for CertStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertStore")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Source {
    fn table(&self) -> CertTable {
        match self {
            Self::Dev { leaf, .. } => CertTable::new([&leaf.pair]),
            // The default pair's name is empty, so it comes first.
            Self::Folder(read) => CertTable::new(read.pairs.values()),
        }
    }
}

impl Folder {
    /// Takes over what was found; errors are those of pairs that are new since the last time.
    fn update(
        &mut self,
        found: BTreeMap<String, Found>,
        provider: &CryptoProvider,
    ) -> Vec<PairError> {
        let mut errors = Vec::new();
        self.pairs.retain(|name, _| found.contains_key(name));
        for (name, pair) in &found {
            if self.found.get(name) == Some(pair) {
                continue;
            }
            match pair.parse(provider) {
                Ok(parsed) => {
                    if parsed.has_expired(SystemTime::now()) {
                        warn!(certificate = %pair.path().display(), "the certificate has expired");
                    }
                    self.pairs.insert(name.clone(), Arc::new(parsed));
                }
                Err(error) => errors.push(error),
            }
        }
        self.found = found;
        errors
    }
}

fn report(errors: &[PairError], metrics: &Metrics) {
    for error in errors {
        metrics.reload_failed("certificate");
        warn!(%error, "certificate not used; an older one of its folder stays");
    }
}

/// What rustls asks for a certificate.
#[derive(Debug)]
pub(super) struct Resolver(ArcSwap<CertTable>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.0.load();
        let pair = table.select(hello.server_name())?;
        Some(Arc::clone(&pair.key))
    }
}
