//! Security keys (FIDO), their part played in software: what they sign is public.

use std::sync::Arc;

use russh::client;
use russh::keys::agent::AgentIdentity;
use russh::keys::signature::Signer as _;
use russh::keys::ssh_key::Signature;
use russh::keys::ssh_key::public::{EcdsaPublicKey, KeyData, SkEcdsaSha2NistP256, SkEd25519};
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey, PublicKey, PublicKeyOrCertificate};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;

use super::rig::{OWNER, Rig};
use crate::logs;
use crate::support::eventually;

/// What a web page would be for a browser.
const APPLICATION: &str = "ssh:";

/// Somebody has touched it.
const PRESENT: u8 = 1;

/// A security key: an ordinary one that signs as PROTOCOL.u2f of OpenSSH has it.
struct Token {
    inner: PrivateKey,
    public: PublicKey,
}

impl Token {
    fn new(algorithm: Algorithm) -> Self {
        let inner = PrivateKey::random(&mut rand::rng(), algorithm).unwrap();
        let data = match inner.public_key().key_data() {
            KeyData::Ed25519(key) => KeyData::SkEd25519(SkEd25519::new(*key, APPLICATION)),
            KeyData::Ecdsa(EcdsaPublicKey::NistP256(point)) => {
                KeyData::SkEcdsaSha2NistP256(SkEcdsaSha2NistP256::new(*point, APPLICATION))
            }
            other => panic!("{other:?}"),
        };
        Self {
            inner,
            public: PublicKey::new(data, "token"),
        }
    }

    fn sign(&self, message: &[u8], counter: u32) -> Vec<u8> {
        let mut signed = Sha256::digest(APPLICATION).to_vec();
        signed.push(PRESENT);
        signed.extend(counter.to_be_bytes());
        signed.extend(Sha256::digest(message));
        let signature: Signature = self.inner.try_sign(&signed).unwrap();
        let mut blob = string(self.public.algorithm().as_str().as_bytes());
        blob.extend(string(signature.as_bytes()));
        blob.push(PRESENT);
        blob.extend(counter.to_be_bytes());
        blob
    }
}

fn string(bytes: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(bytes);
    out
}

/// Signs as asked, or something else.
struct Hand<'t> {
    token: &'t Token,
    honest: bool,
}

impl russh::Signer for Hand<'_> {
    type Error = russh::AgentAuthError;

    async fn auth_sign(
        &mut self,
        _key: &AgentIdentity,
        _hash_alg: Option<HashAlg>,
        to_sign: Vec<u8>,
    ) -> Result<Vec<u8>, russh::AgentAuthError> {
        let signature = if self.honest {
            self.token.sign(&to_sign, 1)
        } else {
            self.token.sign(b"another message", 1)
        };
        let mut request = to_sign;
        request.extend(string(&signature));
        Ok(request)
    }
}

struct Anyone;

impl client::Handler for Anyone {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }
}

async fn logs_in(rig: &Rig, token: &Token, honest: bool) -> bool {
    let stream = TcpStream::connect(rig.address).await.unwrap();
    let config = Arc::new(client::Config::default());
    let mut handle = client::connect_stream(config, stream, Anyone)
        .await
        .unwrap();
    let mut hand = Hand { token, honest };
    let key = token.public.clone();
    let login = handle.authenticate_publickey_with(rig.login("logged-sk"), key, None, &mut hand);
    login.await.unwrap().success()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn security_keys_log_in_by_what_they_sign() {
    logs::watch();
    let rig = Rig::start().await;
    let _c = rig.container("logged-sk").await;
    let curve = EcdsaCurve::NistP256;
    for algorithm in [Algorithm::Ed25519, Algorithm::Ecdsa { curve }] {
        let token = Token::new(algorithm);
        assert!(!logs_in(&rig, &token, true).await, "not a key of the owner");
        let fingerprint = token.public.fingerprint(HashAlg::Sha256).to_string();
        rig.put_keys(OWNER, &[(1, &fingerprint)]);
        assert!(logs_in(&rig, &token, true).await, "{:?}", token.public);
        assert!(!logs_in(&rig, &token, false).await, "signed something else");
        let told = format!("no signature by {fingerprint}");
        eventually("the log tells of it", || async {
            let lines = logs::lines("logged-sk");
            let mut refused = lines
                .iter()
                .filter(|line| line.contains("ssh login refused"));
            refused.any(|line| line.contains(&told))
        })
        .await;
        // The key inside is not the key: its fingerprint is another.
        let bare = token.inner.public_key().fingerprint(HashAlg::Sha256);
        assert_ne!(bare.to_string(), fingerprint);
    }
}
