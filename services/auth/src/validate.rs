//! `auth.validate.request`: other services ask whose token this is.
//!
//! Core NATS request and reply, shared among replicas by a queue group. Garbage
//! is answered with `valid = false`. When the database cannot say, there is no
//! answer at all: the asker then treats the token as unchecked, not as bad.

use std::{sync::Arc, time::Duration};

use edd_events::{
    bus::{AnyBus, Bus as _, Request, Requests as _},
    request::VALIDATE_TOKEN,
};
use edd_proto::auth::{ValidateTokenRequest, ValidateTokenResponse};
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{store::Store, token::Token};

/// The queue group: each request is answered by one replica.
const QUEUE_GROUP: &str = "auth";

/// Answers under way; further requests wait in the subscription's buffer.
const ANSWERING_MAX: usize = 64;

/// Askers wait two seconds at most: a later answer is read by nobody.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Largest request that is decoded, in bytes; a token has 43.
const REQUEST_BYTES_MAX: usize = 4096;

/// Pause before subscribing again after the subscription ended.
const RESUBSCRIBE_PAUSE: Duration = Duration::from_secs(1);

/// Answers requests until `shutdown`. The client reconnects by itself and keeps
/// the subscription.
pub(crate) async fn run(bus: AnyBus, store: Store, shutdown: CancellationToken) {
    let places = Arc::new(Semaphore::new(ANSWERING_MAX));
    let answers = TaskTracker::new();
    let serve = async {
        loop {
            match bus.answer(VALIDATE_TOKEN, QUEUE_GROUP).await {
                Ok(mut requests) => {
                    tracing::debug!(subject = VALIDATE_TOKEN, "answering");
                    while let Some(request) = requests.next().await {
                        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                            return;
                        };
                        let store = store.clone();
                        answers.spawn(async move {
                            let _place = place;
                            let answering = answer(&store, request);
                            if tokio::time::timeout(ANSWER_TIMEOUT, answering)
                                .await
                                .is_err()
                            {
                                tracing::warn!("a token was not validated in time");
                            }
                        });
                    }
                }
                Err(error) => tracing::warn!(%error, "cannot subscribe to {VALIDATE_TOKEN}"),
            }
            tokio::time::sleep(RESUBSCRIBE_PAUSE).await;
        }
    };
    shutdown.run_until_cancelled(serve).await;
    answers.close();
    // Bounded: each answer has its own timeout.
    answers.wait().await;
}

async fn answer(store: &Store, request: Request) {
    let response = match parse(&request.payload) {
        None => ValidateTokenResponse::default(),
        Some(token) => match store.authenticate(token.hash()).await {
            Ok(Some(found)) => ValidateTokenResponse {
                valid: true,
                user_id: found.user.id,
                username: found.user.username,
            },
            Ok(None) => ValidateTokenResponse::default(),
            Err(error) => {
                tracing::warn!(%error, "cannot validate a token");
                return;
            }
        },
    };
    if let Err(error) = request.respond(response.encode_to_vec().into()).await {
        tracing::warn!(%error, "cannot answer {VALIDATE_TOKEN}");
    }
}

fn parse(payload: &[u8]) -> Option<Token> {
    if payload.len() > REQUEST_BYTES_MAX {
        return None;
    }
    let request = ValidateTokenRequest::decode(payload).ok()?;
    Token::parse(&request.token)
}
