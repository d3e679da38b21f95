//! Log-in, log-out, revocation, and what an attacker gets to see.

use std::time::{Duration, Instant};

use edd_auth::limit::Rate;
use edd_store::{Engine, query};
use serde_json::json;

use crate::support::{AuthClient as _, PASSWORD, Service};

#[tokio::test]
async fn a_session_lives_from_log_in_to_log_out() {
    let service = Service::start().await;
    let alice = service.register("alice").await;
    let (first, second) = (service.log_in("alice").await, service.log_in("alice").await);
    assert_ne!(first.token, second.token);
    assert_eq!(first.id, alice.id);
    assert_eq!(first.public_id, alice.public_id);

    let session = service.client.get("/api/session", Some(&first.token)).await;
    assert_eq!(session.status, 200, "{session:?}");
    assert_eq!(session.body["user_id"], alice.id);
    assert_eq!(session.body["session_id"], first.session_id.as_str());
    assert!(session.body.get("token").is_none() && !session.text.contains(&first.token));

    let log_out = async || {
        service
            .client
            .post("/api/logout", Some(&first.token), &json!({}))
            .await
    };
    assert_eq!(log_out().await.status, 204);
    log_out().await.assert_error(401, "unauthorized");
    assert!(!service.client.is_valid(&first.token).await);
    assert!(
        service.client.is_valid(&second.token).await,
        "other sessions live on"
    );
    service.stop().await;
}

#[tokio::test]
async fn a_session_survives_a_restart() {
    let service = Service::start().await;
    let alice = service.register("alice").await;
    let folder = service.stop().await;
    let service = Service::start_in(folder, &[], |_| ()).await;
    assert!(service.client.is_valid(&alice.token).await);
    service.stop().await;
}

#[tokio::test]
async fn an_expired_session_is_none() {
    let service = Service::start().await;
    let alice = service.register("alice").await;
    let database = service.database().await;
    query("UPDATE sessions SET expires_at = created_at")
        .run(&database)
        .await
        .unwrap();
    assert!(!service.client.is_valid(&alice.token).await);
    service.stop().await;
}

#[tokio::test]
async fn the_oldest_session_makes_room() {
    let service = Service::start().await;
    let alice = service.register("alice").await;
    let database = service.database().await;
    // As many as allowed, all of them younger than the first.
    for n in 0..49_u8 {
        query(
            "INSERT INTO sessions SELECT $1, 'filler' || $2, user_id, created_at + 1, expires_at \
             FROM sessions WHERE id = $3",
        )
        .bind(vec![n; 32])
        .bind(n.to_string())
        .bind(&alice.session_id)
        .run(&database)
        .await
        .unwrap();
    }
    assert!(service.client.is_valid(&alice.token).await);
    let newest = service.log_in("alice").await;
    assert!(service.client.is_valid(&newest.token).await);
    assert!(!service.client.is_valid(&alice.token).await);
    service.stop().await;
}

#[tokio::test]
async fn a_wrong_password_and_an_unknown_user_look_the_same() {
    let service = Service::start().await;
    service.register("alice").await;
    let timed = async |username: &str, password: &str| {
        let started = Instant::now();
        let mut answer = service.client.log_in(username, password).await;
        answer.assert_error(401, "invalid_credentials");
        answer.body.as_object_mut().unwrap().remove("request_id");
        (answer.body, started.elapsed())
    };
    let mut known = Vec::new();
    let mut unknown = Vec::new();
    for _ in 0..6 {
        let (wrong_password, took) = timed("alice", "wrong password").await;
        known.push(took);
        let (unknown_user, took) = timed("nobody", "wrong password").await;
        unknown.push(took);
        assert_eq!(wrong_password, unknown_user);
    }
    // Without the same work the answer for an unknown user comes some fifty times
    // sooner. The fastest of each: other load only makes them slower.
    let (known, unknown) = (known.iter().min().unwrap(), unknown.iter().min().unwrap());
    assert!(
        *unknown > *known / 10,
        "known {known:?}, unknown {unknown:?}"
    );
    // Names and passwords that nobody can have are no different answer either.
    let (impossible, _) = timed("No Such Name!", "wrong password").await;
    let (short, _) = timed("alice", "x").await;
    assert_eq!(impossible, short);
    service.stop().await;
}

#[tokio::test]
async fn guessing_is_slowed_down_for_known_and_unknown_users() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start_in(folder, &[], |config| {
        config.login_limits.pair = Rate {
            burst: 3,
            refill: Duration::from_secs(3600),
        };
    })
    .await;
    service.register("alice").await;
    for username in ["alice", "nobody"] {
        for _ in 0..3 {
            let answer = service.client.log_in(username, "wrong password").await;
            answer.assert_error(401, "invalid_credentials");
        }
        let answer = service.client.log_in(username, PASSWORD).await;
        answer.assert_error(429, "too_many_requests");
        assert!(answer.head.contains("retry-after: 3"), "{answer:?}");
    }
    // Somebody else behind the same trusted proxy is not affected.
    let body = json!({ "username": "alice", "password": PASSWORD }).to_string();
    let headers = "Content-Type: application/json\r\nX-Forwarded-For: 192.0.2.7\r\n";
    let elsewhere = service
        .client
        .call("POST", "/api/login", headers, &body)
        .await;
    assert_eq!(elsewhere.status, 200, "{elsewhere:?}");
    service.stop().await;
}

#[tokio::test]
async fn right_passwords_are_never_limited() {
    let folder = tempfile::tempdir().unwrap();
    let service = Service::start_in(folder, &[], |config| {
        config.login_limits.pair = Rate {
            burst: 1,
            refill: Duration::from_secs(3600),
        };
    })
    .await;
    service.register("alice").await;
    for _ in 0..4 {
        service.log_in("alice").await;
    }
    service.stop().await;
}

#[tokio::test]
async fn secrets_are_never_in_the_database_in_clear() {
    let service = Service::start().await;
    let alice = service.register("alice").await;
    let again = service.log_in("alice").await;
    let database = service.database().await;
    let lengths: Vec<i64> = query("SELECT CAST(length(token_hash) AS BIGINT) FROM sessions")
        .values(&database)
        .await
        .unwrap();
    assert_eq!(lengths, [32, 32]);
    let hash: String = query("SELECT password_hash FROM users")
        .value(&database)
        .await
        .unwrap();
    assert!(hash.starts_with("$argon2id$"), "{hash}");
    // Database, write-ahead log and whatever else lies beside them, byte by byte.
    let mut files = 0;
    for entry in std::fs::read_dir(service.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        for secret in [&alice.token, &again.token, PASSWORD] {
            let found = bytes
                .windows(secret.len())
                .any(|window| window == secret.as_bytes());
            assert!(!found, "a secret in {}", path.display());
        }
        files += 1;
    }
    if database.engine() == Engine::Sqlite {
        assert!(files >= 2, "the database and its log");
    }
    service.stop().await;
}

#[tokio::test]
async fn garbage_tokens_are_unauthorized() {
    let service = Service::start().await;
    service.register("alice").await;
    let long = "a".repeat(5000);
    for token in [
        "x",
        "null",
        "' OR 1=1 --",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
        &long,
    ] {
        service
            .client
            .get("/api/session", Some(token))
            .await
            .assert_error(401, "unauthorized");
    }
    service
        .client
        .get("/api/session", None)
        .await
        .assert_error(401, "unauthorized");
    service.stop().await;
}
