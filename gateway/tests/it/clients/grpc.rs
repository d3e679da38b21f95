//! gRPC by Google's own library, client and server, to an `h2c://` target.

use crate::support::ask::{H2, Question, listen, unwatched};
use crate::support::client::Greeting;
use crate::support::{Gateway, Options, python};

async fn stage() -> (Gateway, python::Server) {
    let server = python::Server::start("clients/grpc_server.py", &["127.0.0.1"]).await;
    let routes = format!(
        "routes:\n- {{host: grpc.test, target: 'h2c://{}'}}\n\
         - {{host: refused.test, target: 'h2c://127.0.0.1:1'}}\n\
         - {{host: refused1.test, target: 'http://127.0.0.1:1'}}\n\
         - {{host: denied.test, target: 'h2c://127.0.0.1:1', deny: [127.0.0.0/8]}}\n\
         - {{host: none.test, path: /elsewhere, target: 'h2c://127.0.0.1:1'}}\n",
        server.address
    );
    (Gateway::start(Options::routes(routes)).await, server)
}

async fn scenario(name: &str) {
    let (gateway, _server) = stage().await;
    let port = gateway.addresses.https.port().to_string();
    let ca = gateway.ca().display().to_string();
    python::run("clients/grpc_client.py", &[&port, &ca, name]).await;
    gateway.stop().await;
}

/// C17: unary calls, one and many at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unary_calls_pass() {
    scenario("unary").await;
}

/// C17: messages larger than every window.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_messages_pass() {
    scenario("large").await;
}

/// C17: streams of the server, of the client, and of both with each message answered in turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_pass_message_by_message() {
    scenario("streams").await;
}

/// C17: every status with its details and trailers, with and without messages before it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_status_passes() {
    scenario("statuses").await;
}

/// C17: metadata at the beginning and at the end, binary too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_passes_both_ways() {
    scenario("metadata").await;
}

/// C17: a deadline or a cancellation ends the call at the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadlines_and_cancellations_reach_the_server() {
    scenario("ends").await;
}

/// What the gateway answers itself is a gRPC status for the library.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateways_own_answers_are_statuses() {
    scenario("nobody").await;
}

/// The same on the wire: a status in the head, an HTTP status of 200, no body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateways_own_answers_are_trailers_only() {
    let (gateway, _server) = stage().await;
    for (host, status) in [
        ("refused.test", "14"),
        ("refused1.test", "14"),
        ("denied.test", "7"),
        ("none.test", "12"),
    ] {
        let greeting = Greeting {
            name: host,
            ca: Some(&gateway.ca()),
            alpn: &[b"h2"],
        };
        let tls = greeting.dial(gateway.addresses.https).await.unwrap();
        let mut h2 = H2::on(tls).await;
        let question = Question {
            method: "POST",
            fields: &[
                ("content-type", "application/grpc+proto"),
                ("te", "trailers"),
            ],
            ..Question::get(host, "/test.Everything/Echo")
        };
        let mut head = H2::head(&question);
        *head.uri_mut() = format!("https://{host}{}", question.path).parse().unwrap();
        let (answer, mut stream) = h2.send.send_request(head, false).unwrap();
        stream.send_data(vec![0; 5].into(), true).unwrap();
        let heard = listen(answer, &unwatched()).await;
        assert_eq!(heard.status, 200, "{host}: {heard:?}");
        let grpc_status = heard.field("grpc-status");
        assert_eq!(grpc_status, Some(status), "{host}: {heard:?}");
        let kind = heard.field("content-type").unwrap_or_default();
        assert!(kind.starts_with("application/grpc"), "{host}: {heard:?}");
        assert!(heard.body.is_empty(), "{host}: {heard:?}");
        assert!(heard.field("x-request-id").is_some(), "{host}: {heard:?}");
    }
    gateway.stop().await;
}
