//! The connection to NATS: made in the background, kept for ever, bounded.

use std::{
    io,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use tracing::{debug, info, warn};

use crate::backoff::jittered;

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
    /// PEM certificates to trust beside the system's.
    pub ca: Option<PathBuf>,
    /// The client's name, shown by the server's monitoring.
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
    let mut connect = ConnectOptions::new()
        .name(&options.name)
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .connection_timeout(CONNECTION_TIMEOUT)
        .request_timeout(Some(REQUEST_TIMEOUT))
        .ping_interval(PING_INTERVAL)
        .client_capacity(CLIENT_CAPACITY)
        .event_callback(|event| async move { log_event(&event) });
    if let Some(path) = &options.creds {
        connect = connect
            .credentials_file(path)
            .await
            .map_err(|source| ConnectError::Creds {
                path: path.clone(),
                source,
            })?;
    }
    if let Some(path) = &options.ca {
        connect = connect.add_root_certificates(path.clone());
    }
    Ok(connect.connect(addresses).await?)
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

fn log_event(event: &Event) {
    match event {
        Event::Connected => info!("nats connected"),
        Event::Disconnected => warn!("nats disconnected"),
        Event::SlowConsumer(_) | Event::ServerError(_) => warn!("nats: {event}"),
        Event::LameDuckMode | Event::Draining | Event::Closed => info!("nats: {event}"),
        Event::ClientError(_) => debug!("nats: {event}"),
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

    #[test]
    fn pauses_between_attempts_stay_within_two_seconds() {
        for attempts in [0, 1, 5, 100, usize::MAX] {
            assert!(reconnect_delay(attempts) <= RECONNECT_MAX);
        }
    }
}
