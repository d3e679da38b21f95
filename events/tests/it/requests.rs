//! Asking auth about tokens, whoever else answers.

use std::time::{Duration, Instant};

use async_nats::{Client, jetstream::stream::Config};
use edd_events::{
    Metrics,
    bus::AnyBus,
    request::{RequestError, VALIDATE_TOKEN, validate_token},
};
use edd_proto::auth::{ValidateTokenRequest, ValidateTokenResponse};
use futures_util::StreamExt as _;
use prost::Message as _;
use tokio::task::JoinHandle;

use crate::support::{DEADLINE, Recorder, Running, Service, created, server};

/// Answers as auth does; a token `raw:...` gets what follows as it is.
async fn auth(client: Client) -> JoinHandle<()> {
    let mut requests = client.subscribe(VALIDATE_TOKEN).await.unwrap();
    // A flush empties our buffer only. What comes back on the same connection
    // says that the server knows the subscription.
    let probe = "probe.of.the.subscription";
    let mut probes = client.subscribe(probe).await.unwrap();
    client.publish(probe, "".into()).await.unwrap();
    tokio::time::timeout(DEADLINE, probes.next())
        .await
        .expect("an echo")
        .unwrap();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let token = ValidateTokenRequest::decode(request.payload).unwrap().token;
            let answer = match token.as_str() {
                "good" => ValidateTokenResponse {
                    valid: true,
                    user_id: 7,
                    username: "u".into(),
                },
                "nobody" => ValidateTokenResponse {
                    valid: true,
                    ..Default::default()
                },
                _ => ValidateTokenResponse::default(),
            };
            let answer = match token.strip_prefix("raw:") {
                Some(raw) => raw.as_bytes().to_vec(),
                None => answer.encode_to_vec(),
            };
            client
                .publish(request.reply.unwrap(), answer.into())
                .await
                .unwrap();
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_good_or_not_and_odd_answers_are_neither() {
    let (nats, _js) = server().await;
    let client = AnyBus::from(nats.client().await);
    let auth = auth(nats.client().await).await;
    let good = validate_token(&client, "good").await.unwrap();
    assert_eq!(good, Some((7, "u".to_owned())));
    assert_eq!(validate_token(&client, "bad").await.unwrap(), None);
    for odd in ["nobody", "raw:\u{1}\u{1}\u{1}"] {
        let answer = validate_token(&client, odd).await;
        assert!(
            matches!(answer, Err(RequestError::Answer(_))),
            "{odd:?}: {answer:?}"
        );
    }
    auth.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_auth_there_is_an_error_at_once() {
    let (nats, _js) = server().await;
    let client = AnyBus::from(nats.client().await);
    let started = Instant::now();
    let answer = validate_token(&client, "good").await;
    assert!(
        matches!(answer, Err(RequestError::NoResponders)),
        "{answer:?}"
    );
    assert!(started.elapsed() < Duration::from_secs(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_nats_there_is_an_error_within_two_seconds() {
    let (mut nats, _js) = server().await;
    let client = AnyBus::from(nats.client().await);
    nats.stop();
    let started = Instant::now();
    assert!(validate_token(&client, "good").await.is_err());
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

/// The design's own stream `AUTH auth.>`, made by someone else: JetStream
/// answers every request first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ack_of_a_stream_that_is_too_wide_is_no_answer() {
    let (nats, js) = server().await;
    for (name, subject) in [("AUTH", "auth.>"), ("COMPUTE", "compute.>")] {
        let subjects = vec![subject.to_owned()];
        js.create_stream(Config {
            name: name.into(),
            subjects,
            ..Config::default()
        })
        .await
        .unwrap();
    }
    let client = AnyBus::from(nats.client().await);
    let started = Instant::now();
    let answer = validate_token(&client, "good").await;
    assert!(
        matches!(answer, Err(RequestError::TimedOut)),
        "nobody but the stream: {answer:?}"
    );
    assert!(started.elapsed() >= Duration::from_secs(2));

    let auth = auth(nats.client().await).await;
    for _ in 0..50 {
        let answer = validate_token(&client, "good").await.unwrap();
        assert_eq!(answer, Some((7, "u".to_owned())));
        assert_eq!(validate_token(&client, "bad").await.unwrap(), None);
    }
    auth.abort();

    // Events go through such streams as through our own.
    let service = Service::start(js.clone(), Metrics::default()).await;
    let consumer = Running::start(js, Recorder::new());
    service
        .write(&(0..20).map(created).collect::<Vec<_>>())
        .await;
    consumer.recorder.saw(20).await;
    consumer.stop().await;
    service.stop().await;
}
