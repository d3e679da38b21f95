//! Requests over NATS that are no events: asking auth whether a token is good.
//!
//! A stream that someone made too wide (`auth.>`) answers such a request too,
//! and first, with the acknowledgement of having stored it. The reply is read
//! from an inbox of our own, where that acknowledgement is skipped and the real
//! answer awaited.

use std::time::Duration;

use async_nats::{Client, StatusCode};
use edd_proto::auth::{ValidateTokenRequest, ValidateTokenResponse};
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::time::timeout;

/// Where auth answers.
pub const VALIDATE_TOKEN: &str = "auth.validate.request";
/// Requesters wait this long at most.
pub const VALIDATE_TIMEOUT: Duration = Duration::from_secs(2);

/// No answer; never to be taken for a good token.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The answer is not what it should be.
    #[error("bad answer: {0}")]
    Answer(String),
    /// Nobody listens.
    #[error("nobody answers on {VALIDATE_TOKEN}")]
    NoResponders,
    /// The request could not be sent.
    #[error("request not sent: {0}")]
    Send(String),
    /// Nothing came within 2 s.
    #[error("no answer within 2 s")]
    TimedOut,
}

/// Asks auth about a token: the user's id and name, or `None` for a token that
/// is not good.
///
/// # Errors
/// When there is no answer within 2 s. The caller falls back to what it knows
/// or refuses.
pub async fn validate_token(
    client: &Client,
    token: &str,
) -> Result<Option<(i64, String)>, RequestError> {
    timeout(VALIDATE_TIMEOUT, ask(client, token))
        .await
        .unwrap_or(Err(RequestError::TimedOut))
}

async fn ask(client: &Client, token: &str) -> Result<Option<(i64, String)>, RequestError> {
    let send = |error: &dyn std::fmt::Display| RequestError::Send(error.to_string());
    let inbox = client.new_inbox();
    let mut replies = client
        .subscribe(inbox.clone())
        .await
        .map_err(|error| send(&error))?;
    let request = ValidateTokenRequest {
        token: token.to_owned(),
    };
    client
        .publish_with_reply(VALIDATE_TOKEN, inbox, request.encode_to_vec().into())
        .await
        .map_err(|error| send(&error))?;
    while let Some(reply) = replies.next().await {
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(RequestError::NoResponders);
        }
        if is_stream_ack(&reply.payload) {
            continue;
        }
        let answer = ValidateTokenResponse::decode(reply.payload)
            .map_err(|error| RequestError::Answer(error.to_string()))?;
        return match answer {
            ValidateTokenResponse { valid: false, .. } => Ok(None),
            ValidateTokenResponse {
                user_id, username, ..
            } if user_id >= 1 => Ok(Some((user_id, username))),
            ValidateTokenResponse { user_id, .. } => {
                Err(RequestError::Answer(format!("valid for user id {user_id}")))
            }
        };
    }
    Err(RequestError::TimedOut)
}

/// JetStream answers in JSON. No response of auth begins with `{`, which would
/// be the start of a Protobuf group with number 15.
fn is_stream_ack(payload: &[u8]) -> bool {
    payload.first() == Some(&b'{')
}
