//! What both sides of the SSH server speak: algorithms, sizes, times.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey};
use russh::{MethodKind, MethodSet, Preferred, SshId, cipher, client, compression, server};

use super::flow::WINDOW;

/// Times and numbers of the door; the defaults are what `serve` uses.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connection to a finished login.
    pub login: Duration,
    /// Connections that have not logged in, in all.
    pub waiting_max: usize,
    /// Connections that have not logged in, of one address (a /64 for IPv6).
    pub waiting_per_address_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            login: Duration::from_secs(30),
            waiting_max: 1024,
            waiting_per_address_max: 64,
        }
    }
}

/// Identification string: no version, nothing to look up.
const SERVER_ID: &str = "SSH-2.0-EddGateway";

/// Every refused key costs this, whatever the reason. It pads a lookup of microseconds; more
/// would only tax clients with several keys in their agent.
const REJECTION_TIME: Duration = Duration::from_millis(250);

/// Six keys, as in OpenSSH's `MaxAuthTries`, and the "none" that clients begin with.
const ATTEMPTS_MAX: usize = 7;

/// A peer that has been silent for this long is asked whether it lives…
const KEEPALIVE: Duration = Duration::from_secs(30);

/// …and given up after so many questions without an answer.
const KEEPALIVE_MAX: usize = 3;

/// Host and public keys; RSA with SHA-1 is not among them.
const KEY_ALGORITHMS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha512),
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha256),
    },
];

/// AES in hardware is the fastest on the short way to a container.
const UPSTREAM_CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

/// What clients are offered.
pub(crate) fn downstream(host_key: PrivateKey) -> Arc<server::Config> {
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    Arc::new(server::Config {
        server_id: SshId::Standard(Cow::Borrowed(SERVER_ID)),
        methods,
        auth_rejection_time: REJECTION_TIME,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![host_key],
        // Twice what is granted later: with a key exchange begun by us a client may have twice
        // this under way before its answer, over all channels, and russh ends it beyond.
        window_size: 2 * WINDOW,
        // The readers never wait, so this is only for the moments before they run.
        channel_buffer_size: 1024,
        event_buffer_size: 64,
        preferred: preferred(Cow::Borrowed(KEY_ALGORITHMS)),
        max_auth_attempts: ATTEMPTS_MAX,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        nodelay: true,
        ..server::Config::default()
    })
}

/// How containers are spoken to; `host_key` asks for exactly that key.
pub(crate) fn upstream(host_key: Option<&Algorithm>) -> Arc<client::Config> {
    let keys = match host_key {
        None => Cow::Borrowed(KEY_ALGORITHMS),
        Some(Algorithm::Rsa { .. }) => Cow::Owned(
            [HashAlg::Sha512, HashAlg::Sha256]
                .map(|hash| Algorithm::Rsa { hash: Some(hash) })
                .to_vec(),
        ),
        Some(algorithm) => Cow::Owned(vec![algorithm.clone()]),
    };
    Arc::new(client::Config {
        client_id: SshId::Standard(Cow::Borrowed(SERVER_ID)),
        preferred: Preferred {
            cipher: Cow::Borrowed(UPSTREAM_CIPHERS),
            ..preferred(keys)
        },
        // One channel per connection, and its loop may block: exact back-pressure.
        channel_buffer_size: 32,
        inactivity_timeout: None,
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_MAX,
        nodelay: true,
        ..client::Config::default()
    })
}

fn preferred(key: Cow<'static, [Algorithm]>) -> Preferred {
    Preferred {
        key,
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}
