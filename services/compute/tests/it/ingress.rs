//! Ingress rules: asked for, confirmed by the gateway, taken back.

use edd_events::testing::NatsServer;
use edd_proto::{compute, gateway};
use edd_store::query;
use serde_json::{Value, json};

use crate::support::{
    ALICE, Client, Events, Service, auth_on, auth_over_http, eventually, id_of, publish,
};

fn created(id: &str, port: i32, target_port: i32) -> gateway::IngressRuleCreated {
    gateway::IngressRuleCreated {
        metadata: None,
        rule_id: 1,
        container_id: id.to_owned(),
        port,
        target_port,
    }
}

fn deleted(id: &str, port: i32) -> gateway::IngressRuleDeleted {
    gateway::IngressRuleDeleted {
        metadata: None,
        rule_id: 1,
        container_id: id.to_owned(),
        port,
    }
}

async fn rules(api: Client, id: &str) -> Value {
    let answer = api
        .get(&format!("/compute/containers/{id}/ingress"), ALICE)
        .await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["ingress"].clone()
}

async fn wait_for(api: Client, id: &str, port: u16, status: &str) {
    eventually(&format!("{port} {status}"), async || {
        let rules = rules(api, id).await;
        let rule = rules
            .as_array()
            .unwrap()
            .iter()
            .find(|rule| rule["port"] == port)?;
        (rule["status"] == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_rule_is_pending_until_the_gateway_confirms_just_that_rule() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    let api = service.api;
    let container = service.create(&json!({ "name": "a", "ingress": [] })).await;
    let id = id_of(&container);
    let path = format!("/compute/containers/{id}/ingress");
    let ask = async |port: u16, target_port: u16| {
        let body = json!({ "port": port, "target_port": target_port });
        let answer = api.post(&path, ALICE, &body).await;
        (
            answer.status,
            answer.body["status"].as_str().unwrap().to_owned(),
        )
    };
    // Two ports may have one target (C30).
    assert_eq!(ask(80, 8080).await, (201, "pending".to_owned()));
    assert_eq!(ask(8000, 8080).await, (201, "pending".to_owned()));
    let version = |port: u16| {
        let id = id.to_owned();
        async move |service: &Service| -> i64 {
            query("SELECT version FROM ingress_requests WHERE container_id = $1 AND port = $2")
                .bind(id)
                .bind(port)
                .value(&service.database().await)
                .await
                .unwrap()
        }
    };
    let first = version(80)(&service).await;

    publish(&nats, id, first, created(id, 80, 8080), 2).await;
    wait_for(api, id, 80, "active").await;
    wait_for(api, id, 8000, "pending").await;

    // Another target is another rule; what confirms the old one is stale.
    assert_eq!(ask(80, 9000).await, (200, "pending".to_owned()));
    let second = version(80)(&service).await;
    assert!(second > first);
    publish(&nats, id, first, created(id, 80, 8080), 1).await;
    publish(&nats, id, first, created(id, 8000, 8080), 1).await;
    // The last one has an old version: 8000 was asked for after 80.
    publish(&nats, id, 0, created(id, 8000, 8080), 1).await;
    wait_for(api, id, 8000, "active").await;
    wait_for(api, id, 80, "pending").await;
    publish(&nats, id, second, created(id, 80, 9000), 1).await;
    wait_for(api, id, 80, "active").await;
    assert_eq!(
        ask(80, 9000).await,
        (200, "active".to_owned()),
        "asked for before"
    );

    // Out of force, whatever the reason: pending again, but not by old news.
    publish(&nats, id, first, deleted(id, 80), 1).await;
    publish(&nats, id, 0, deleted(id, 8000), 1).await;
    wait_for(api, id, 8000, "pending").await;
    wait_for(api, id, 80, "active").await;
    service.stop().await;
}

#[tokio::test]
async fn requests_and_their_withdrawal_are_told() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    let api = service.api;
    let container = service
        .create_running(&json!({ "name": "a", "ingress": [] }))
        .await;
    let id = id_of(&container);
    let mut events = Events::of_compute(&nats).await;
    let subject = format!("compute.container.{id}.created");
    events.expect::<compute::ContainerCreated>(&subject).await;
    let subject = format!("compute.container.{id}.started");
    events.expect::<compute::ContainerStarted>(&subject).await;

    let path = format!("/compute/containers/{id}/ingress");
    let body = json!({ "port": 8100, "target_port": 7000 });
    for expected in [201, 200] {
        assert_eq!(api.post(&path, ALICE, &body).await.status, expected);
    }
    let subject = format!("compute.ingress.{id}.requested");
    let (event, requested) = events
        .expect::<compute::IngressRuleRequested>(&subject)
        .await;
    assert_eq!((event.port, event.target_port), (8100, 7000));

    let rule = format!("{path}/8100");
    assert_eq!(api.delete(&rule, ALICE).await.status, 204);
    api.delete(&rule, ALICE)
        .await
        .assert_error(404, "not_found");
    for nothing in ["443", "0", "65536", "x", "-1"] {
        let answer = api.delete(&format!("{path}/{nothing}"), ALICE).await;
        answer.assert_error(404, "not_found");
    }
    let subject = format!("compute.ingress.{id}.delete_requested");
    let (event, withdrawn) = events
        .expect::<compute::IngressRuleDeleteRequested>(&subject)
        .await;
    assert_eq!(event.port, 8100);
    assert!(withdrawn > requested);
    assert_eq!(rules(api, id).await, json!([]));
    service.stop().await;
}

#[tokio::test]
async fn the_gateways_news_about_strangers_changes_nothing() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let service = Service::start(&nats).await;
    let container = service.create(&json!({ "name": "a" })).await;
    let id = id_of(&container);
    publish(&nats, "zzzzzzzz", 1, created("zzzzzzzz", 443, 8080), 1).await;
    publish(
        &nats,
        "not_one-of-ours",
        1,
        created("not_one-of-ours", 443, 8080),
        1,
    )
    .await;
    publish(&nats, id, 9, created(id, 70_000, 1), 1).await;
    publish(&nats, id, 9, created(id, 443, 8080), 1).await;
    wait_for(service.api, id, 443, "active").await;
    service.stop().await;
}

#[tokio::test]
async fn ports_that_no_rule_may_have_are_refused() {
    let (url, _auth) = auth_over_http().await;
    let flags = ["--auth-url", &url, "--ports", "9000-9001"];
    let service = Service::start_with(&flags).await;
    let container = service.create(&json!({ "name": "a", "ingress": [] })).await;
    let path = format!("/compute/containers/{}/ingress", id_of(&container));
    let bad = [
        (22, 80),
        (0, 80),
        (-80, 80),
        (8999, 80),
        (9002, 80),
        (65_616, 80),
        (80, 0),
        (80, -1),
        (80, 65_536),
    ];
    for (port, target_port) in bad {
        let rule = json!({ "port": port, "target_port": target_port });
        let answer = service.api.post(&path, ALICE, &rule).await;
        answer.assert_error(400, "invalid_port");
        let body = json!({ "name": "b", "ingress": [rule] });
        let answer = service.api.post("/compute/containers", ALICE, &body).await;
        answer.assert_error(400, "invalid_port");
    }
    let twice = json!({ "port": 80, "target_port": 1 });
    let body = json!({ "name": "b", "ingress": [twice, twice] });
    let answer = service.api.post("/compute/containers", ALICE, &body).await;
    answer.assert_error(400, "invalid_port");
    for port in [9000, 9001, 80, 443] {
        let rule = json!({ "port": port, "target_port": 65_535 });
        assert_eq!(service.api.post(&path, ALICE, &rule).await.status, 201);
    }
    service.stop().await;
}
