//! The connection to NATS: its state, and the one question that we answer.

use std::time::Duration;

use async_nats::Client;
use edd_events::connect::is_connected;
use futures_util::StreamExt as _;
use tokio_util::sync::CancellationToken;

use crate::control::status::{NatsStatus, StatusBoard};
use crate::ssh::SshKeys;

/// How often the connection is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// The subject on which others ask for the gateway's SSH client key.
pub const PUBLIC_KEY_REQUEST: &str = "gateway.ssh.public_key.request";

/// Pause before subscribing again.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the board up to date until `shutdown`.
pub async fn watch_connection(client: Client, board: StatusBoard, shutdown: CancellationToken) {
    let mut look = tokio::time::interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.run_until_cancelled(look.tick()).await.is_some() {
        let now = if is_connected(&client) {
            NatsStatus::Connected
        } else {
            NatsStatus::Disconnected
        };
        if board.now().nats != now {
            board.update(|status| {
                status.nats = now;
                // What happens meanwhile is heard of later.
                status.caught_up &= now == NatsStatus::Connected;
            });
        }
    }
}

/// Answers [`PUBLIC_KEY_REQUEST`] with `line` until `shutdown`.
pub async fn answer_public_key(client: Client, keys: SshKeys, shutdown: CancellationToken) {
    let answering = async {
        loop {
            match client.subscribe(PUBLIC_KEY_REQUEST).await {
                Ok(mut requests) => {
                    while let Some(request) = requests.next().await {
                        let (Some(reply), Some(line)) = (request.reply, keys.public_key_line())
                        else {
                            continue;
                        };
                        if let Err(error) = client.publish(reply, line.into()).await {
                            tracing::warn!(%error, "cannot answer {PUBLIC_KEY_REQUEST}");
                        }
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot subscribe {PUBLIC_KEY_REQUEST}"),
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    shutdown.run_until_cancelled(answering).await;
}
