//! What is no good request.

use serde_json::{Value, json};

use crate::support::{ALICE, Service, auth_over_http};

#[tokio::test]
async fn bodies_that_are_no_json_are_refused() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let api = service.api;
    for path in ["/compute/containers", "/compute/ssh-keys"] {
        for body in ["", "{", "\u{0}", "{\"name\":\"a\",}", "nonsense"] {
            api.json("POST", path, ALICE, body)
                .await
                .assert_error(400, "invalid_json");
        }
        for body in ["[]", "{}", "7", "null", "{\"name\":7}"] {
            api.json("POST", path, ALICE, body)
                .await
                .assert_error(400, "invalid_body");
        }
        let plain = "Authorization: Bearer user-1\r\nContent-Type: text/plain\r\n";
        let answer = api.call("POST", path, plain, "{}").await;
        answer.assert_error(415, "unsupported_media_type");
        let large = json!({ "name": "a".repeat(100_000) });
        api.post(path, ALICE, &large)
            .await
            .assert_error(413, "body_too_large");
        let answer = api
            .call("PATCH", path, "Authorization: Bearer user-1\r\n", "")
            .await;
        answer.assert_error(405, "method_not_allowed");
    }
    api.get("/compute/nothing", ALICE)
        .await
        .assert_error(404, "not_found");
    service.stop().await;
}

#[tokio::test]
async fn values_out_of_bounds_are_refused() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let bad: [(&str, Value); 16] = [
        ("name", json!("")),
        ("name", json!("   ")),
        ("name", json!("a".repeat(65))),
        ("name", json!("a\nb")),
        ("name", json!("a\u{202e}b")),
        ("image", json!("")),
        ("image", json!("a b")),
        ("image", json!("a".repeat(256))),
        ("memory_mb", json!(0)),
        ("memory_mb", json!(-1)),
        ("memory_mb", json!(i64::MAX)),
        ("storage_gb", json!(0)),
        ("storage_gb", json!(65_537)),
        ("instance_type", json!("")),
        ("instance_type", json!("Nano!")),
        ("ssh_key_ids", json!((0..101).collect::<Vec<_>>())),
    ];
    for (field, value) in bad {
        let mut body = json!({ "name": "a" });
        body[field] = value;
        let answer = service.api.post("/compute/containers", ALICE, &body).await;
        answer.assert_error(400, "invalid_value");
    }
    let wrong_types = [
        ("memory_mb", json!("256")),
        ("memory_mb", json!(1.5)),
        ("ssh_enabled", json!("yes")),
        ("ssh_key_ids", json!(7)),
        ("ingress", json!([{ "port": 80 }])),
    ];
    for (field, value) in wrong_types {
        let mut body = json!({ "name": "a" });
        body[field] = value;
        let answer = service.api.post("/compute/containers", ALICE, &body).await;
        answer.assert_error(400, "invalid_body");
    }
    let list = service.api.get("/compute/containers", ALICE).await;
    assert_eq!(list.body, json!({ "containers": [] }));
    assert!(service.outbox().await.is_empty());
    service.stop().await;
}
