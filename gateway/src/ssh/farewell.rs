//! What a drain says to whoever sits at a terminal.
//!
//! Only there: in the output of a command the words would be among its data.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use russh::ChannelWriteHalf;
use russh::server::Msg;
use tokio::time::timeout;

use super::connection::Connection;

/// A client that takes nothing is told nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// Waits for the drain and tells of it, if the channel has a terminal by then.
pub(super) async fn at_drain(
    connection: &Connection,
    to: &ChannelWriteHalf<Msg>,
    has_terminal: &AtomicBool,
) {
    let shared = &connection.inner.shared;
    shared.drain.token().cancelled().await;
    if !has_terminal.load(Ordering::Relaxed) {
        return;
    }
    let left = shared.config.timeouts.drain.as_secs();
    let text = format!(
        "\r\nThe gateway of this connection is going down; the connection ends in {left} s at the latest.\r\n"
    );
    let _ = timeout(PATIENCE, to.data_bytes(text)).await;
}
