//! Signatures of events: who may say what is shown by a key, not by the broker.
//!
//! Optional. A publisher with a [`Signer`] signs what it publishes; a consumer
//! with a [`Verifier`] takes the events of a source, the first token of their
//! subjects (`compute`), only with a signature by one of that source's keys.
//! What is signed is the subject, the event's id and the payload, so that a
//! signed event says nothing under another subject. Replays of the same event
//! are what the inbox and the versions are for.
//!
//! Keys are Ed25519 in PEM files, as `openssl genpkey -algorithm ed25519` and
//! `openssl pkey -pubout` write them.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
};

use async_nats::{HeaderMap, HeaderValue};
use aws_lc_rs::{
    digest::{SHA256, digest},
    signature::{ED25519, Ed25519KeyPair, KeyPair as _, ParsedPublicKey},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    event::{BadEvent, Decoded},
    secret_file::{self, Secret},
};

/// Header: the signature, base64.
pub const SIGNATURE: &str = "Edd-Signature";
/// Header: which key made it, see [`Signer::key_id`].
pub const SIGNATURE_KEY: &str = "Edd-Signature-Key";

/// What is signed begins with it: these keys sign nothing else by mistake.
const DOMAIN: &[u8] = b"edd-event-signature-v1\0";
/// Keys of a source that are good at a time: the old one and the new one.
const KEYS_MAX: usize = 2;
/// A public key in DER up to its 32 bytes (RFC 8410).
const PUBLIC_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];
const PUBLIC_LEN: usize = 32;
/// Bytes of its hash that name a key.
const KEY_ID_BYTES: usize = 8;

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The PEM text does not hold what it should.
    #[error("{}: {what}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, without the content.
        what: String,
    },
    /// The file or folder cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Why an event does not count as said by its source.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SignatureError {
    /// The header holds no signature.
    #[error("signature: damaged header")]
    Damaged,
    /// No signature.
    #[error("signature: missing, and {0:?} signs its events")]
    Missing(String),
    /// Signed by a key that is none of this source's.
    #[error("signature: by a key that is none of {0:?}")]
    Stranger(String),
    /// By the right key over something else.
    #[error("signature: does not fit this event")]
    Wrong,
}

/// Signs events. Its debug form shows the key's id only.
pub struct Signer {
    pair: Ed25519KeyPair,
    key_id: String,
    file: Secret,
}

impl Signer {
    /// Reads a private key, PKCS#8 in PEM.
    ///
    /// # Errors
    /// The file cannot be read, or holds no Ed25519 key. Its content is never
    /// repeated.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let content = |what: &str| KeyError::Content {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let file = secret_file::read(path).map_err(|source| KeyError::Read {
            path: path.to_owned(),
            source,
        })?;
        let blocks = pem_blocks(file.text(), "PRIVATE KEY").map_err(content)?;
        let [(_, der)] = blocks.as_slice() else {
            return Err(content(
                "holds not one private key (openssl genpkey -algorithm ed25519)",
            ));
        };
        let pair = Ed25519KeyPair::from_pkcs8(der)
            .map_err(|_| content("the private key is no Ed25519 key"))?;
        Ok(Self {
            key_id: key_id(pair.public_key().as_ref()),
            pair,
            file,
        })
    }

    /// The first 16 hexadecimal digits of the SHA-256 of the public key.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Adds the signature and the key's id.
    pub fn write(&self, headers: &mut HeaderMap, subject: &str, event_id: &str, payload: &[u8]) {
        let signature = self.pair.sign(&signed_bytes(subject, event_id, payload));
        let signature = STANDARD.encode(signature.as_ref());
        for (name, value) in [(SIGNATURE, &signature), (SIGNATURE_KEY, &self.key_id)] {
            if let Ok(value) = value.parse::<HeaderValue>() {
                headers.insert(name, value);
            }
        }
    }

    /// To be called once the logs are up.
    pub(crate) fn warn_if_exposed(&self) {
        self.file.warn_if_exposed("the key that signs events");
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.key_id)
    }
}

/// Knows the keys of the sources.
#[derive(Debug)]
pub struct Verifier {
    sources: BTreeMap<String, Vec<Key>>,
}

#[derive(Debug)]
struct Key {
    id: String,
    public: ParsedPublicKey,
}

impl Verifier {
    /// Reads public keys in PEM: of a folder with a file `SOURCE.pem` for each
    /// source (`compute.pem`), or of one file in which a line `SOURCE:` stands
    /// before the keys of each. One or two keys for a source; sources that are
    /// not there are not checked.
    ///
    /// # Errors
    /// Something cannot be read, is no Ed25519 key, or is too much or nothing
    /// at all.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let read_error = |path: &Path| {
            let path = path.to_owned();
            |source| KeyError::Read { path, source }
        };
        let mut verifier = Self {
            sources: BTreeMap::new(),
        };
        if path.is_dir() {
            for entry in fs::read_dir(path).map_err(read_error(path))? {
                let file = entry.map_err(read_error(path))?.path();
                let (Some(source), Some("pem")) = (
                    file.file_stem().and_then(|stem| stem.to_str()),
                    file.extension().and_then(|extension| extension.to_str()),
                ) else {
                    continue;
                };
                let text = secret_file::read(&file).map_err(read_error(&file))?;
                verifier.add(&file, Some(source), text.text())?;
            }
        } else {
            let text = secret_file::read(path).map_err(read_error(path))?;
            verifier.add(path, None, text.text())?;
        }
        if verifier.sources.is_empty() {
            return Err(KeyError::Content {
                path: path.to_owned(),
                what: "holds no public key".to_owned(),
            });
        }
        Ok(verifier)
    }

    fn add(&mut self, path: &Path, source: Option<&str>, text: &str) -> Result<(), KeyError> {
        let content = |what: String| KeyError::Content {
            path: path.to_owned(),
            what,
        };
        let blocks = pem_blocks(text, "PUBLIC KEY").map_err(|what| content(what.to_owned()))?;
        if blocks.is_empty() {
            return Err(content("holds no public key".to_owned()));
        }
        for (said, der) in blocks {
            let source = source.or(said).ok_or_else(|| {
                content("a key without a line such as `compute:` before it".to_owned())
            })?;
            let key = Key::of_der(&der)
                .ok_or_else(|| content(format!("a public key of {source} is no Ed25519 key")))?;
            let keys = self.sources.entry(source.to_owned()).or_default();
            if keys.len() >= KEYS_MAX {
                return Err(content(format!("more than two keys of {source}")));
            }
            keys.push(key);
        }
        Ok(())
    }

    /// The sources whose events need a signature, and the ids of their keys.
    pub fn sources(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.sources.iter().map(|(source, keys)| {
            let ids = keys.iter().map(|key| key.id.as_str()).collect();
            (source.as_str(), ids)
        })
    }

    /// Whether the source of this subject has signed the event, if it signs at all.
    ///
    /// # Errors
    /// It has not, or not this.
    pub fn check(
        &self,
        subject: &str,
        event_id: &str,
        payload: &[u8],
        headers: Option<&HeaderMap>,
    ) -> Result<(), SignatureError> {
        let source = subject.split('.').next().unwrap_or_default();
        let Some(keys) = self.sources.get(source) else {
            return Ok(());
        };
        let header = |name: &str| headers?.get(name).map(HeaderValue::as_str);
        let signature =
            header(SIGNATURE).ok_or_else(|| SignatureError::Missing(source.to_owned()))?;
        let signature = STANDARD
            .decode(signature)
            .map_err(|_| SignatureError::Damaged)?;
        let key_id = header(SIGNATURE_KEY).unwrap_or_default();
        let key = keys
            .iter()
            .find(|key| key.id == key_id)
            .ok_or_else(|| SignatureError::Stranger(source.to_owned()))?;
        let signed = signed_bytes(subject, event_id, payload);
        key.public
            .verify_sig(&signed, &signature)
            .map_err(|_| SignatureError::Wrong)
    }

    /// An event that does not pass becomes a bad one.
    pub(crate) fn judge(
        &self,
        subject: &str,
        payload: &[u8],
        headers: Option<&HeaderMap>,
        decoded: Decoded,
    ) -> Decoded {
        let Decoded::Event(event) = decoded else {
            return decoded;
        };
        match self.check(subject, &event.event_id, payload, headers) {
            Ok(()) => Decoded::Event(event),
            Err(error) => Decoded::Bad(event.kind, BadEvent::Signature(error)),
        }
    }
}

impl Key {
    fn of_der(der: &[u8]) -> Option<Self> {
        let raw = der.strip_prefix(&PUBLIC_PREFIX)?;
        if raw.len() != PUBLIC_LEN {
            return None;
        }
        Some(Self {
            id: key_id(raw),
            public: ParsedPublicKey::new(&ED25519, raw).ok()?,
        })
    }
}

fn key_id(public: &[u8]) -> String {
    digest(&SHA256, public)
        .as_ref()
        .iter()
        .take(KEY_ID_BYTES)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The prefix, then each part with its length before it in eight bytes, big
/// endian: no two events have the same.
fn signed_bytes(subject: &str, event_id: &str, payload: &[u8]) -> Vec<u8> {
    let parts = [subject.as_bytes(), event_id.as_bytes(), payload];
    let len = parts.iter().map(|part| part.len() + 8).sum::<usize>();
    let mut bytes = Vec::with_capacity(DOMAIN.len() + len);
    bytes.extend_from_slice(DOMAIN);
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    bytes
}

/// What such a text holds: the source named before each block, and its bytes.
type Blocks<'a> = Vec<(Option<&'a str>, Vec<u8>)>;

/// The blocks of this label. Other lines say nothing, but for `SOURCE:`.
fn pem_blocks<'a>(text: &'a str, label: &str) -> Result<Blocks<'a>, &'static str> {
    let (begin, end) = (
        format!("-----BEGIN {label}-----"),
        format!("-----END {label}-----"),
    );
    let mut blocks = Vec::new();
    let mut source = None;
    let mut body: Option<String> = None;
    for line in text.lines().map(str::trim) {
        if line == begin {
            body = Some(String::new());
        } else if line == end {
            let encoded = body.take().ok_or("a block ends that has not begun")?;
            let der = STANDARD
                .decode(encoded)
                .map_err(|_| "a block is not base64")?;
            blocks.push((source, der));
        } else if let Some(body) = &mut body {
            body.push_str(line);
        } else if line.starts_with("-----BEGIN ") {
            return Err("holds something else than what is wanted here");
        } else if let Some(name) = line.strip_suffix(':') {
            source = Some(name.trim_start_matches('#').trim());
        }
    }
    match body {
        None => Ok(blocks),
        Some(_) => Err("a block does not end"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(label: &str, der: &[u8]) -> String {
        let body = STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    struct Keys {
        folder: tempfile::TempDir,
    }

    impl Keys {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            Self { folder }
        }

        /// A new key, and its public half in PEM.
        fn make(&self, name: &str) -> (Signer, String) {
            let file = self.folder.path().join(format!("{name}.key"));
            let pair = Ed25519KeyPair::generate().unwrap();
            let private = pair.to_pkcs8v1().unwrap();
            fs::write(&file, pem("PRIVATE KEY", private.as_ref())).unwrap();
            let public = [&PUBLIC_PREFIX[..], pair.public_key().as_ref()].concat();
            (Signer::load(&file).unwrap(), pem("PUBLIC KEY", &public))
        }

        fn load(&self, text: &str) -> Result<Verifier, KeyError> {
            let file = self.folder.path().join("keys");
            fs::write(&file, text).unwrap();
            Verifier::load(&file)
        }
    }

    const SUBJECT: &str = "compute.container.c1.started";

    fn signed(signer: &Signer) -> HeaderMap {
        let mut headers = HeaderMap::new();
        signer.write(&mut headers, SUBJECT, "id", b"payload");
        headers
    }

    #[test]
    fn any_change_of_a_signed_event_is_seen() {
        let keys = Keys::new();
        let (signer, public) = keys.make("compute");
        let verifier = keys.load(&format!("compute:\n{public}")).unwrap();
        let headers = signed(&signer);
        let check = |subject: &str, id: &str, payload: &[u8]| {
            verifier.check(subject, id, payload, Some(&headers))
        };
        assert_eq!(check(SUBJECT, "id", b"payload"), Ok(()));
        let wrong = Err(SignatureError::Wrong);
        assert_eq!(check(SUBJECT, "id", b"payloae"), wrong);
        assert_eq!(
            check(SUBJECT, "i", b"dpayload"),
            wrong,
            "borders are signed"
        );
        assert_eq!(
            check("compute.container.c1.stopped", "id", b"payload"),
            wrong
        );
        assert_eq!(
            check("compute.container.c2.started", "id", b"payload"),
            wrong
        );
        // Another source that signs nothing is not held up.
        assert_eq!(check("auth.user.1.deleted", "id", b"payload"), Ok(()));
    }

    #[test]
    fn missing_damaged_and_foreign_signatures_are_told_apart() {
        let keys = Keys::new();
        let (signer, public) = keys.make("compute");
        let (auth, _) = keys.make("auth");
        let verifier = keys.load(&format!("compute:\n{public}")).unwrap();
        let check =
            |headers: Option<&HeaderMap>| verifier.check(SUBJECT, "id", b"payload", headers);
        let missing = Err(SignatureError::Missing("compute".into()));
        assert_eq!(check(None), missing);
        assert_eq!(check(Some(&HeaderMap::new())), missing);
        let stranger = Err(SignatureError::Stranger("compute".into()));
        assert_eq!(check(Some(&signed(&auth))), stranger);
        // The right key's name under another key's signature.
        let mut forged = signed(&auth);
        forged.insert(SIGNATURE_KEY, signer.key_id());
        assert_eq!(check(Some(&forged)), Err(SignatureError::Wrong));
        let mut damaged = signed(&signer);
        damaged.insert(SIGNATURE, "no base64!");
        assert_eq!(check(Some(&damaged)), Err(SignatureError::Damaged));
        damaged.insert(SIGNATURE, "AAAA");
        assert_eq!(check(Some(&damaged)), Err(SignatureError::Wrong));
    }

    #[test]
    fn while_keys_change_both_are_good_and_then_the_old_one_is_not() {
        let keys = Keys::new();
        let (old, old_public) = keys.make("old");
        let (new, new_public) = keys.make("new");
        let check = |verifier: &Verifier, signer| {
            verifier.check(SUBJECT, "id", b"payload", Some(&signed(signer)))
        };
        let both = keys
            .load(&format!("compute:\n{old_public}{new_public}"))
            .unwrap();
        assert_eq!(check(&both, &old), Ok(()));
        assert_eq!(check(&both, &new), Ok(()));
        let after = keys.load(&format!("compute:\n{new_public}")).unwrap();
        assert_eq!(check(&after, &new), Ok(()));
        assert_eq!(
            check(&after, &old),
            Err(SignatureError::Stranger("compute".into()))
        );
        let (_, third) = keys.make("third");
        let error = keys
            .load(&format!("compute:\n{old_public}{new_public}{third}"))
            .unwrap_err();
        assert!(error.to_string().contains("more than two"), "{error}");
    }

    #[test]
    fn a_folder_has_a_file_for_each_source() {
        let keys = Keys::new();
        let (signer, public) = keys.make("compute");
        let folder = tempfile::tempdir().unwrap();
        let load = || Verifier::load(folder.path());
        assert!(load().unwrap_err().to_string().contains("no public key"));
        fs::write(folder.path().join("compute.pem"), public).unwrap();
        fs::write(folder.path().join("README"), "not a key").unwrap();
        let verifier = load().unwrap();
        let sources: Vec<_> = verifier.sources().collect();
        assert_eq!(sources, [("compute", vec![signer.key_id()])]);
    }

    #[test]
    fn what_is_no_key_is_refused_and_private_keys_are_not_quoted() {
        let keys = Keys::new();
        let (_, public) = keys.make("compute");
        let private = fs::read_to_string(keys.folder.path().join("compute.key")).unwrap();
        let short = pem("PUBLIC KEY", &PUBLIC_PREFIX);
        let open = "compute:\n-----BEGIN PUBLIC KEY-----\nAAAA";
        for text in [
            "",
            "garbage",
            &public,
            &format!("compute:\n{private}"),
            &short,
            open,
        ] {
            let error = keys.load(text).unwrap_err().to_string();
            let secret = private.lines().nth(1).unwrap();
            assert!(!error.contains(secret), "{error}");
        }
        let file = keys.folder.path().join("signer");
        for text in ["", &public, &format!("{private}{private}"), &private[..80]] {
            fs::write(&file, text).unwrap();
            assert!(Signer::load(&file).is_err(), "{text}");
        }
    }
}
