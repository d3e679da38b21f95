//! The event bus as a service uses it: flags, their check, the relay.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use edd_daemon::cli::{Problems, parse_switch};
use edd_events::{
    Metrics,
    bus::{AnyBus, MemoryBus},
    connect::{self, ConnectError, NatsOptions},
    outbox::{Relay, Waker},
    signature::{Signer, Verifier},
    stream::StreamSpec,
};

use crate::{run::Background, store::Database};

/// The flags. All but `--nats-url` have a variable of the service's own, which
/// the service names.
#[derive(Debug, Args)]
pub struct BusArguments {
    /// What carries events: nats, a server, or memory, this process alone, which
    /// nobody else hears (for development and tests).
    #[arg(long, env = "EVENT_BUS_TYPE", default_value = "nats")]
    event_bus: String,

    /// nats://HOST:PORT, comma-separated; without one, events wait in the outbox.
    #[arg(long, env = "NATS_URL", default_value = "", hide_env_values = true)]
    nats_url: String,

    /// NATS credentials file.
    #[arg(long)]
    nats_creds: Option<PathBuf>,

    /// File with the seed of the nkey user that this service is for NATS.
    #[arg(long)]
    nats_nkey: Option<PathBuf>,

    /// PEM file of the CAs to trust for NATS, instead of the system's.
    #[arg(long)]
    nats_ca: Option<PathBuf>,

    /// Replicas of a stream that this service creates, 1 to 5.
    #[arg(long, default_value = "1")]
    nats_replicas: String,

    /// Days that events and dead letters stay in the service's own archive; 0: nothing more is
    /// archived, and what there is goes after 90.
    #[arg(long, default_value = "90")]
    event_store_days: String,

    /// on or off: whether changes are written as events.
    #[arg(long, default_value = "on")]
    events: String,

    /// Ed25519 private key (PKCS#8 PEM) that signs this service's events.
    #[arg(long)]
    event_signing_key: Option<PathBuf>,

    /// Public keys that others' events must be signed with: a folder with
    /// SOURCE.pem files, or one file; without it signatures are not looked at.
    #[arg(long)]
    event_keys: Option<PathBuf>,
}

/// What carries events.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum EventBus {
    /// This process: everything works, and nobody else hears it.
    Memory,
    /// A NATS server.
    Nats,
}

/// The checked flags.
#[derive(Clone, Debug)]
pub struct Bus {
    /// What carries events.
    pub kind: EventBus,
    /// NATS, if there is one.
    pub nats: Option<NatsOptions>,
    /// Replicas of a stream that is created.
    pub replicas: usize,
    /// Whether changes are written as events.
    pub events: bool,
    /// Signs this service's events.
    pub signer: Option<Arc<Signer>>,
    /// Knows who signs events.
    pub verifier: Option<Arc<Verifier>>,
    /// Days that events stay in the archive; 0: none comes into it.
    pub event_store_days: u32,
}

impl BusArguments {
    /// Checks the flags; `name` is what NATS is told about this client. Nothing
    /// if the bus, `replicas` or `events` cannot be read; other mistakes are only noted.
    pub fn check(self, problems: &mut Problems, name: &str) -> Option<Bus> {
        let kind = problems.check("--event-bus", parse_event_bus(&self.event_bus));
        problems.check_list("--nats-url", &self.nats_url, parse_nats_url);
        let options = NatsOptions {
            url: self.nats_url,
            creds: self.nats_creds,
            nkey: self.nats_nkey,
            ca: self.nats_ca,
            name: name.to_owned(),
        };
        check_identity(problems, &options);
        let (signer, verifier) = load_keys(
            problems,
            self.event_signing_key.as_deref(),
            self.event_keys.as_deref(),
        );
        let replicas = problems.check(
            "--nats-replicas",
            parse_number(&self.nats_replicas, 1..=5_usize),
        );
        let event_store_days = problems.check(
            "--event-store-days",
            parse_number(&self.event_store_days, 0..=36_500_u32),
        );
        let events = problems.check("--events", parse_switch(&self.events));
        let nats = (!options.url.trim().is_empty()).then_some(options);
        Some(Bus {
            kind: kind?,
            nats,
            replicas: replicas?,
            events: events?,
            signer,
            verifier,
            event_store_days: event_store_days?,
        })
    }
}

/// Notes what is wrong with who we say we are to NATS, and whom we trust.
pub fn check_identity(problems: &mut Problems, options: &NatsOptions) {
    let flag = if options.nkey.is_some() {
        "--nats-nkey"
    } else {
        "--nats-creds"
    };
    problems.check(flag, options.check_identity());
    problems.check("--nats-ca", options.check_ca());
}

/// Reads the keys of events; what cannot be used is noted and left out.
pub fn load_keys(
    problems: &mut Problems,
    signing_key: Option<&Path>,
    keys: Option<&Path>,
) -> (Option<Arc<Signer>>, Option<Arc<Verifier>>) {
    let signer = signing_key
        .and_then(|file| problems.check("--event-signing-key", Signer::load(file)))
        .map(Arc::new);
    let verifier = keys
        .and_then(|path| problems.check("--event-keys", Verifier::load(path)))
        .map(Arc::new);
    (signer, verifier)
}

/// Notes a file that was named and is not there.
pub fn check_file(problems: &mut Problems, flag: &str, file: Option<&PathBuf>) {
    if let Some(file) = file.filter(|file| !file.is_file()) {
        problems.push(flag, format_args!("{} is not a file", file.display()));
    }
}

/// A number of this range.
///
/// # Errors
/// It is none, or out of the range; the message says which range.
pub fn parse_number<N>(text: &str, range: RangeInclusive<N>) -> Result<N, String>
where
    N: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    text.parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| {
            format!(
                "{text:?} is not a number from {} to {}",
                range.start(),
                range.end()
            )
        })
}

fn parse_event_bus(text: &str) -> Result<EventBus, String> {
    match text {
        "memory" => Ok(EventBus::Memory),
        "nats" => Ok(EventBus::Nats),
        _ => Err(format!("{text:?} is neither nats nor memory")),
    }
}

/// The value is not repeated: it may hold a password.
fn parse_nats_url(url: &str) -> Result<(), &'static str> {
    let scheme_is_known = url.starts_with("nats://") || url.starts_with("tls://");
    match url.parse::<async_nats::ServerAddr>() {
        Ok(address) if scheme_is_known && !address.host().is_empty() => Ok(()),
        _ => Err("not a NATS URL such as nats://127.0.0.1:4222"),
    }
}

/// The bus of these flags; none: there is nowhere to publish.
///
/// # Errors
/// Only for options that no retry can cure.
pub async fn connect(
    kind: EventBus,
    nats: Option<&NatsOptions>,
) -> Result<Option<AnyBus>, ConnectError> {
    match (kind, nats) {
        (EventBus::Memory, _) => {
            tracing::warn!("--event-bus memory: no other process hears any event");
            Ok(Some(MemoryBus::new().into()))
        }
        (EventBus::Nats, None) => Ok(None),
        (EventBus::Nats, Some(options)) => Ok(Some(connect::connect(options).await?.into())),
    }
}

/// Publishes the outbox to `stream`, signed if there is a key, if there is
/// anything to publish and somewhere to.
pub fn relay(
    database: &Database,
    bus: Option<&AnyBus>,
    stream: StreamSpec,
    replicas: usize,
    signer: Option<Arc<Signer>>,
    metrics: &Metrics,
    background: &Background,
) -> Option<Waker> {
    if !database.events() {
        return None;
    }
    let Some(bus) = bus else {
        tracing::warn!("no --nats-url: events wait in the outbox until there is one");
        return None;
    };
    let relay = Relay::new(database.sql().clone(), bus.clone(), metrics.clone())
        .with_streams(&[stream], replicas)
        .with_signer(signer);
    let waker = relay.waker();
    background.tasks.spawn(relay.run(background.end.clone()));
    Some(waker)
}
