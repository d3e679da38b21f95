//! The admin endpoint, and a database that is in the way.

use edd_store::Engine;
use serde_json::json;

use crate::support::{AuthClient as _, Service};

#[tokio::test]
async fn admin_answers_health_readiness_and_metrics() {
    let service = Service::start().await;
    service.register("alice").await;
    assert_eq!(service.admin.get("/healthz", None).await.status, 200);
    let ready = service.admin.get("/readyz", None).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    let expected = json!({
        "status": "ready", "nats": "off", "database": "ok", "events": "on", "outbox_pending": 2,
    });
    assert_eq!(ready.body, expected);
    let metrics = service.admin.get("/metrics", None).await.text;
    let request =
        r#"edd_auth_http_requests_total{route="/api/register",method="POST",status="201"} 1"#;
    for expected in [
        request,
        "edd_auth_http_request_duration_seconds_count",
        "edd_auth_outbox_pending",
    ] {
        assert!(metrics.contains(expected), "{expected} in {metrics}");
    }
    assert_eq!(
        service.client.get("/metrics", None).await.status,
        404,
        "on the admin port only"
    );
    service.stop().await;
}

#[tokio::test]
async fn a_database_locked_by_another_is_unavailable_and_comes_back() {
    let service = Service::start().await;
    let alice = service.register("alice").await;
    let database = service.database().await;
    let lock = database.begin().await.unwrap();
    // Reading goes on beside a writer.
    assert!(service.client.is_valid(&alice.token).await);
    let answer = service
        .client
        .post("/api/logout", Some(&alice.token), &json!({}))
        .await;
    match database.engine() {
        // Who says nothing while others wait for him is thrown out.
        Engine::Postgres => assert_eq!(answer.status, 204, "{answer:?}"),
        Engine::Sqlite => answer.assert_error(503, "unavailable"),
    }
    drop(lock);
    let bob = service.register("bob").await;
    let answer = service
        .client
        .post("/api/logout", Some(&bob.token), &json!({}))
        .await;
    assert_eq!(answer.status, 204, "{answer:?}");
    service.stop().await;
}
