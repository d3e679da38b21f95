//! Who is asked for dead letters: the running gateway, or NATS itself where the
//! gateway's own user may not do what an operator may.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use edd_daemon::cli::Exit;
use edd_events::connect::{NatsOptions, connect};
use edd_events::dead_letter::{Filter, LetterRef, Letters};
use hyper::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::commands::client::{ask, encode};

/// Letters asked for at once.
const PAGE: usize = 500;

/// Flags of all that `dlq` does.
#[derive(Args, Debug)]
pub(super) struct ClientArgs {
    /// The running gateway
    #[arg(
        long,
        env = "EDD_GATEWAY_ADMIN_ADDR",
        default_value = "127.0.0.1:9090",
        value_name = "ADDR"
    )]
    admin_addr: String,
    /// Ask NATS itself instead, as an operator: nats://HOST:PORT
    #[arg(long, value_name = "URL")]
    nats_url: Option<String>,
    /// Credentials file, with --nats-url
    #[arg(long, value_name = "FILE", requires = "nats_url")]
    nats_creds: Option<PathBuf>,
    /// File with the seed of an nkey user, with --nats-url
    #[arg(long, value_name = "FILE", requires = "nats_url")]
    nats_nkey: Option<PathBuf>,
    /// PEM file of the CAs to trust instead of the system's, with --nats-url
    #[arg(long, value_name = "FILE", requires = "nats_url")]
    nats_ca: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Some letters, and where to go on.
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) letters: Vec<Value>,
    pub(super) next: Option<String>,
}

/// The one who is asked.
pub(super) enum Desk {
    Gateway(String),
    Nats {
        runtime: Box<tokio::runtime::Runtime>,
        letters: Letters,
    },
}

impl Desk {
    pub(super) fn open(args: &ClientArgs) -> Result<Self, Exit> {
        let Some(url) = &args.nats_url else {
            return Ok(Self::Gateway(args.admin_addr.clone()));
        };
        let options = NatsOptions {
            url: url.clone(),
            creds: args.nats_creds.clone(),
            nkey: args.nats_nkey.clone(),
            ca: args.nats_ca.clone(),
            name: "edd-gateway-dlq".into(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let client = runtime.block_on(connect(&options));
        let client = client.map_err(|error| Exit::Usage(vec![error.to_string()]))?;
        // The context runs a task of its own.
        let js = runtime.block_on(async { async_nats::jetstream::new(client) });
        let letters = Letters::new(js, edd_events::Metrics::default());
        Ok(Self::Nats {
            runtime: Box::new(runtime),
            letters,
        })
    }

    /// The letters that a filter takes, beyond `after`.
    pub(super) fn page(&self, filter: &Filter, after: Option<&str>) -> Result<Page, Exit> {
        let page = match self {
            Self::Gateway(addr) => {
                let mut path = format!("/api/v1/dlq?limit={PAGE}");
                for (key, value) in [
                    ("stream", filter.stream.as_deref()),
                    ("subject", filter.subject.as_deref()),
                    ("reason", filter.reason.as_deref()),
                    ("after", after),
                ] {
                    if let Some(value) = value {
                        path.push_str(&format!("&{key}={}", encode(value)));
                    }
                }
                return answer(&ask(Method::GET, addr, &path)?);
            }
            Self::Nats { runtime, letters } => {
                let after = after.map(named).transpose()?;
                let page = runtime.block_on(letters.list(filter, after.as_ref(), PAGE));
                serde_json::to_vec(&page.map_err(failed)?)
            }
        };
        answer(&page.map_err(failed)?)
    }

    /// Everything in a letter.
    pub(super) fn show(&self, letter: &str) -> Result<Value, Exit> {
        match self {
            Self::Gateway(addr) => {
                let path = format!("/api/v1/dlq/{}", encode(letter));
                answer(&ask(Method::GET, addr, &path)?)
            }
            Self::Nats { runtime, letters } => {
                let letter = runtime.block_on(letters.get(&named(letter)?));
                Ok(letter.map_err(failed)?.to_json())
            }
        }
    }

    /// Publishes the event again; its new place.
    pub(super) fn replay(&self, letter: &str) -> Result<Value, Exit> {
        match self {
            Self::Gateway(addr) => {
                let path = format!("/api/v1/dlq/{}/replay", encode(letter));
                answer(&ask(Method::POST, addr, &path)?)
            }
            Self::Nats { runtime, letters } => {
                let at = named(letter)?;
                let sequence = runtime.block_on(letters.replay(&at)).map_err(failed)?;
                Ok(json!({"event": format!("{}:{sequence}", at.stream)}))
            }
        }
    }

    /// Removes a letter.
    pub(super) fn discard(&self, letter: &str) -> Result<Value, Exit> {
        match self {
            Self::Gateway(addr) => {
                let path = format!("/api/v1/dlq/{}", encode(letter));
                ask(Method::DELETE, addr, &path)?;
            }
            Self::Nats { runtime, letters } => {
                let discarded = runtime.block_on(letters.discard(&named(letter)?));
                discarded.map_err(failed)?;
            }
        }
        Ok(Value::Null)
    }
}

fn named(letter: &str) -> Result<LetterRef, Exit> {
    letter.parse().map_err(|problem| Exit::Usage(vec![problem]))
}

fn answer<T: for<'d> Deserialize<'d>>(body: &[u8]) -> Result<T, Exit> {
    serde_json::from_slice(body).map_err(failed)
}

fn failed(error: impl Into<anyhow::Error>) -> Exit {
    Exit::Failure(error.into())
}
