//! Who may ask: tokens over NATS, over HTTP, and from memory.

use edd_events::testing::NatsServer;
use serde_json::json;

use crate::support::{ALICE, BOB, Client, Service, auth_on, auth_over_http, eventually, id_of};

const CONTAINERS: &str = "/compute/containers";

async fn status(api: Client, token: Option<&str>) -> u16 {
    api.get(CONTAINERS, token).await.status
}

async fn passes(api: Client, token: Option<&str>) {
    eventually("a pass", async || {
        (status(api, token).await == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn only_good_tokens_pass() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    passes(service.api, ALICE).await;
    let refused = service.api.get(CONTAINERS, None).await;
    refused.assert_error(401, "unauthorized");
    let refused = service.api.get(CONTAINERS, Some("nonsense")).await;
    refused.assert_error(401, "unauthorized");
    let two = "Authorization: Bearer user-1\r\nAuthorization: Bearer user-2\r\n";
    let refused = service.api.call("GET", CONTAINERS, two, "").await;
    refused.assert_error(401, "unauthorized");
    service.stop().await;
}

#[tokio::test]
async fn without_nats_auth_is_asked_over_http() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    assert_eq!(status(service.api, ALICE).await, 200);
    assert_eq!(status(service.api, Some("nonsense")).await, 401);
    service.stop().await;
}

#[tokio::test]
async fn when_nobody_can_say_only_tokens_of_the_last_minute_pass() {
    let mut nats = NatsServer::start().await;
    let auth = auth_on(&nats).await;
    // Nobody listens on that port.
    let url = nats.url();
    let flags = ["--nats-url", &url, "--auth-url", "http://127.0.0.1:1"];
    let service = Service::start_with(&flags).await;
    passes(service.api, ALICE).await;
    drop(auth);
    eventually("no answer about Bob", async || {
        (status(service.api, BOB).await == 503).then_some(())
    })
    .await;
    assert_eq!(status(service.api, ALICE).await, 200);
    nats.stop();
    let refused = service.api.get(CONTAINERS, BOB).await;
    refused.assert_error(503, "unavailable");
    assert_eq!(status(service.api, ALICE).await, 200);
    service.stop().await;
}

#[tokio::test]
async fn what_is_somebody_elses_is_not_found() {
    let (url, _auth) = auth_over_http().await;
    let service = Service::start_with(&["--auth-url", &url]).await;
    let container = service.create(&json!({ "name": "mine" })).await;
    let own = format!("{CONTAINERS}/{}", id_of(&container));
    let api = service.api;
    let body = json!({ "ssh_enabled": true, "https_enabled": true, "port": 80, "target_port": 80 });
    for path in [
        own.as_str(),
        "/compute/containers/abcdefgh",
        "/compute/containers/..%2Fx",
    ] {
        let below = |name: &str| format!("{path}/{name}");
        for answer in [
            api.get(path, BOB).await,
            api.delete(path, BOB).await,
            api.post(&below("start"), BOB, &body).await,
            api.post(&below("stop"), BOB, &body).await,
            api.put(&below("ssh"), BOB, &body).await,
            api.put(&below("https"), BOB, &body).await,
            api.get(&below("ingress"), BOB).await,
            api.post(&below("ingress"), BOB, &body).await,
            api.delete(&below("ingress/443"), BOB).await,
        ] {
            answer.assert_error(404, "not_found");
        }
    }
    let bobs = api.get(CONTAINERS, BOB).await;
    assert_eq!(bobs.body, json!({ "containers": [] }));
    let alices = api.get(&own, ALICE).await;
    assert_eq!(
        (alices.status, &alices.body["ssh_enabled"]),
        (200, &false.into())
    );
    service.stop().await;
}
