//! What the others hear, and when.

use std::time::Duration;

use async_nats::jetstream::{self, consumer::pull};
use edd_events::{stream, testing::NatsServer};
use edd_proto::{auth, common::EventMetadata};
use edd_store::{Engine, query};
use futures_util::StreamExt as _;
use prost::Message as _;
use serde_json::json;
use tokio::time::timeout;

use crate::support::{AuthClient as _, DEADLINE, PASSWORD, Service};

/// All events of the AUTH stream from its beginning.
async fn events(nats: &NatsServer) -> pull::Stream {
    let js = nats.jetstream().await;
    stream::ensure(&js, &stream::AUTH, 1).await.unwrap();
    let config = pull::Config {
        // However long the service takes to start, nobody asking meanwhile.
        inactive_threshold: Duration::from_secs(600),
        ..pull::Config::default()
    };
    let stream = js.get_stream(stream::AUTH.name).await.unwrap();
    stream
        .create_consumer(config)
        .await
        .unwrap()
        .messages()
        .await
        .unwrap()
}

async fn next(events: &mut pull::Stream) -> jetstream::Message {
    let waiting = async {
        loop {
            // A heartbeat that was missed while the service started is no event.
            if let Ok(event) = events.next().await.expect("the stream goes on") {
                return event;
            }
        }
    };
    let event = timeout(DEADLINE, waiting).await.expect("an event in time");
    event.ack().await.unwrap();
    event
}

#[track_caller]
fn assert_metadata(message: &jetstream::Message, metadata: &EventMetadata, id: &str, version: i64) {
    assert_eq!(metadata.entity_id, id);
    assert_eq!(metadata.version, version, "{metadata:?}");
    assert_eq!(metadata.source, "edd-auth");
    assert!(
        metadata
            .timestamp
            .is_some_and(|at| at.seconds > 1_700_000_000)
    );
    let headers = message.headers.as_ref().expect("headers");
    let message_id = headers.get("Nats-Msg-Id").expect("a message id");
    assert_eq!(message_id.as_str(), metadata.event_id);
}

#[tokio::test]
async fn a_users_life_is_told_in_order_with_growing_versions() {
    let nats = NatsServer::start().await;
    let mut events = events(&nats).await;
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    let alice = service.register("alice").await;
    let id = alice.id.to_string();

    let message = next(&mut events).await;
    assert_eq!(message.subject.as_str(), format!("auth.user.{id}.created"));
    let created = auth::UserCreated::decode(message.payload.clone()).unwrap();
    assert_metadata(&message, created.metadata.as_ref().unwrap(), &id, 1);
    assert_eq!(
        (created.user_id, created.username.as_str()),
        (alice.id, "alice")
    );
    assert_eq!(created.display_name, "alice");
    assert_eq!(created.public_id, alice.public_id);

    let message = next(&mut events).await;
    assert_eq!(
        message.subject.as_str(),
        format!("auth.session.{}.created", alice.session_id)
    );
    let session = auth::SessionCreated::decode(message.payload.clone()).unwrap();
    assert_metadata(
        &message,
        session.metadata.as_ref().unwrap(),
        &alice.session_id,
        1,
    );
    assert_eq!(
        (session.session_id, session.user_id),
        (alice.session_id.clone(), alice.id)
    );
    let week =
        session.expires_at.unwrap().seconds - session.metadata.unwrap().timestamp.unwrap().seconds;
    assert!((604_790..=604_810).contains(&week), "{week} s");

    let path = format!("/api/users/{id}");
    let name = json!({ "display_name": "Alice A." });
    // The second time nothing changes, so nothing is told.
    for _ in 0..2 {
        assert_eq!(
            service
                .client
                .put(&path, Some(&alice.token), &name)
                .await
                .status,
            200
        );
    }
    let message = next(&mut events).await;
    assert_eq!(message.subject.as_str(), format!("auth.user.{id}.updated"));
    let updated = auth::UserUpdated::decode(message.payload.clone()).unwrap();
    assert_metadata(&message, updated.metadata.as_ref().unwrap(), &id, 2);
    assert_eq!(
        (updated.user_id, updated.display_name.as_str()),
        (alice.id, "Alice A.")
    );

    assert_eq!(
        service
            .client
            .delete(&path, Some(&alice.token))
            .await
            .status,
        204
    );
    let message = next(&mut events).await;
    let subject = format!("auth.session.{}.invalidated", alice.session_id);
    assert_eq!(message.subject.as_str(), subject);
    let message = next(&mut events).await;
    assert_eq!(message.subject.as_str(), format!("auth.user.{id}.deleted"));
    let deleted = auth::UserDeleted::decode(message.payload.clone()).unwrap();
    assert_metadata(&message, deleted.metadata.as_ref().unwrap(), &id, 3);
    assert_eq!(
        (deleted.user_id, deleted.username.as_str()),
        (alice.id, "alice")
    );
    service.stop().await;
}

#[tokio::test]
async fn sessions_are_told_by_their_public_id_never_by_the_token() {
    let nats = NatsServer::start().await;
    let mut events = events(&nats).await;
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    service.register("alice").await;
    let session = service.log_in("alice").await;
    let answer = service
        .client
        .post("/api/logout", Some(&session.token), &json!({}))
        .await;
    assert_eq!(answer.status, 204);

    let mut seen = Vec::new();
    for _ in 0..4 {
        let message = next(&mut events).await;
        let bytes = &message.payload;
        let token = session.token.as_bytes();
        assert!(
            !bytes.windows(token.len()).any(|window| window == token),
            "{message:?}"
        );
        seen.push(message);
    }
    let created = &seen[2];
    assert_eq!(
        created.subject.as_str(),
        format!("auth.session.{}.created", session.session_id)
    );
    let invalidated = &seen[3];
    let subject = format!("auth.session.{}.invalidated", session.session_id);
    assert_eq!(invalidated.subject.as_str(), subject);
    let body = auth::SessionInvalidated::decode(invalidated.payload.clone()).unwrap();
    assert_metadata(
        invalidated,
        body.metadata.as_ref().unwrap(),
        &session.session_id,
        2,
    );
    assert_eq!(
        (body.session_id, body.user_id),
        (session.session_id, session.id)
    );
    service.stop().await;
}

#[tokio::test]
async fn events_carry_the_request_and_its_trace() {
    let nats = NatsServer::start().await;
    let mut events = events(&nats).await;
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = format!(
        "Content-Type: application/json\r\nX-Request-ID: request-7\r\ntraceparent: {trace}\r\n"
    );
    let body = r#"{"username":"alice","password":"correct horse"}"#;
    let answer = service
        .client
        .call("POST", "/api/register", &headers, body)
        .await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let message = next(&mut events).await;
    let headers = message.headers.as_ref().unwrap();
    assert_eq!(
        headers.get("Edd-Correlation-Id").unwrap().as_str(),
        "request-7"
    );
    let told = headers.get("traceparent").unwrap().as_str();
    assert_eq!(told.get(..36), trace.get(..36), "the same trace");
    assert_ne!(told, trace, "a span of its own");
    service.stop().await;
}

/// Why events need no encryption of their own: there is nothing secret in them.
#[tokio::test]
async fn no_secret_is_published() {
    let nats = NatsServer::start().await;
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    let alice = service.register("alice").await;
    let again = service.log_in("alice").await;
    let database = service.database().await;
    let password_hash: String = query("SELECT password_hash FROM users")
        .value(&database)
        .await
        .unwrap();
    assert!(password_hash.starts_with("$argon2id$"), "{password_hash}");
    let token_hashes: Vec<Vec<u8>> = query("SELECT token_hash FROM sessions")
        .values(&database)
        .await
        .unwrap();
    let path = format!("/api/users/{}", alice.id);
    let name = json!({ "display_name": "Alice A." });
    let token = Some(alice.token.as_str());
    assert_eq!(service.client.put(&path, token, &name).await.status, 200);
    service
        .client
        .post("/api/logout", Some(&again.token), &json!({}))
        .await;
    assert_eq!(service.client.delete(&path, token).await.status, 204);
    service.stop().await;

    let mut secrets: Vec<Vec<u8>> = [
        PASSWORD,
        &password_hash,
        &alice.token,
        &again.token,
        "$argon2",
    ]
    .map(|secret| secret.as_bytes().to_vec())
    .to_vec();
    // Salt and hash alone, too.
    secrets.extend(
        password_hash
            .split('$')
            .skip(4)
            .map(|part| part.as_bytes().to_vec()),
    );
    assert!(token_hashes.len() >= 2, "one for each session");
    secrets.extend(token_hashes);
    let mut stream = nats
        .jetstream()
        .await
        .get_stream(stream::AUTH.name)
        .await
        .unwrap();
    let last = stream.info().await.unwrap().state.last_sequence;
    assert_eq!(
        last, 7,
        "created twice, session, updated, ended twice, deleted"
    );
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await.unwrap();
        let headers = format!("{:?}", message.headers);
        for secret in &secrets {
            let holds = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
            let found = holds(&message.payload) || holds(headers.as_bytes());
            assert!(!found, "{}: {:?}", message.subject, message.payload);
        }
    }
}

#[tokio::test]
async fn while_nats_is_down_the_api_works_and_events_wait() {
    let mut nats = NatsServer::start().await;
    let url = nats.url();
    nats.stop();
    let service = Service::start_with(&["--nats-url", &url]).await;
    let alice = service.register("alice").await;
    assert!(service.client.is_valid(&alice.token).await);
    let ready = service.admin.get("/readyz", None).await;
    assert_eq!(
        (ready.status, &ready.body["status"]),
        (200, &json!("degraded")),
        "{ready:?}"
    );
    assert_eq!(ready.body["nats"], "disconnected");
    assert_eq!(ready.body["outbox_pending"], 2);

    nats.resume().await;
    let mut events = events(&nats).await;
    let message = next(&mut events).await;
    assert_eq!(
        message.subject.as_str(),
        format!("auth.user.{}.created", alice.id)
    );
    next(&mut events).await;

    // And once more while it is connected.
    nats.stop();
    let bob = service.register("bob").await;
    nats.resume().await;
    let mut events = self::events(&nats).await;
    let mut subjects = Vec::new();
    for _ in 0..4 {
        subjects.push(next(&mut events).await.subject.to_string());
    }
    let expected = format!("auth.user.{}.created", bob.id);
    assert_eq!(subjects[2], expected, "{subjects:?}");
    service.stop().await;
}

#[tokio::test]
async fn events_of_a_time_without_nats_are_published_later() {
    let service = Service::start().await;
    let alice = service.register("alice").await;
    let ready = service.admin.get("/readyz", None).await;
    assert_eq!(ready.body["nats"], "off", "{ready:?}");
    let folder = service.stop().await;

    let nats = NatsServer::start().await;
    let mut events = events(&nats).await;
    let service = Service::start_in(folder, &["--nats-url", &nats.url()], |_| ()).await;
    let message = next(&mut events).await;
    assert_eq!(
        message.subject.as_str(),
        format!("auth.user.{}.created", alice.id)
    );
    service.stop().await;
}

#[tokio::test]
async fn with_events_off_nothing_is_written_down() {
    let nats = NatsServer::start().await;
    let flags = ["--events", "off", "--nats-url", &nats.url()];
    let service = Service::start_with(&flags).await;
    let alice = service.register("alice").await;
    service.log_in("alice").await;
    let path = format!("/api/users/{}", alice.id);
    let name = json!({ "display_name": "Alice A." });
    assert_eq!(
        service
            .client
            .put(&path, Some(&alice.token), &name)
            .await
            .status,
        200
    );
    assert_eq!(
        service
            .client
            .delete(&path, Some(&alice.token))
            .await
            .status,
        204
    );
    let database = service.database().await;
    // What numbers the rows remembers those that were there and are gone.
    let numbered = match database.engine() {
        Engine::Postgres => "SELECT last_value FROM outbox_id_seq WHERE is_called",
        Engine::Sqlite => "SELECT seq FROM sqlite_sequence WHERE name = 'outbox'",
    };
    let ever: Option<i64> = query(numbered).optional_value(&database).await.unwrap();
    assert_eq!(ever, None);
    service.stop().await;
}

#[tokio::test]
async fn a_change_that_fails_is_not_told() {
    let nats = NatsServer::start().await;
    let mut events = events(&nats).await;
    let service = Service::start_with(&["--nats-url", &nats.url()]).await;
    let body = json!({ "username": "alice", "password": "correct horse" });
    service.register("alice").await;
    for _ in 0..2 {
        assert_eq!(
            service
                .client
                .post("/api/register", None, &body)
                .await
                .status,
            409
        );
    }
    let bob = service.register("bob").await;
    for _ in 0..2 {
        next(&mut events).await;
    }
    let message = next(&mut events).await;
    assert_eq!(
        message.subject.as_str(),
        format!("auth.user.{}.created", bob.id)
    );
    service.stop().await;
}
