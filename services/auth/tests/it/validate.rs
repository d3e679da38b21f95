//! Other services ask whose token it is.

use async_nats::jetstream;
use edd_events::{
    bus::AnyBus,
    request::{RequestError, validate_token},
    testing::NatsServer,
};
use edd_proto::auth::{ValidateTokenRequest, ValidateTokenResponse};
use futures_util::StreamExt as _;
use prost::Message as _;
use serde_json::json;
use tokio::time::timeout;

use crate::support::{DEADLINE, Service};

/// Asks until somebody answers: the service subscribes in the background.
async fn ask(client: &async_nats::Client, token: &str) -> Option<(i64, String)> {
    timeout(DEADLINE, async {
        loop {
            match validate_token(&AnyBus::from(client.clone()), token).await {
                Ok(answer) => return answer,
                Err(RequestError::NoResponders) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
    .expect("a responder in time")
}

#[tokio::test]
async fn tokens_are_valid_from_log_in_to_their_end() {
    let nats = NatsServer::start().await;
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    let client = nats.client().await;
    let alice = service.register("alice").await;
    let expected = Some((alice.id, "alice".to_owned()));
    assert_eq!(ask(&client, &alice.token).await, expected);

    let second = service.log_in("alice").await;
    assert_eq!(ask(&client, &second.token).await, expected);
    service
        .client
        .post("/api/logout", Some(&second.token), &json!({}))
        .await;
    assert_eq!(ask(&client, &second.token).await, None, "logged out");
    assert_eq!(ask(&client, &alice.token).await, expected);
    service
        .client
        .delete(&format!("/api/users/{}", alice.id), Some(&alice.token))
        .await;
    assert_eq!(ask(&client, &alice.token).await, None, "deleted");
    service.stop().await;
}

#[tokio::test]
async fn garbage_is_answered_as_not_valid() {
    let nats = NatsServer::start().await;
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    let client = nats.client().await;
    let alice = service.register("alice").await;
    assert!(ask(&client, &alice.token).await.is_some());

    let request = |token: &str| {
        ValidateTokenRequest {
            token: token.to_owned(),
        }
        .encode_to_vec()
    };
    let payloads = [
        Vec::new(),
        vec![0xff; 10],
        vec![0x0a, 0xff],
        b"{\"token\":\"x\"}".to_vec(),
        alice.token.clone().into_bytes(),
        request(""),
        request(" "),
        request(&alice.token[1..]),
        request(&format!("{} ", alice.token)),
        request(&alice.session_id),
        request(&"x".repeat(100_000)),
    ];
    for payload in payloads {
        let shown = format!("{:?}", &payload[..payload.len().min(20)]);
        let asking = client.request("auth.validate.request", payload.into());
        let answer = timeout(DEADLINE, asking)
            .await
            .expect("an answer in time")
            .unwrap();
        let answer = ValidateTokenResponse::decode(answer.payload).unwrap();
        assert_eq!(answer, ValidateTokenResponse::default(), "{shown}");
    }
    // Without a reply subject there is nobody to answer, and nothing breaks.
    client
        .publish("auth.validate.request", "x".into())
        .await
        .unwrap();
    assert!(ask(&client, &alice.token).await.is_some());
    service.stop().await;
}

#[tokio::test]
async fn validation_returns_after_a_restart_of_nats() {
    let mut nats = NatsServer::start().await;
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    let alice = service.register("alice").await;
    assert!(ask(&nats.client().await, &alice.token).await.is_some());
    nats.restart().await;
    assert!(ask(&nats.client().await, &alice.token).await.is_some());
    service.stop().await;
}

#[tokio::test]
async fn with_events_off_tokens_are_still_validated() {
    let nats = NatsServer::start().await;
    let service = Service::start_with(&["--events=off", "--nats-url", &nats.url()]).await;
    let alice = service.register("alice").await;
    assert!(ask(&nats.client().await, &alice.token).await.is_some());
    service.stop().await;
}

#[tokio::test]
async fn of_two_replicas_one_answers() {
    const REQUESTS: usize = 50;
    let nats = NatsServer::start().await;
    let flags = ["--nats-url", &nats.url()];
    let (first, second) = (
        Service::start_with(&flags).await,
        Service::start_with(&flags).await,
    );
    let client = nats.client().await;
    // Each must have subscribed, or one could not answer twice. A session known to
    // one of them only is found by it, sooner or later, if both take part.
    for service in [&first, &second] {
        let account = service.register("alice").await;
        timeout(DEADLINE, async {
            while ask(&client, &account.token).await.is_none() {}
        })
        .await
        .expect("both answer");
    }

    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    for _ in 0..REQUESTS {
        let reply = inbox.clone();
        client
            .publish_with_reply("auth.validate.request", reply, "x".into())
            .await
            .unwrap();
    }
    for _ in 0..REQUESTS {
        timeout(DEADLINE, answers.next())
            .await
            .expect("an answer in time")
            .unwrap();
    }
    // Second answers would have come in between; the marker ends the wait for them.
    client.publish(inbox, "end".into()).await.unwrap();
    let last = timeout(DEADLINE, answers.next())
        .await
        .expect("the marker")
        .unwrap();
    assert_eq!(last.payload, "end");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn a_wide_stream_of_somebody_else_does_not_answer_for_us() {
    let nats = NatsServer::start().await;
    let wide = jetstream::stream::Config {
        name: "AUTH".to_owned(),
        subjects: vec!["auth.>".to_owned()],
        ..Default::default()
    };
    let mut stream = nats.jetstream().await.create_stream(wide).await.unwrap();
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    let alice = service.register("alice").await;
    let client = nats.client().await;
    // Without a responder the stream alone "answers": nobody, for the asker.
    timeout(DEADLINE, async {
        loop {
            match validate_token(&AnyBus::from(client.clone()), &alice.token).await {
                Ok(answer) => break assert_eq!(answer, Some((alice.id, "alice".to_owned()))),
                Err(RequestError::NoResponders | RequestError::TimedOut) => {}
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
    .expect("a responder in time");
    // Events are published all the same, and the stream is left as it is.
    timeout(DEADLINE, async {
        let subject = format!("auth.user.{}.created", alice.id);
        while stream
            .get_last_raw_message_by_subject(&subject)
            .await
            .is_err()
        {}
    })
    .await
    .expect("the event in the stream");
    assert_eq!(stream.info().await.unwrap().config.subjects, ["auth.>"]);
    service.stop().await;
}
