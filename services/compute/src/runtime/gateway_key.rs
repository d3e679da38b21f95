//! The gateway's public key, which opens the SSH servers of all containers.
//!
//! Kept in one file that every container's sshd reads at each log-in, so that a
//! key that comes late, or a new one, needs no restart of anything. It comes from
//! the gateway itself (a NATS request) or from a file.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use edd_events::bus::{AnyBus, Bus as _};
use tokio::sync::Notify;

use crate::input::PublicKey;

/// The request that the gateway answers with its public key line.
pub const REQUEST: &str = "gateway.ssh.public_key.request";

/// How long the gateway may take to answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);
/// Pauses between attempts until there is a key.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Between looks whether it is still the same.
const REFRESH: Duration = Duration::from_secs(60);
/// Attempts after which its absence is worth a warning.
const QUIET_ATTEMPTS: u32 = 8;
/// Largest key file that is read, in bytes.
const FILE_LEN_MAX: u64 = 64 * 1024;

/// Where the key comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// A public key file.
    File(PathBuf),
    /// The gateway.
    Bus(AnyBus),
    /// Nowhere: nobody gets in.
    None,
}

/// Why there is no key yet.
#[derive(Debug, thiserror::Error)]
enum KeyError {
    #[error("not a public key: {0}")]
    Bad(#[from] crate::input::InputError),
    #[error("{}: {source}", file.display())]
    File { file: PathBuf, source: io::Error },
    #[error("no gateway answers on {REQUEST}")]
    NoAnswer,
}

/// The file with the key, and whoever keeps it up to date.
#[derive(Clone, Debug)]
pub struct GatewayKey {
    file: Arc<Path>,
    source: Source,
    refresh: Arc<Notify>,
}

impl GatewayKey {
    /// Keeps the key of `source` in `file`.
    pub fn new(file: PathBuf, source: Source) -> Self {
        Self {
            file: file.into(),
            source,
            refresh: Arc::new(Notify::new()),
        }
    }

    /// What `AuthorizedKeysFile` names; it may not be there yet.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Asks for a look at the source soon.
    pub fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// Keeps the file up to date until dropped.
    pub async fn run(self) {
        if matches!(self.source, Source::None) {
            tracing::warn!("neither --nats-url nor --gateway-ssh-key: no SSH into containers");
            return;
        }
        let (mut pause, mut failures) = (RETRY_FIRST, 0_u32);
        loop {
            let kept = match self.fetch().await {
                Ok(key) => self.keep(&key).map_err(|source| KeyError::File {
                    file: self.file.to_path_buf(),
                    source,
                }),
                Err(error) => Err(error),
            };
            match kept {
                Ok(()) => {
                    (pause, failures) = (RETRY_FIRST, 0);
                    tokio::select! {
                        () = self.refresh.notified() => {}
                        () = tokio::time::sleep(REFRESH) => {}
                    }
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if failures == QUIET_ATTEMPTS {
                        tracing::warn!(%error, "the gateway's SSH key is not known yet");
                    } else {
                        tracing::debug!(%error, "the gateway's SSH key is not known yet");
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                }
            }
        }
    }

    async fn fetch(&self) -> Result<PublicKey, KeyError> {
        let line = match &self.source {
            Source::File(file) => read(file).map_err(|source| KeyError::File {
                file: file.clone(),
                source,
            })?,
            Source::Bus(bus) => ask(bus).await.ok_or(KeyError::NoAnswer)?,
            Source::None => return Err(KeyError::NoAnswer),
        };
        Ok(PublicKey::parse(&line)?)
    }

    /// Replaces the file as a whole, if the key is another one.
    fn keep(&self, key: &PublicKey) -> io::Result<()> {
        let line = format!("{}\n", key.line());
        if fs::read_to_string(&self.file).is_ok_and(|known| known == line) {
            return Ok(());
        }
        let draft = self.file.with_extension("new");
        let mut out = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            // A public key; sshd reads it as the user who logs in.
            .mode(0o644)
            .open(&draft)?;
        io::Write::write_all(&mut out, line.as_bytes())?;
        fs::rename(&draft, &self.file)?;
        tracing::info!(
            fingerprint = key.fingerprint(),
            "the gateway's SSH key is in place"
        );
        Ok(())
    }
}

/// A small file at once: it is read in the background and rarely.
fn read(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    io::Read::read_to_string(
        &mut io::Read::take(fs::File::open(file)?, FILE_LEN_MAX),
        &mut text,
    )?;
    Ok(text)
}

/// The gateway's answer.
async fn ask(bus: &AnyBus) -> Option<String> {
    if !bus.is_connected() {
        return None;
    }
    let answer = bus.request(REQUEST, Vec::new().into(), REQUEST_TIMEOUT);
    String::from_utf8(answer.await.ok()?.to_vec()).ok()
}
