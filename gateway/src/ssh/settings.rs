//! What both sides of the SSH server speak: algorithms, sizes, times.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey};
use russh::{
    MethodKind, MethodSet, Preferred, SshId, cipher, client, compression, kex, mac, server,
};
use socket2::SockRef;
use tokio::net::TcpStream;
use tracing::debug;

use super::flow::FIRST_WINDOW;
use super::lobby::Startups;
use super::own::PIECES_MAX;
use super::patience::REFUSAL;
use crate::config::SshConfig;

/// Times and numbers of the door; the defaults are those of `serve`.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// From the connection to a finished login.
    pub login: Duration,
    /// The gateway's own login at a container, of one try.
    pub container_login: Duration,
    /// Until either side has answered the opening of a channel; a forward may have to time out
    /// there.
    pub open: Duration,
    /// Connections that have not logged in, in all.
    pub startups: Startups,
    /// Connections that have not logged in, of one address (a /64 for IPv6).
    pub waiting_per_address_max: usize,
    /// When a peer is given up.
    pub keepalive: Keepalive,
    /// Bytes after which we begin a key exchange, each way.
    pub rekey_bytes: usize,
}

/// How a silent peer is told from one that is gone.
#[derive(Clone, Copy, Debug)]
pub struct Keepalive {
    /// A peer that has been silent for this long is asked whether it lives…
    pub interval: Duration,
    /// …and given up after so many questions without an answer.
    pub questions_max: usize,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(30),
            questions_max: 3,
        }
    }
}

impl Keepalive {
    /// Silence of this length ends a connection.
    fn patience(self) -> Duration {
        let questions = u32::try_from(self.questions_max).unwrap_or(u32::MAX);
        self.interval * questions.saturating_add(1)
    }

    /// Lets TCP give a peer up as well: what was sent lies before our questions, so a peer that
    /// has vanished, or takes nothing any more, is not asked them.
    pub(crate) fn apply_to(self, socket: &TcpStream) {
        let socket = SockRef::from(socket);
        if let Err(error) = socket.set_tcp_user_timeout(Some(self.patience())) {
            debug!(%error, "TCP_USER_TIMEOUT");
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            login: Duration::from_secs(30),
            container_login: Duration::from_secs(15),
            open: Duration::from_secs(60),
            startups: Startups {
                start: 100,
                rate: 30,
                full: 1024,
            },
            waiting_per_address_max: 128,
            keepalive: Keepalive::default(),
            rekey_bytes: REKEY_BYTES,
        }
    }
}

impl Limits {
    /// As the command line has it.
    pub fn of(config: &SshConfig) -> Self {
        Self {
            startups: config.startups,
            waiting_per_address_max: config.startups_per_address,
            ..Self::default()
        }
    }
}

/// Identification string: no version, nothing to look up.
pub(super) const SERVER_ID: &str = "SSH-2.0-EddGateway";

/// Refused keys after which a connection ends, as with OpenSSH's `MaxAuthTries`.
pub(super) const KEYS_MAX: u32 = 6;

/// What russh counts by itself: the "none" that clients begin with, methods that are not offered,
/// signatures that are wrong. It ends the connection at the request after so many.
const ATTEMPTS_MAX: usize = 7;

/// Keys of containers; RSA with SHA-1 is not among them.
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

/// What users may log in with. Of our own host keys only those are offered that there are.
const USER_KEY_ALGORITHMS: &[Algorithm] = &[
    Algorithm::Ed25519,
    Algorithm::SkEd25519,
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP256,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP384,
    },
    Algorithm::Ecdsa {
        curve: EcdsaCurve::NistP521,
    },
    Algorithm::SkEcdsaSha2NistP256,
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha512),
    },
    Algorithm::Rsa {
        hash: Some(HashAlg::Sha256),
    },
];

/// Key exchanges for clients. No group of integers, which cost a server much and a client
/// nothing, and no curve of NIST's. Strict key exchange is announced here, too.
const KEX: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

/// The same without what a quantum computer would break.
const KEX_POST_QUANTUM: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

/// For clients that have it, if ours is the choice (see `greeting`).
pub(super) const AES_GCM: &[cipher::Name] = &[cipher::AES_256_GCM, cipher::AES_128_GCM];

/// For all others. The client's order decides; this is ours.
pub(super) const DOWNSTREAM_CIPHERS: &[cipher::Name] = &[
    cipher::AES_256_GCM,
    cipher::AES_128_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// For the last three: of what was encrypted, never of the text.
const DOWNSTREAM_MACS: &[mac::Name] = &[mac::HMAC_SHA512_ETM, mac::HMAC_SHA256_ETM];

/// AES in hardware is the fastest on the short way to a container.
const UPSTREAM_CIPHERS: &[cipher::Name] = &[
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_128_CTR,
];

/// Data after which we begin a key exchange, each way. The other side may begin one whenever it
/// likes, and OpenSSH does after 1 GiB with ChaCha20 and after 64 GiB with AES. While one
/// that we have begun is not answered, russh ends a peer that has more under way than twice the
/// first window, which more than two bulk streams may come to; so we leave it to the other side as
/// long as that is safe: russh counts payloads, of five bytes at least, and no key may live for 2³²
/// packets.
const REKEY_BYTES: usize = 16 << 30;

/// Likewise the time; OpenSSH has none.
const REKEY_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What clients are offered.
pub(crate) fn downstream(
    host_keys: Vec<PrivateKey>,
    ciphers: &'static [cipher::Name],
    post_quantum_only: bool,
    limits: &Limits,
) -> Arc<server::Config> {
    let keepalive = limits.keepalive;
    let kex = if post_quantum_only {
        KEX_POST_QUANTUM
    } else {
        KEX
    };
    let mut methods = MethodSet::empty();
    methods.push(MethodKind::PublicKey);
    Arc::new(server::Config {
        server_id: SshId::Standard(Cow::Borrowed(SERVER_ID)),
        methods,
        auth_rejection_time: REFUSAL,
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: host_keys,
        window_size: FIRST_WINDOW,
        // The readers never wait, so this is only for the moments before they run.
        channel_buffer_size: 1024,
        // Pieces of 32 KiB at most, that russh takes and encrypts at one go: few enough for the
        // processor's cache, enough to write several with one call.
        event_buffer_size: 16,
        preferred: Preferred {
            kex: Cow::Borrowed(kex),
            cipher: Cow::Borrowed(ciphers),
            mac: Cow::Borrowed(DOWNSTREAM_MACS),
            ..preferred(Cow::Borrowed(USER_KEY_ALGORITHMS))
        },
        limits: rekey_limits(limits.rekey_bytes),
        max_auth_attempts: ATTEMPTS_MAX,
        inactivity_timeout: None,
        keepalive_interval: Some(keepalive.interval),
        keepalive_max: keepalive.questions_max,
        nodelay: true,
        ..server::Config::default()
    })
}

/// How containers are spoken to; `host_key` asks for exactly that key.
pub(crate) fn upstream(host_key: Option<&Algorithm>, limits: &Limits) -> Arc<client::Config> {
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
        limits: rekey_limits(limits.rekey_bytes),
        channel_buffer_size: PIECES_MAX,
        inactivity_timeout: None,
        // See `pulse`.
        keepalive_interval: None,
        nodelay: true,
        ..client::Config::default()
    })
}

fn rekey_limits(bytes: usize) -> russh::Limits {
    russh::Limits {
        rekey_write_limit: bytes,
        rekey_read_limit: bytes,
        rekey_time_limit: REKEY_AFTER,
    }
}

fn preferred(key: Cow<'static, [Algorithm]>) -> Preferred {
    Preferred {
        key,
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_lives_for_as_many_packets_as_there_are_numbers() {
        const PAYLOAD_MIN: usize = 5;
        let usual = Limits::default();
        let limits = [
            upstream(None, &usual).limits.clone(),
            downstream(Vec::new(), AES_GCM, false, &usual)
                .limits
                .clone(),
        ];
        for limits in limits {
            assert!(limits.rekey_write_limit / PAYLOAD_MIN < 1 << 32);
            assert!(limits.rekey_read_limit / PAYLOAD_MIN < 1 << 32);
            assert!(
                limits.rekey_write_limit > 1 << 30,
                "OpenSSH's own comes first"
            );
        }
    }
}
