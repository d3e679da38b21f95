//! Certificates and keys in `--certs-dir`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::CertNames;
use super::policy::ClientPolicy;

/// Why a certificate and a key are no pair.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The certificate file holds no certificate that can be read.
    #[error("{0} holds no certificate (PEM)")]
    Certificate(PathBuf),
    /// The file of client authorities holds none, or one that cannot be used.
    #[error("{0} holds no CA certificates (PEM)")]
    ClientCa(PathBuf),
    /// Both files of client authorities are there.
    #[error("{0} and {OPTIONAL_CLIENT_CA} exclude each other")]
    ClientCas(PathBuf),
    /// The key file holds no private key that can be read.
    #[error("{0} holds no private key (PEM)")]
    Key(PathBuf),
    /// One of the two is not there.
    #[error("{0} is missing")]
    Missing(PathBuf),
    /// Both can be read, but not used together.
    #[error("{path} and tls.key do not fit: {source}")]
    Mismatch {
        /// The certificate.
        path: PathBuf,
        /// What the TLS library says.
        source: rustls::Error,
    },
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A certificate that can be served.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    /// The certificate's file.
    pub(super) path: PathBuf,
    pub(super) names: Arc<CertNames>,
    /// What its hosts demand of clients.
    pub(super) policy: Option<Arc<ClientPolicy>>,
}

impl Pair {
    /// Reads PEM text; `path` is the certificate's, for errors.
    pub(super) fn from_pem(
        path: &Path,
        certificates: &[u8],
        key: &[u8],
        provider: &CryptoProvider,
    ) -> Result<Self, PairError> {
        let bad_certificate = || PairError::Certificate(path.to_owned());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<_, _>>()
            .map_err(|_| bad_certificate())?;
        let names = chain
            .first()
            .and_then(|leaf| CertNames::of_leaf(leaf))
            .ok_or_else(bad_certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| PairError::Key(path.with_file_name(KEY)))?;
        let key =
            CertifiedKey::from_der(chain, key, provider).map_err(|source| PairError::Mismatch {
                path: path.to_owned(),
                source,
            })?;
        Ok(Self {
            key: Arc::new(key),
            path: path.to_owned(),
            names: Arc::new(names),
            policy: None,
        })
    }

    /// Whether the leaf is out of date at `now`.
    pub(super) fn has_expired(&self, now: SystemTime) -> bool {
        let Some(Ok((_, leaf))) = self
            .key
            .cert
            .first()
            .map(|leaf| x509_parser::parse_x509_certificate(leaf))
        else {
            return false;
        };
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH);
        let now = since_epoch.map_or(0, |since| since.as_secs());
        u64::try_from(leaf.validity().not_after.timestamp()).unwrap_or(0) < now
    }
}

/// What a folder holds of a pair, as bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Found {
    path: PathBuf,
    certificate: Content,
    key: Content,
    client_ca: Content,
    optional_client_ca: Content,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Content {
    Bytes(Vec<u8>),
    Missing,
    Unreadable(io::ErrorKind),
}

impl Found {
    /// Makes a pair of it.
    pub(super) fn parse(&self, provider: &Arc<CryptoProvider>) -> Result<Pair, PairError> {
        let certificate = self.certificate.get(&self.path)?;
        let key = self.key.get(&self.path.with_file_name(KEY))?;
        let mut pair = Pair::from_pem(&self.path, certificate, key, provider)?;
        pair.policy = self.policy(provider)?.map(Arc::new);
        Ok(pair)
    }

    /// Never none because of a file that is there but cannot be used: that would open the door.
    fn policy(&self, provider: &Arc<CryptoProvider>) -> Result<Option<ClientPolicy>, PairError> {
        let path = |name| self.path.with_file_name(name);
        let (authorities, path, is_required) = match (&self.client_ca, &self.optional_client_ca) {
            (Content::Missing, Content::Missing) => return Ok(None),
            (required, Content::Missing) => (required, path(CLIENT_CA), true),
            (Content::Missing, optional) => (optional, path(OPTIONAL_CLIENT_CA), false),
            _ => return Err(PairError::ClientCas(path(CLIENT_CA))),
        };
        let policy = ClientPolicy::from_pem(authorities.get(&path)?, is_required, provider);
        policy.map(Some).ok_or(PairError::ClientCa(path))
    }

    /// Whether anything is to be demanded of clients.
    pub(super) fn demands_certificates(&self) -> bool {
        (&self.client_ca, &self.optional_client_ca) != (&Content::Missing, &Content::Missing)
    }

    /// The certificate's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Content {
    fn read(path: &Path) -> Self {
        let mut bytes = Vec::new();
        match File::open(path).and_then(|file| file.take(FILE_MAX).read_to_end(&mut bytes)) {
            Ok(_) => Self::Bytes(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::Missing,
            Err(error) => Self::Unreadable(error.kind()),
        }
    }

    /// As [`Self::read`], but a link that leads nowhere is not missing.
    fn of_entry(path: &Path) -> Self {
        match Self::read(path) {
            Self::Missing if path.symlink_metadata().is_ok() => {
                Self::Unreadable(io::ErrorKind::NotFound)
            }
            content => content,
        }
    }

    fn get(&self, path: &Path) -> Result<&[u8], PairError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            Self::Missing => Err(PairError::Missing(path.to_owned())),
            Self::Unreadable(kind) => Err(PairError::Unreadable {
                path: path.to_owned(),
                source: (*kind).into(),
            }),
        }
    }
}

/// All pairs of `folder`, half ones too, by the name of their subfolder; the default's is empty.
///
/// A folder that is not there holds none.
pub(super) fn scan(folder: &Path) -> Result<BTreeMap<String, Found>, PairError> {
    let unreadable = |source| PairError::Unreadable {
        path: folder.to_owned(),
        source,
    };
    let mut found = BTreeMap::new();
    let mut look = |name: &str| {
        let path = folder.join(name).join(CERTIFICATE);
        let pair = Found {
            certificate: Content::read(&path),
            key: Content::read(&path.with_file_name(KEY)),
            client_ca: Content::of_entry(&path.with_file_name(CLIENT_CA)),
            optional_client_ca: Content::of_entry(&path.with_file_name(OPTIONAL_CLIENT_CA)),
            path,
        };
        let files = [
            &pair.certificate,
            &pair.key,
            &pair.client_ca,
            &pair.optional_client_ca,
        ];
        if files.into_iter().any(|file| *file != Content::Missing) {
            found.insert(name.to_owned(), pair);
        }
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(unreadable(error)),
    };
    look("");
    for entry in entries {
        let name = entry.map_err(unreadable)?.file_name();
        // `..data` and its like are how Kubernetes swaps a whole volume; the
        // names beside them are what counts.
        let Some(name) = name.to_str().filter(|name| !name.starts_with('.')) else {
            continue;
        };
        if folder.join(name).is_dir() {
            look(name);
        }
    }
    Ok(found)
}

/// A chain, leaf first.
pub(super) const CERTIFICATE: &str = "tls.crt";
/// Its private key.
pub(super) const KEY: &str = "tls.key";
/// Authorities one of which must have issued a client's certificate.
pub(super) const CLIENT_CA: &str = "client-ca.crt";
/// The same of a client that has a certificate.
pub(super) const OPTIONAL_CLIENT_CA: &str = "client-ca-optional.crt";

/// No chain and no key is longer.
const FILE_MAX: u64 = 1 << 20;
