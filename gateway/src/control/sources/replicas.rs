//! Other gateways on the same database: when they have changed the table, the
//! writer is told to follow.
//!
//! `gateway.router.refreshed` says so within milliseconds. It is an ordered
//! consumer, nothing of it is kept by the server; whatever it misses, and all
//! while NATS is away, a look at the database every second finds.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use edd_events::envelope::EventMessage as _;
use edd_events::stream::GATEWAY;
use edd_events::subject::{EntityId, Kind, subject};
use edd_proto::gateway::RouterRefreshed;
use futures_util::StreamExt as _;
use prost::Message as _;
use rand::RngExt as _;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::control::store::SqlStore;
use crate::control::writer::Command;
use crate::shared::Shared;

/// A look at the database without any news.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Pause between attempts to listen.
const RETRY: Duration = Duration::from_secs(1);

/// Tells `writer` to follow, until `shutdown`.
pub async fn run(
    shared: Arc<Shared>,
    js: Option<Context>,
    writer: mpsc::Sender<Command<SqlStore>>,
    shutdown: CancellationToken,
) {
    let following = async {
        let look = async {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                tell(&writer, None).await;
            }
        };
        match js {
            Some(js) => {
                tokio::join!(look, listen(&shared, &js, &writer));
            }
            None => look.await,
        }
    };
    shutdown.run_until_cancelled(following).await;
}

async fn listen(shared: &Shared, js: &Context, writer: &mpsc::Sender<Command<SqlStore>>) {
    let mut last_error = String::new();
    loop {
        let Err(error) = hear(shared, js, writer).await else {
            continue;
        };
        let error = format!("{error:#}");
        if error != last_error {
            tracing::info!(error, "not hearing of other gateways; looking every second");
            last_error = error;
        }
        let pause = RETRY.mul_f64(rand::rng().random_range(0.5..=1.0));
        tokio::time::sleep(pause).await;
    }
}

/// Listens until that ends.
async fn hear(
    shared: &Shared,
    js: &Context,
    writer: &mpsc::Sender<Command<SqlStore>>,
) -> anyhow::Result<()> {
    let stream = js.get_stream(GATEWAY.name).await?;
    let consumer = stream
        .create_consumer(pull::OrderedConfig {
            filter_subject: subject(Kind::RouterRefreshed, &EntityId::router()),
            deliver_policy: DeliverPolicy::New,
            ..pull::OrderedConfig::default()
        })
        .await?;
    let mut messages = consumer.messages().await?;
    while let Some(message) = messages.next().await {
        let message = message?;
        let revision = RouterRefreshed::decode(message.payload.clone())
            .ok()
            .and_then(|refreshed| Some(refreshed.metadata()?.version))
            .and_then(|version| u64::try_from(version).ok());
        // Our own, mostly.
        if revision.is_none_or(|revision| revision > shared.table().revision) {
            tell(writer, revision).await;
        }
    }
    Ok(())
}

async fn tell(writer: &mpsc::Sender<Command<SqlStore>>, revision: Option<u64>) {
    // The writer is gone only at the end.
    let _ = writer.send(Command::Follow(revision)).await;
}
