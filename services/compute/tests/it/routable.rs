//! `POST /compute/containers?wait=routable`: the answer means that it works now.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use axum::{Router, extract::RawQuery, http::StatusCode, routing::get};
use edd_events::testing::NatsServer;
use serde_json::json;
use tokio::{net::TcpListener, sync::Mutex};

use crate::support::{ALICE, BOB, Service, auth_on, make_key};

/// What stands for a gateway's admin endpoint: the answer it gives, the questions it got.
struct Gateway {
    addr: SocketAddr,
    status: Arc<AtomicU16>,
    asked: Arc<Mutex<Vec<String>>>,
}

async fn service(nats: &NatsServer, flags: &[&str]) -> Service {
    let url = nats.url();
    let service = Service::start_with(&[&["--nats-url", &url], flags].concat()).await;
    service.connected().await;
    service
}

impl Gateway {
    async fn start() -> Self {
        let status = Arc::new(AtomicU16::new(200));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (answer, questions) = (Arc::clone(&status), Arc::clone(&asked));
        let wait = move |RawQuery(query): RawQuery| async move {
            questions.lock().await.push(query.unwrap_or_default());
            StatusCode::from_u16(answer.load(Ordering::Relaxed)).unwrap()
        };
        let router = Router::new().route("/api/v1/wait", get(wait));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self {
            addr,
            status,
            asked,
        }
    }
}

#[tokio::test]
async fn the_answer_waits_until_every_gateway_serves_the_container() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let (one, other) = (Gateway::start().await, Gateway::start().await);
    let gateways = format!("http://{},http://{}", one.addr, other.addr);
    let service = service(&nats, &["--gateways", &gateways]).await;
    let path = "/compute/containers?wait=routable";
    let answer = service.api.post(path, ALICE, &json!({"name": "a"})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.body["routable"], true, "{answer:?}");
    assert_eq!(answer.body["status"], "running");
    let (id, ip) = (&answer.body["id"], &answer.body["external_ip"]);
    let (id, ip) = (id.as_str().unwrap(), ip.as_str().unwrap());
    let expected = format!("container={id}&address={ip}&ports=443&timeout=");
    for gateway in [&one, &other] {
        let asked = gateway.asked.lock().await;
        assert!(
            asked.len() == 1 && asked[0].starts_with(&expected),
            "{asked:?}"
        );
    }

    let with_ssh = json!({"name": "s", "ssh_enabled": true});
    let answer = service.api.post(path, ALICE, &with_ssh).await;
    assert_eq!(answer.body["routable"], true, "{answer:?}");
    let asked = one.asked.lock().await.pop().unwrap();
    assert!(asked.contains("&ports=443&ssh=true&timeout="), "{asked}");

    // Her keys, and nobody else's.
    let mut keys = Vec::new();
    for (owner, name) in [(ALICE, "a"), (BOB, "b"), (ALICE, "c")] {
        let line = make_key(&service.folder.path().join(name));
        let body = json!({"name": name, "public_key": line});
        let answer = service.api.post("/compute/ssh-keys", owner, &body).await;
        keys.push(answer.body["id"].as_i64().expect("an id"));
    }
    let answer = service.api.post(path, ALICE, &with_ssh).await;
    assert_eq!(answer.body["routable"], true, "{answer:?}");
    let asked = one.asked.lock().await.pop().unwrap();
    let expected = format!("&ssh=true&keys={},{}&timeout=", keys[0], keys[2]);
    assert!(asked.contains(&expected), "{asked}");

    other.status.store(504, Ordering::Relaxed);
    let answer = service.api.post(path, ALICE, &json!({"name": "b"})).await;
    assert_eq!(answer.status, 201, "it exists: {answer:?}");
    assert_eq!(answer.body["routable"], false);
    let answer = service
        .api
        .post("/compute/containers", ALICE, &json!({"name": "c"}))
        .await;
    assert!(answer.body.get("routable").is_none(), "{answer:?}");
    service.stop().await;
}

#[tokio::test]
async fn a_wait_that_cannot_be_kept_creates_nothing() {
    let nats = NatsServer::start().await;
    let _auth = auth_on(&nats).await;
    let gateway = Gateway::start().await;
    let flag = format!("http://{}", gateway.addr);
    for (flags, query) in [
        (&[][..], "wait=routable"),
        (&["--gateways", &flag][..], "wait=forever"),
        (&["--gateways", &flag][..], "wait=routable&timeout=soon"),
    ] {
        let service = service(&nats, flags).await;
        let path = format!("/compute/containers?{query}");
        let answer = service.api.post(&path, ALICE, &json!({"name": "a"})).await;
        answer.assert_error(400, "invalid_value");
        let all = service.api.get("/compute/containers", ALICE).await;
        assert_eq!(all.body["containers"].as_array().map(Vec::len), Some(0));
        service.stop().await;
    }
}
