//! A certificate authority for development, made up while `--certs-dir` is empty.
//!
//! Lives under `<state-dir>/dev-certs/`. The CA stays over restarts, so a client
//! trusts it once; the leaf is made anew at each start and whenever routes.yaml
//! adds a host.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::crypto::CryptoProvider;
use time::OffsetDateTime;
use tracing::warn;

use super::pair::{CERTIFICATE, KEY, Pair, PairError};

/// Why there is no development certificate.
#[derive(Debug, thiserror::Error)]
pub enum DevCaError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A certificate cannot be made.
    #[error("making a development certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// What was made cannot be used.
    #[error(transparent)]
    Pair(#[from] PairError),
}

/// The authority.
pub(super) struct DevCa {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    domain: String,
}

/// A leaf, and what decides whether it is still good enough.
pub(super) struct DevLeaf {
    pub(super) pair: Arc<Pair>,
    hosts: BTreeSet<String>,
    renew_at: OffsetDateTime,
}

impl DevLeaf {
    /// The hosts of routes.yaml that it was made for.
    pub(super) fn hosts(&self) -> &BTreeSet<String> {
        &self.hosts
    }

    /// Whether it covers `hosts` and is not about to end.
    pub(super) fn serves(&self, hosts: &BTreeSet<String>) -> bool {
        hosts.is_subset(&self.hosts) && OffsetDateTime::now_utc() < self.renew_at
    }
}

impl DevCa {
    /// Reads the authority of `state_dir`, or makes one.
    pub(super) fn open(state_dir: &Path, domain: &str) -> Result<Self, DevCaError> {
        let folder = state_dir.join(FOLDER);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
        let issuer = match Self::read(&folder)? {
            Some(issuer) => issuer,
            None => Self::create(&folder)?,
        };
        Ok(Self {
            issuer,
            folder,
            domain: domain.to_owned(),
        })
    }

    /// Where the authority's certificate is, for clients to trust.
    pub(super) fn certificate_path(&self) -> PathBuf {
        self.folder.join(CA_CERTIFICATE)
    }

    fn read(folder: &Path) -> Result<Option<Issuer<'static, KeyPair>>, DevCaError> {
        let text = |name| {
            let path = folder.join(name);
            match fs::read_to_string(&path) {
                Ok(text) => Ok(Some(text)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(at(&path)(error)),
            }
        };
        let (Some(certificate), Some(key)) = (text(CA_CERTIFICATE)?, text(CA_KEY)?) else {
            return Ok(None);
        };
        let issuer = KeyPair::from_pem(&key)
            .ok()
            .filter(|key| is_of(key, &certificate))
            .and_then(|key| Issuer::from_ca_cert_pem(&certificate, key).ok());
        if issuer.is_none() {
            let folder = folder.display();
            warn!(%folder, "the development CA cannot be used, making a new one");
        }
        Ok(issuer)
    }

    fn create(folder: &Path) -> Result<Issuer<'static, KeyPair>, DevCaError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        // A name of its own, or a client that knows an older one mixes them up.
        let tag: u32 = rand::random();
        let name = format!("edd-gateway development CA {tag:08x}");
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, CA_LIFETIME);
        let certificate = params.self_signed(&key)?;
        // The certificate last: it says that both are there.
        write(&folder.join(CA_KEY), &key.serialize_pem(), 0o600)?;
        write(&folder.join(CA_CERTIFICATE), &certificate.pem(), 0o644)?;
        Ok(Issuer::new(params, key))
    }

    /// Makes a leaf for the platform's names and `hosts` (wildcards as they are).
    pub(super) fn issue(
        &self,
        hosts: &BTreeSet<String>,
        provider: &CryptoProvider,
    ) -> Result<DevLeaf, DevCaError> {
        let domain = &self.domain;
        let mut names: BTreeSet<String> = hosts.clone();
        names.extend([
            domain.clone(),
            format!("*.{domain}"),
            format!("*.compute.{domain}"),
            "localhost".to_owned(),
            "127.0.0.1".to_owned(),
            "::1".to_owned(),
        ]);
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(names.into_iter().collect::<Vec<_>>())?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        let name = "edd-gateway development";
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        set_validity(&mut params, LEAF_LIFETIME);
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        let key = key.serialize_pem();

        let path = self.folder.join(CERTIFICATE);
        let pair = Pair::from_pem(&path, certificate.as_bytes(), key.as_bytes(), provider)?;
        write(&self.folder.join(KEY), &key, 0o600)?;
        write(&path, &certificate, 0o644)?;
        Ok(DevLeaf {
            pair: Arc::new(pair),
            hosts: hosts.clone(),
            renew_at: OffsetDateTime::now_utc() + LEAF_LIFETIME / 2,
        })
    }
}

/// Whether the certificate was made for this key.
fn is_of(key: &KeyPair, certificate: &str) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()) else {
        return false;
    };
    pem.parse_x509().is_ok_and(|certificate| {
        certificate.validity().is_valid()
            && certificate.public_key().subject_public_key.data == key.public_key_raw()
    })
}

fn set_validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = OffsetDateTime::now_utc();
    // Clocks differ.
    params.not_before = now - Duration::from_secs(24 * 3600);
    params.not_after = now + lifetime;
}

/// Writes the whole file or leaves the old one, whoever else does so at the same time: a process
/// and its successor issue into one folder.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), DevCaError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.new", rand::random::<u64>()));
    let new = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let mut file = options.open(&new).map_err(at(&new))?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&new, path));
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DevCaError {
    let path = path.to_owned();
    move |source| DevCaError::File { path, source }
}

const FOLDER: &str = "dev-certs";
const CA_CERTIFICATE: &str = "dev-ca.crt";
const CA_KEY: &str = "dev-ca.key";

const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Some clients take no leaf that lives longer than 398 days.
const LEAF_LIFETIME: Duration = Duration::from_secs(390 * 24 * 3600);
