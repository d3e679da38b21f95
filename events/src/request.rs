//! Requests over NATS that are no events: asking auth whether a token is good.
//!
//! A stream that someone made too wide (`auth.>`) answers such a request too,
//! and first, with the acknowledgement of having stored it: never an answer.

use std::time::Duration;

use edd_proto::auth::{ValidateTokenRequest, ValidateTokenResponse};
use prost::Message as _;

use crate::bus::Bus;

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
    #[error("nobody answers")]
    NoResponders,
    /// The request could not be sent.
    #[error("request not sent: {0}")]
    Send(String),
    /// Nothing came in time.
    #[error("no answer in time")]
    TimedOut,
}

/// Asks auth about a token: the user's id and name, or `None` for a token that
/// is not good.
///
/// # Errors
/// When there is no answer within 2 s. The caller falls back to what it knows
/// or refuses.
pub async fn validate_token(
    bus: &impl Bus,
    token: &str,
) -> Result<Option<(i64, String)>, RequestError> {
    let request = ValidateTokenRequest {
        token: token.to_owned(),
    };
    let payload = request.encode_to_vec().into();
    let reply = bus
        .request(VALIDATE_TOKEN, payload, VALIDATE_TIMEOUT)
        .await?;
    let answer = ValidateTokenResponse::decode(reply)
        .map_err(|error| RequestError::Answer(error.to_string()))?;
    match answer {
        ValidateTokenResponse { valid: false, .. } => Ok(None),
        ValidateTokenResponse {
            user_id, username, ..
        } if user_id >= 1 => Ok(Some((user_id, username))),
        ValidateTokenResponse { user_id, .. } => {
            Err(RequestError::Answer(format!("valid for user id {user_id}")))
        }
    }
}

/// JetStream answers in JSON. No response of ours begins with `{`: none is JSON,
/// and in Protobuf it would be the start of a group with number 15.
pub(crate) fn is_stream_ack(payload: &[u8]) -> bool {
    payload.first() == Some(&b'{')
}
