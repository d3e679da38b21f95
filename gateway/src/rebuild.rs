//! The streams replayed into an empty database, by the control path alone.
//!
//! Nothing listens and nothing of `--state-dir` is touched: the last good table
//! there serves on until the gateway that is started next has looked at both.
//! What replays is what rebuilds a lost database in a running gateway: the
//! streams are read past the durable consumers, and compute's snapshot stands for
//! what they no longer hold.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow, bail};
use arc_swap::ArcSwap;
use async_nats::jetstream;
use edd_daemon::cli::Exit;
use edd_events::connect::{connect, is_connected};
use edd_events::outbox::Published;
use edd_events::stream::COMPUTE;
use edd_store::DatabaseUrl;
use prometheus_client::registry::Registry;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, NatsConfig};
use crate::control::sources::events::DURABLE;
use crate::control::store::{GatewayStore as _, SqlStore};
use crate::control::{self, Boot, DatabaseStatus, Face, NatsStatus};
use crate::drain::Drain;
use crate::listener::{Doors, Gate, RequestGate};
use crate::shared::Shared;
use crate::telemetry::{AccessLog, Metrics};
use crate::tls::CertStore;
use crate::upstream::Fleet;

/// NATS has to be there within this, at the start and whenever it goes away.
const NATS_MAX: Duration = Duration::from_secs(15);
/// Compute has to tell what the streams have lost within this, once all else is there: its
/// first page alone may take half a minute.
const SNAPSHOT_MAX: Duration = Duration::from_secs(40);
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// One question to a gateway that may be running, or to NATS.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a rebuilt database holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Summary {
    /// Containers in force.
    pub containers: usize,
    /// Keys in force.
    pub keys: usize,
    /// Its revision.
    pub revision: u64,
    /// The file with what was there before.
    pub kept: Option<PathBuf>,
    /// How long it took.
    pub took: Duration,
}

/// Rebuilds the database of `config` from the streams; `progress` is told how
/// many containers there are, once a second. A database that is not empty is
/// begun anew if `overwrite`, else refused: SQLite's file is put aside, and the
/// gateway's SSH keys in it are taken over.
///
/// # Errors
/// A gateway runs, NATS does not answer or has nothing to replay, the routes are
/// unusable, the database is not empty or cannot be used; then nothing is changed.
/// Or compute does not tell what the streams have lost, or `shutdown` came first:
/// a database that was begun stays and is not complete; the next gateway goes on
/// where this ended.
pub async fn run(
    config: Config,
    overwrite: bool,
    mut progress: impl FnMut(usize),
    shutdown: CancellationToken,
) -> Result<Summary, Exit> {
    let begun = Instant::now();
    let Some(nats) = config.nats.clone() else {
        let why = "--nats-url: without it there is nothing to replay";
        return Err(Exit::Usage(vec![why.to_owned()]));
    };
    nobody_runs(&config, &nats).await?;
    let url = config.database_url.clone();
    let folder = Folder::make().context("cannot make a temporary folder")?;
    // All that can be wrong is known before the database is emptied.
    let (shared, boot) = shared(config, &folder.0)?;
    let kept = empty(&url, overwrite).await?;
    if let Some(kept) = &kept {
        tracing::warn!(database = %url, kept = %kept.display(), "what it held is kept");
        keep_ssh_keys(kept, &url).await;
    }
    let face = Face::new(&shared);
    let inputs = control::Inputs {
        shared: Arc::clone(&shared),
        face: face.clone(),
        boot,
        ssh_keys: None,
        events_metrics: edd_events::Metrics::default(),
        published: Published::default(),
        followed: Arc::new(AtomicBool::new(false)),
    };
    let mut control = control::start(inputs).await?;
    let mut status = face.status();
    let mut looks = tokio::time::interval(LOOK_INTERVAL);
    let (mut told, mut seen) = (Instant::now(), Instant::now());
    let mut wanted = None;
    let rebuilt = loop {
        tokio::select! {
            _ = looks.tick() => {}
            () = shutdown.cancelled() => break Err(anyhow!("stopped before it was done")),
        }
        let now = status.borrow_and_update().clone();
        if now.caught_up && now.database == DatabaseStatus::Ok {
            let Some(first) = now.snapshot_wanted else {
                break Ok(());
            };
            if wanted.get_or_insert_with(Instant::now).elapsed() > SNAPSHOT_MAX {
                break Err(anyhow!(
                    "COMPUTE begins with its message {first} and compute does not tell what was \
                     before: the database is not whole, the next gateway goes on asking"
                ));
            }
        }
        if now.nats == NatsStatus::Connected {
            seen = Instant::now();
        } else if seen.elapsed() > NATS_MAX {
            break Err(anyhow!("NATS is not there"));
        }
        if told.elapsed() > PROGRESS_INTERVAL {
            told = Instant::now();
            progress(shared.table().containers().count());
        }
    };
    let ended = control.stop().await;
    rebuilt?;
    if !ended {
        return Err(anyhow!("the database was not closed in time").into());
    }
    let table = shared.table();
    Ok(Summary {
        containers: table.containers().count(),
        keys: table.key_owners().map(|(_, keys)| keys.len()).sum(),
        revision: table.revision,
        kept,
        took: begun.elapsed(),
    })
}

/// A gateway that runs would go on with the database that is replaced, and share
/// the events with us. NATS has to be there, and something in it.
async fn nobody_runs(config: &Config, nats: &NatsConfig) -> anyhow::Result<()> {
    let asking = TcpStream::connect(config.admin_addr);
    if matches!(tokio::time::timeout(ASK_TIMEOUT, asking).await, Ok(Ok(_))) {
        bail!(
            "something answers on --admin-addr {}: stop the gateway first",
            config.admin_addr
        );
    }
    let client = connect(&nats.options).await?;
    let begun = Instant::now();
    while !is_connected(&client) {
        if begun.elapsed() > NATS_MAX {
            bail!("NATS is not there");
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
    let js = jetstream::new(client);
    let looking = async {
        let Ok(mut stream) = js.get_stream(COMPUTE.name).await else {
            bail!("NATS has no stream {}: nothing to replay", COMPUTE.name);
        };
        let info = stream.info().await.context("JetStream does not answer")?;
        if info.state.last_sequence == 0 {
            bail!("nothing was ever published to {}", COMPUTE.name);
        }
        // Without the consumer nobody consumes.
        match stream.consumer_info(DURABLE).await {
            Ok(consumer) if consumer.num_waiting > 0 => {
                bail!("a gateway consumes the events right now: stop it first")
            }
            _ => Ok(()),
        }
    };
    match tokio::time::timeout(ASK_TIMEOUT, looking).await {
        Ok(looked) => looked,
        Err(_) => bail!("JetStream does not answer"),
    }
}

/// Sees to it that the database is empty; the file that holds what was in it, if `overwrite` had to
/// put it aside.
async fn empty(url: &DatabaseUrl, overwrite: bool) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = url.path() {
        if !path.exists() {
            return Ok(None);
        }
        if overwrite {
            return put_aside(path).map(Some);
        }
    }
    let store = SqlStore::open(url)
        .await
        .with_context(|| format!("cannot open {url}"))?;
    let stored = store.load().await;
    store.database().close().await;
    match stored.with_context(|| format!("cannot read {url}"))?.born {
        false => Ok(None),
        true if overwrite => bail!("{url} is not empty: give a new database of that server"),
        true => bail!("{url} is not empty: give a new one, or --yes to begin with an empty one"),
    }
}

/// Gives SQLite's files another name: `FILE.old-SECONDS`, Unix time.
fn put_aside(path: &Path) -> anyhow::Result<PathBuf> {
    let with = |path: &Path, end: &str| {
        let mut file = path.as_os_str().to_owned();
        file.push(end);
        PathBuf::from(file)
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let aside = with(path, &format!(".old-{}", now.unwrap_or_default().as_secs()));
    // The database last: until then it is found where it was.
    for end in ["-shm", "-wal", ""] {
        let (from, to) = (with(path, end), with(&aside, end));
        match std::fs::rename(&from, to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot rename {}", from.display()));
            }
            _ => {}
        }
    }
    Ok(aside)
}

/// With `--ssh-keys database` the gateway's own keys are nowhere else, and clients know them.
async fn keep_ssh_keys(kept: &Path, url: &DatabaseUrl) {
    let copy = async {
        let old = SqlStore::open(&DatabaseUrl::Sqlite(kept.to_owned())).await?;
        let keys = old.ssh_keys().await;
        old.database().close().await;
        let keys = keys?;
        if keys.is_empty() {
            return Ok(());
        }
        let new = SqlStore::open(url).await?;
        let stored = new.share_ssh_keys(&keys).await;
        new.database().close().await;
        stored.map(drop)
    };
    if let Err(error) = copy.await {
        // It may be the reason why there is a new one.
        tracing::warn!(kept = %kept.display(), %error, "SSH keys in it are not taken over");
    }
}

/// A process without listeners, with its files in `folder`.
fn shared(mut config: Config, folder: &Path) -> Result<(Arc<Shared>, Boot), Exit> {
    config.state_dir = folder.to_owned();
    config.certs_dir = folder.join("certs");
    std::fs::create_dir_all(&config.certs_dir).context("cannot make a temporary folder")?;
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let boot = Boot::read(&config).map_err(|error| {
        let mut lines = vec![error.to_string()];
        lines.extend(error.mistakes);
        Exit::Usage(lines)
    })?;
    let certs = CertStore::open(&config, metrics.clone()).map_err(anyhow::Error::from)?;
    let gate = Gate::new(
        config.max_connections,
        config.max_connections_per_ip,
        config.max_upstream_connections,
    );
    let fleet = Fleet::new(
        gate.clone(),
        metrics.clone(),
        config.resolvers.clone(),
        tokio::runtime::Handle::current(),
    );
    let shared = Shared {
        request_gate: RequestGate::new(config.request_rate),
        fleet,
        table: ArcSwap::new(boot.table()),
        config,
        certs: Arc::new(certs),
        doors: Doors::new(),
        gate,
        metrics,
        access: AccessLog::off(),
        drain: Drain::new(),
    };
    Ok((Arc::new(shared), boot))
}

/// Goes with its value.
struct Folder(PathBuf);

impl Folder {
    fn make() -> std::io::Result<Self> {
        let name = format!("edd-gateway-rebuild-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "a temporary folder stays");
        }
    }
}
