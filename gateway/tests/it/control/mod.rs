//! The control path: events, database, last good table, routes file, admin.

mod admin;
mod again;
mod digest;
mod dlq;
mod events;
mod history;
mod last_good;
mod rebuild;
mod replicas;
mod restored;
mod route_events;
mod routes_reload;
mod signatures;
mod snapshot;
mod starts;
mod store;
mod waiting;

use std::net::SocketAddr;

use async_nats::jetstream::message::PublishMessage;
use edd_proto::{compute, gateway};
use edd_route::RouteTable;
use prost::Message as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::Bus;

/// A request to the admin listener: status and body.
pub(crate) async fn request(admin: SocketAddr, method: &str, target: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(admin).await.expect("connected");
    let request = format!("{method} {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.expect("a status"), body.to_owned())
}

/// `GET` for JSON.
pub(crate) async fn get(admin: SocketAddr, target: &str) -> (u16, Value) {
    let (status, body) = request(admin, "GET", target).await;
    let json = serde_json::from_str(&body).unwrap_or_else(|_| panic!("no JSON: {body}"));
    (status, json)
}

/// `/readyz`: status code, `status`, `nats`, `database`.
pub(crate) async fn ready(admin: SocketAddr) -> (u16, String, String, String) {
    let (code, body) = get(admin, "/readyz").await;
    let text = |key: &str| body[key].as_str().unwrap_or_default().to_owned();
    (code, text("status"), text("nats"), text("database"))
}

/// Whether the container is there and runs at `address`.
fn runs_at(table: &RouteTable, id: &str, address: &str) -> bool {
    table
        .container(id)
        .and_then(|found| found.running.as_ref())
        .is_some_and(|run| run.address.to_string() == address)
}

/// Subjects and payloads of a stream, in order.
async fn messages(bus: &Bus, stream: &str) -> Vec<(String, Vec<u8>)> {
    let mut stream = bus.js.get_stream(stream).await.expect("a stream");
    let last = stream.info().await.expect("info").state.last_sequence;
    let mut all = Vec::new();
    for sequence in 1..=last {
        let message = stream.get_raw_message(sequence).await.expect("a message");
        all.push((message.subject.to_string(), message.payload.to_vec()));
    }
    all
}

/// What the gateway said about rules: created with its target or deleted, port.
pub(crate) async fn announced(bus: &Bus) -> Vec<(String, i32, Option<i32>)> {
    let mut all = Vec::new();
    for (subject, payload) in messages(bus, "GATEWAY").await {
        if !subject.starts_with("gateway.ingress.") {
            continue;
        }
        if subject.ends_with(".created") {
            let message = gateway::IngressRuleCreated::decode(&*payload).expect("a message");
            all.push((
                message.container_id,
                message.port,
                Some(message.target_port),
            ));
        } else {
            let message = gateway::IngressRuleDeleted::decode(&*payload).expect("a message");
            all.push((message.container_id, message.port, None));
        }
    }
    all
}

/// Publishes bytes on a subject and waits until the stream has them.
async fn publish_raw(bus: &Bus, subject: &str, payload: impl Into<Vec<u8>>) {
    let publish = PublishMessage::build().payload(payload.into().into());
    let ack = bus
        .js
        .send_publish(subject.to_owned(), publish)
        .await
        .expect("sent");
    ack.await.expect("stored");
}

/// The bytes of a started event.
fn started(id: &str, address: &str) -> Vec<u8> {
    compute::ContainerStarted {
        container_id: id.into(),
        external_ip: address.into(),
        ..Default::default()
    }
    .encode_to_vec()
}
