//! The certificates in force, and the one writer that replaces them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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
use super::doubled::doubled;
use super::pair::{self, Found, Pair, PairError};
use super::policy::{ClientPolicy, PolicyId};
use super::table::CertTable;
use super::{CertNames, Secured, TicketKeys, handshake};
use crate::config::Config;
use crate::telemetry::{CERTIFICATE, Metrics};

/// Why there is no certificate to start with.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// `--certs-dir` holds pairs, but none that can be used, or one that demands client
    /// certificates cannot: another would serve its hosts without. The command line is wrong (exit 64).
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
    pub(super) in_force: ArcSwap<InForce>,
    pub(super) folder: PathBuf,
    pub(super) metrics: Metrics,
    provider: Arc<CryptoProvider>,
    tickets: TicketKeys,
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
            if read.pairs.is_empty() || read.leaves_a_door_open() {
                return Err(CertError::OnlyBadPairs(errors));
            }
            report(&errors, &metrics);
            read.tell_doubled();
            Source::Folder(read)
        };
        let tickets = TicketKeys::new();
        let in_force = InForce::new(source.table(), &provider, &tickets)?;
        Ok(Self {
            in_force: ArcSwap::from_pointee(in_force),
            folder: folder.to_owned(),
            metrics,
            provider,
            tickets,
            source: Mutex::new(source),
        })
    }

    /// The names that the certificate for this server name covers.
    pub fn covers(&self, sni: Option<&str>) -> Arc<CertNames> {
        let in_force = self.in_force.load();
        let pair = in_force.table.select(sni);
        pair.map(|pair| Arc::clone(&pair.names)).unwrap_or_default()
    }

    /// Whether a connection has proved of its client what `host` (lower case, no port) demands now.
    ///
    /// `tls` is what its handshake said, none without TLS. What a certificate's
    /// hosts demand is demanded once, in the handshake: a connection that was
    /// made under another demand, an older or a milder one, is not for them,
    /// whatever else its certificate covers.
    pub fn proves(&self, tls: Option<&Secured>, host: &str) -> bool {
        let in_force = self.in_force.load();
        let proved = tls.map(|tls| tls.policy);
        if in_force.by_policy.is_empty() && proved.is_none_or(|id| id == PolicyId::NONE) {
            return true;
        }
        match proved {
            Some(id) => {
                let pair = in_force.table.select(Some(host));
                let policy = pair.and_then(|pair| pair.policy.as_ref());
                policy.map_or(PolicyId::NONE, |policy| policy.id) == id
            }
            None => {
                let pair = in_force.table.named(host);
                let policy = pair.and_then(|pair| pair.policy.as_ref());
                policy.is_none_or(|policy| !policy.is_required)
            }
        }
    }

    /// The keys of session tickets.
    pub fn tickets(&self) -> &TicketKeys {
        &self.tickets
    }

    /// Puts what the source holds in force. If that cannot be, the old stays.
    fn put_in_force(&self, source: &Source) {
        match InForce::new(source.table(), &self.provider, &self.tickets) {
            Ok(in_force) => self.in_force.store(Arc::new(in_force)),
            Err(error) => {
                self.metrics.reload_failed(CERTIFICATE);
                error!(%error, "the TLS library refuses the certificates, the old ones stay");
            }
        }
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
                read.tell_doubled();
                info!(pairs = read.pairs.len(), "certificates reloaded");
                self.put_in_force(&source);
            }
            Source::Dev { .. } => {
                let mut read = Folder::default();
                let errors = read.update(found, &self.provider);
                if read.pairs.is_empty() || read.leaves_a_door_open() {
                    return report(&errors, &self.metrics);
                }
                report(&errors, &self.metrics);
                info!(
                    pairs = read.pairs.len(),
                    "certificates found, the development CA is out of use"
                );
                read.tell_doubled();
                *source = Source::Folder(read);
                self.put_in_force(&source);
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

    /// Whether [`CertStore::cover`] may have anything to do: there is a development certificate,
    /// or somebody is at work on what there is. Does not block.
    pub fn may_cover(&self) -> bool {
        match self.source.try_lock() {
            Ok(source) => matches!(*source, Source::Dev { .. }),
            Err(_) => true,
        }
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
                self.put_in_force(&source);
            }
            Err(error) => {
                self.metrics.reload_failed(CERTIFICATE);
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
    /// Whether a pair that demands client certificates is not in force.
    fn leaves_a_door_open(&self) -> bool {
        let is_missing = |name: &String| !self.pairs.contains_key(name);
        self.found
            .iter()
            .any(|(name, pair)| pair.demands_certificates() && is_missing(name))
    }

    /// Says which names several pairs have.
    fn tell_doubled(&self) {
        for names in doubled(self.pairs.values()) {
            names.tell();
        }
    }

    /// Takes over what was found; errors are those of pairs that are new since the last time.
    fn update(
        &mut self,
        found: BTreeMap<String, Found>,
        provider: &Arc<CryptoProvider>,
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
        metrics.reload_failed(CERTIFICATE);
        warn!(%error, "certificate not used; an older one of its folder stays");
    }
}

/// The certificates with everything that a handshake needs. Never changed, only replaced.
pub(super) struct InForce {
    pub(super) table: Arc<CertTable>,
    /// Demands nothing of clients.
    plain: TlsAcceptor,
    by_policy: HashMap<PolicyId, TlsAcceptor>,
}

impl InForce {
    fn new(
        table: CertTable,
        provider: &Arc<CryptoProvider>,
        tickets: &TicketKeys,
    ) -> Result<Self, rustls::Error> {
        let table = Arc::new(table);
        let acceptor = |policy: Option<&ClientPolicy>| {
            let resolver = Arc::new(Resolver(Arc::clone(&table)));
            handshake::acceptor(resolver, Arc::clone(provider), policy, tickets)
        };
        let mut by_policy = HashMap::new();
        for policy in table.policies() {
            if let Entry::Vacant(entry) = by_policy.entry(policy.id) {
                entry.insert(acceptor(Some(policy))?);
            }
        }
        Ok(Self {
            plain: acceptor(None)?,
            by_policy,
            table,
        })
    }

    /// What does the handshake for a certificate.
    pub(super) fn acceptor(&self, pair: Option<&Pair>) -> &TlsAcceptor {
        pair.and_then(|pair| pair.policy.as_ref())
            .and_then(|policy| self.by_policy.get(&policy.id))
            .unwrap_or(&self.plain)
    }
}

/// What rustls asks for a certificate.
#[derive(Debug)]
pub(super) struct Resolver(Arc<CertTable>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let pair = self.0.select(hello.server_name())?;
        Some(Arc::clone(&pair.key))
    }
}
