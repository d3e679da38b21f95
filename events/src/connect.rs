//! The connection to NATS: made in the background, kept for ever, bounded.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tracing::{debug, error, info, warn};

use crate::{
    backoff::jittered,
    secret_file::{self, Secret},
};

/// Requests to the server (JetStream's API, flushes) give up after this.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead connection is noticed after about two of these.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(5);
/// Commands that wait for the connection's task; publishers wait beyond it.
const CLIENT_CAPACITY: usize = 4096;
/// First and longest pause between attempts to reconnect.
const RECONNECT_FIRST: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_secs(2);
/// Looks whether the connection is lost this often while an answer is awaited.
const LOST_POLL: Duration = Duration::from_millis(50);
/// Older servers lack the fix of CVE-2025-30215 (JetStream API authorisation).
const OLDEST_SAFE: (i64, i64, i64) = (2, 10, 27);

/// Where NATS is and who we are.
#[derive(Clone, Debug, Default)]
pub struct NatsOptions {
    /// `nats://host:port` or `tls://host:port`; several are comma-separated.
    pub url: String,
    /// A credentials file (JWT and seed).
    pub creds: Option<PathBuf>,
    /// A file with the seed of an nkey user (`SU…`); not together with `creds`.
    pub nkey: Option<PathBuf>,
    /// PEM certificates to trust; the system's count only without them.
    pub ca: Option<PathBuf>,
    /// The client's name, shown by the server's monitoring. Answers to its
    /// requests come to `_INBOX.NAME.>`, which permissions can name.
    pub name: String,
}

/// Options that cannot be used; an unreachable server is not among them.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL does not parse. It is not repeated: it may hold a password.
    #[error("NATS URL: {0}")]
    Url(#[source] io::Error),
    /// The credentials file cannot be read or holds no credentials.
    #[error("NATS credentials {}: {source}", path.display())]
    Creds {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The CA file cannot be read or holds no certificate.
    #[error("NATS CA {}: {source}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Two ways to say who we are.
    #[error("a credentials file and an nkey: only one of them can be used")]
    Identities,
    /// The nkey file cannot be read or holds no seed of a user. Its content is
    /// never repeated.
    #[error("NATS nkey {}: {source}", path.display())]
    Nkey {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// TLS cannot be set up (a bad CA file).
    #[error("NATS client: {0}")]
    Client(#[from] async_nats::ConnectError),
}

/// Makes a client and returns at once: it connects in the background, again and
/// again with jittered pauses of at most 2 s, and never gives up. Whoever uses
/// it puts a deadline on each wait.
///
/// # Errors
/// Only for options that no retry can cure.
pub async fn connect(options: &NatsOptions) -> Result<Client, ConnectError> {
    let addresses = parse_urls(&options.url)?;
    let identity = options.identity()?;
    let told = Arc::new(Told::default());
    let mut connect = ConnectOptions::new()
        .name(&options.name)
        .custom_inbox_prefix(inbox_prefix(&options.name))
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .connection_timeout(CONNECTION_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .ping_interval(PING_INTERVAL)
        .client_capacity(CLIENT_CAPACITY)
        .event_callback(move |event| {
            told.event(&event);
            async {}
        });
    connect = match identity {
        Identity::None => connect,
        Identity::Creds(path, creds) => {
            creds.warn_if_exposed("NATS credentials");
            connect
                .credentials(creds.text())
                .map_err(|source| ConnectError::Creds { path, source })?
        }
        Identity::Nkey(seed) => {
            seed.warn_if_exposed("NATS nkey");
            connect.nkey(seed.text().to_owned())
        }
    };
    if let Some(path) = &options.ca {
        connect = connect.add_root_certificates(path.clone());
    }
    Ok(connect.connect(addresses).await?)
}

impl NatsOptions {
    /// Checks who we say we are, without connecting: whether the files can be
    /// read and hold what they should.
    ///
    /// # Errors
    /// As [`connect`] would for them.
    pub fn check_identity(&self) -> Result<(), ConnectError> {
        match self.identity()? {
            Identity::Creds(path, creds) => ConnectOptions::new()
                .credentials(creds.text())
                .map(drop)
                .map_err(|source| ConnectError::Creds { path, source }),
            Identity::None | Identity::Nkey(_) => Ok(()),
        }
    }

    /// Checks the file of trusted CAs, without connecting.
    ///
    /// # Errors
    /// It cannot be read, or is no PEM file with certificates.
    pub fn check_ca(&self) -> Result<(), ConnectError> {
        let Some(path) = &self.ca else { return Ok(()) };
        let none = || io::Error::new(io::ErrorKind::InvalidData, "holds no certificate");
        std::fs::read_to_string(path)
            .and_then(|text| {
                let found = text.contains("-----BEGIN CERTIFICATE-----");
                found.then_some(()).ok_or_else(none)
            })
            .map_err(|source| ConnectError::Ca {
                path: path.clone(),
                source,
            })
    }

    fn identity(&self) -> Result<Identity, ConnectError> {
        match (&self.creds, &self.nkey) {
            (None, None) => Ok(Identity::None),
            (Some(_), Some(_)) => Err(ConnectError::Identities),
            (Some(path), None) => match secret_file::read(path) {
                Ok(creds) => Ok(Identity::Creds(path.clone(), creds)),
                Err(source) => Err(ConnectError::Creds {
                    path: path.clone(),
                    source,
                }),
            },
            (None, Some(path)) => read_seed(path).map(Identity::Nkey).map_err(|source| {
                let path = path.clone();
                ConnectError::Nkey { path, source }
            }),
        }
    }
}

/// Who we say we are, as read.
enum Identity {
    Creds(PathBuf, Secret),
    Nkey(Secret),
    None,
}

/// The first line that is neither empty nor a comment; `nk -gen user` writes
/// just the seed.
fn read_seed(path: &Path) -> io::Result<Secret> {
    let bad = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let seed = secret_file::read(path)?.map(|text| {
        let mut lines = text.lines().map(str::trim);
        lines
            .find(|line| !line.is_empty() && !line.starts_with('#'))
            .unwrap_or_default()
            .to_owned()
    });
    if !seed.text().starts_with("SU") {
        return Err(bad("holds no seed of an nkey user (SU…)"));
    }
    // The error of the crate could quote the seed.
    nkeys::KeyPair::from_seed(seed.text()).map_err(|_| bad("the seed is damaged"))?;
    Ok(seed)
}

/// Names become one token of a subject.
fn inbox_prefix(name: &str) -> String {
    let token: String = name
        .chars()
        .map(|c| match c {
            'A'..='Z' | 'a'..='z' | '0'..='9' | '-' | '_' => c,
            _ => '_',
        })
        .collect();
    if token.is_empty() {
        "_INBOX".to_owned()
    } else {
        format!("_INBOX.{token}")
    }
}

/// Checks the URLs of a command line without connecting.
///
/// # Errors
/// As [`connect`] would for them.
pub fn check_url(urls: &str) -> Result<(), ConnectError> {
    parse_urls(urls).map(drop)
}

/// Whether the connection stands right now.
#[must_use]
pub fn is_connected(client: &Client) -> bool {
    client.connection_state() == async_nats::connection::State::Connected
}

/// How often this client was connected so far.
pub(crate) fn connects(client: &Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// Ready once the connection that was the `connects`th is gone, or another has
/// taken its place: what was asked on it will never be answered, and waiting
/// for the time limit would only delay the next attempt.
pub(crate) async fn lost(client: &Client, connects_then: u64) {
    while is_connected(client) && connects(client) == connects_then {
        tokio::time::sleep(LOST_POLL).await;
    }
}

/// Warns once per process about a server with known holes.
pub(crate) fn warn_if_old(client: &Client) {
    static WARNED: AtomicBool = AtomicBool::new(false);
    let (major, minor, patch) = OLDEST_SAFE;
    let Some(server) = client.try_server_info() else {
        return;
    };
    if !client.is_server_compatible(major, minor, patch) && !WARNED.swap(true, Ordering::Relaxed) {
        warn!(
            version = %server.version,
            "nats-server is older than {major}.{minor}.{patch} and has known security holes: upgrade it"
        );
    }
}

fn parse_urls(urls: &str) -> Result<Vec<ServerAddr>, ConnectError> {
    urls.split(',').map(|url| parse_url(url.trim())).collect()
}

fn parse_url(url: &str) -> Result<ServerAddr, ConnectError> {
    let address: ServerAddr = url.parse().map_err(ConnectError::Url)?;
    if address
        .clone()
        .into_inner()
        .host_str()
        .is_none_or(str::is_empty)
    {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "no host");
        return Err(ConnectError::Url(error));
    }
    Ok(address)
}

fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = attempts.saturating_sub(1).min(10) as u32;
    jittered((RECONNECT_FIRST * 2_u32.pow(doublings)).min(RECONNECT_MAX))
}

/// What of the connection's failures the log has heard: an attempt every two
/// seconds must not fill it.
#[derive(Default)]
struct Told(Mutex<String>);

impl Told {
    fn event(&self, event: &Event) {
        match event {
            Event::Connected => {
                self.last().clear();
                info!("nats connected");
            }
            Event::Disconnected => warn!("nats disconnected"),
            // Among them what the server refuses to take or to give.
            Event::SlowConsumer(_) | Event::ServerError(_) => warn!("nats: {event}"),
            Event::LameDuckMode | Event::Draining | Event::Closed => info!("nats: {event}"),
            Event::ClientError(error) => self.failure(&error.to_string()),
        }
    }

    fn failure(&self, error: &str) {
        let mut last = self.last();
        if *last == error {
            debug!(error, "nats: not connected");
            return;
        }
        error.clone_into(&mut last);
        if error.contains("auth") {
            error!(
                error,
                "nats refuses this client: check its key and its permissions"
            );
        } else {
            warn!(error, "nats: not connected");
        }
    }

    fn last(&self) -> std::sync::MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_urls_are_comma_separated() {
        let count = |urls: &str| parse_urls(urls).map(|list| list.len()).ok();
        assert_eq!(count("nats://a:4222"), Some(1));
        assert_eq!(count("nats://a:4222, tls://b:4223"), Some(2));
        assert_eq!(count("nats://a:notaport"), None);
        assert_eq!(count(""), None);
    }

    #[test]
    fn secrets_of_a_url_are_not_repeated() {
        for url in ["nats://user:hunter2@h:x", "nats://user:hunter2@"] {
            let error = check_url(url).unwrap_err();
            assert!(
                !format!("{error} {error:?}").contains("hunter2"),
                "{error:?}"
            );
        }
    }

    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";

    fn with_nkey(content: &str) -> (tempfile::TempDir, NatsOptions) {
        let folder = tempfile::tempdir().unwrap();
        let nkey = folder.path().join("nkey");
        std::fs::write(&nkey, content).unwrap();
        let options = NatsOptions {
            nkey: Some(nkey),
            ..NatsOptions::default()
        };
        (folder, options)
    }

    #[test]
    fn seeds_of_users_are_taken_with_comments_around() {
        for content in [SEED, &format!("# gateway\n\n  {SEED}\r\n")] {
            let (_folder, options) = with_nkey(content);
            options.check_identity().unwrap();
        }
    }

    #[test]
    fn other_files_are_refused_and_never_quoted() {
        let cut = &SEED[..57];
        let account = nkeys::KeyPair::new_account().seed().unwrap();
        for content in ["", "hunter2", cut, &account] {
            let (_folder, options) = with_nkey(content);
            let error = options.check_identity().unwrap_err();
            assert!(matches!(error, ConnectError::Nkey { .. }), "{error:?}");
            let text = format!("{error} {error:?}");
            assert!(content.is_empty() || !text.contains(content), "{text}");
        }
    }

    #[test]
    fn one_identity_at_a_time() {
        let (_folder, mut options) = with_nkey(SEED);
        options.creds = Some("creds".into());
        let error = options.check_identity().unwrap_err();
        assert!(matches!(error, ConnectError::Identities), "{error:?}");
    }

    #[test]
    fn names_become_a_token_of_the_inbox() {
        for (name, expected) in [
            ("edd-gateway", "_INBOX.edd-gateway"),
            ("a.b *>", "_INBOX.a_b___"),
            ("", "_INBOX"),
        ] {
            assert_eq!(inbox_prefix(name), expected);
        }
    }

    #[test]
    fn pauses_between_attempts_stay_within_two_seconds() {
        for attempts in [0, 1, 5, 100, usize::MAX] {
            assert!(reconnect_delay(attempts) <= RECONNECT_MAX);
        }
    }
}
