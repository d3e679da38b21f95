//! WebSockets by Python's libraries, over HTTP/1.1 in clear and over TLS, and over HTTP/2.

use crate::support::{Gateway, Options, Table, python};

async fn stage() -> (Gateway, Table, python::Server) {
    let server = python::Server::start("clients/websocket_server.py", &["127.64.0.2"]).await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("one", 80, server.address);
    table.run("two", 443, server.address);
    (gateway, table, server)
}

/// S1, C16: everything the library does, in clear: sizes, fragments, compression, close codes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_pass_in_clear() {
    let (gateway, _table, _server) = stage().await;
    let address = gateway.addresses.http.to_string();
    let url = "ws://one.compute.localhost/chat?room=1";
    python::run("clients/websocket_client.py", &[url, &address]).await;
    gateway.stop().await;
}

/// C16: the same over TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_pass_over_tls() {
    let (gateway, mut table, server) = stage().await;
    table.run("one", 443, server.address);
    let address = gateway.addresses.https.to_string();
    let ca = gateway.ca().display().to_string();
    let url = "wss://one.compute.localhost/chat";
    python::run("clients/websocket_client.py", &[url, &address, &ca]).await;
    gateway.stop().await;
}

/// C17, C16: RFC 8441: several sockets and plain requests on one connection of HTTP/2, to an
/// upstream that speaks HTTP/1.1.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn websockets_pass_over_http2() {
    let (gateway, _table, _server) = stage().await;
    let port = gateway.addresses.https.port().to_string();
    let ca = gateway.ca().display().to_string();
    let host = "two.compute.localhost";
    python::run("clients/websocket_h2.py", &[host, &port, &ca]).await;
    gateway.stop().await;
}
