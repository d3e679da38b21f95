//! Form and bounds of REST answers.

use std::time::Duration;

use axum::{
    Router,
    routing::{get, post},
};
use edd_daemon::{
    api::{ApiError, ApiLimits, ApiMetrics, Bearer, Json, Path, RequestId, serve_api},
    server::Limits,
};
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::support::{Server, exchange, read_to_end, start};

#[derive(Deserialize)]
struct Body {
    count: u32,
}

async fn api() -> (Server, Registry) {
    let router = Router::new()
        .route(
            "/count",
            post(async |Json(body): Json<Body>| body.count.to_string()),
        )
        .route("/id", get(async |RequestId(id): RequestId| id))
        .route(
            "/item/{id}",
            get(async |Path(id): Path<i64>| id.to_string()),
        )
        .route("/panic", get(async || -> String { panic!("a bug") }))
        .route("/token", get(async |Bearer(token): Bearer| token))
        .route("/limited", get(async || ApiError::too_many_requests(7)));
    let mut registry = Registry::default();
    let metrics = ApiMetrics::register(&mut registry);
    let limits = ApiLimits {
        body_bytes_max: 100,
        request_timeout: Duration::from_secs(2),
    };
    (
        start(serve_api(router, metrics, limits), Limits::default()).await,
        registry,
    )
}

/// Status, head and body of the answer.
async fn call(server: &Server, head: &str, body: &str) -> (u16, String, String) {
    let length = body.len();
    let request =
        format!("{head}\r\nHost: a\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}");
    split(&exchange(server.addr, &request).await)
}

fn split(answer: &str) -> (u16, String, String) {
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    (
        head[9..12].parse().unwrap(),
        head.to_owned(),
        body.to_owned(),
    )
}

#[track_caller]
fn assert_error(answer: &(u16, String, String), status: u16, code: &str) {
    let (got, head, body) = answer;
    assert_eq!(*got, status, "{answer:?}");
    let body: serde_json::Value = serde_json::from_str(body).expect("a JSON body");
    assert_eq!(body["error"]["code"], code, "{answer:?}");
    assert!(
        !body["error"]["message"].as_str().unwrap().is_empty(),
        "{answer:?}"
    );
    let id = body["request_id"].as_str().unwrap();
    assert!(head.contains(&format!("x-request-id: {id}")), "{answer:?}");
}

#[tokio::test]
async fn bad_bodies_are_refused_in_the_error_form() {
    let (server, _) = api().await;
    let json = "POST /count HTTP/1.1\r\nContent-Type: application/json";
    assert_eq!(call(&server, json, r#"{"count": 3}"#).await.2, "3");
    for body in ["", "{", "\u{0}", "{\"count\": 1} x"] {
        assert_error(&call(&server, json, body).await, 400, "invalid_json");
    }
    for body in [
        "{}",
        "null",
        "3",
        r#"{"count":"3"}"#,
        r#"{"count":-1}"#,
        r#"{"count":1e99}"#,
    ] {
        assert_error(&call(&server, json, body).await, 400, "invalid_body");
    }
    let large = format!("{{\"count\": 3{}}}", " ".repeat(100));
    assert_error(&call(&server, json, &large).await, 413, "body_too_large");
    let plain = call(&server, "POST /count HTTP/1.1", r#"{"count": 3}"#).await;
    assert_error(&plain, 415, "unsupported_media_type");
}

#[tokio::test]
async fn unknown_paths_methods_and_ids_are_errors_of_the_same_form() {
    let (server, _) = api().await;
    assert_error(
        &call(&server, "GET /nothing HTTP/1.1", "").await,
        404,
        "not_found",
    );
    assert_error(
        &call(&server, "GET /item/x HTTP/1.1", "").await,
        404,
        "not_found",
    );
    assert_error(
        &call(&server, "GET /item/%ff HTTP/1.1", "").await,
        404,
        "not_found",
    );
    let delete = call(&server, "DELETE /count HTTP/1.1", "").await;
    assert_error(&delete, 405, "method_not_allowed");
    assert!(delete.1.contains("allow: POST"), "{delete:?}");
    let limited = call(&server, "GET /limited HTTP/1.1", "").await;
    assert_error(&limited, 429, "too_many_requests");
    assert!(limited.1.contains("retry-after: 7"), "{limited:?}");
}

#[tokio::test]
async fn tokens_are_taken_from_one_plain_header_only() {
    let (server, _) = api().await;
    let get = "GET /token HTTP/1.1\r\nAuthorization: ";
    for header in ["Bearer abc", "bearer abc", "BEARER  abc "] {
        assert_eq!(
            call(&server, &format!("{get}{header}"), "").await.2,
            "abc",
            "{header}"
        );
    }
    let twice = "Bearer abc\r\nAuthorization: Bearer abd".to_owned();
    let long = format!("Bearer {}", "x".repeat(513));
    for header in [
        "",
        "abc",
        "Bearer",
        "Bearer ",
        "Basic abc",
        "Bearer a b",
        "Bearer é",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([twice, long])
    {
        let answer = call(&server, &format!("{get}{header}"), "").await;
        assert_error(&answer, 401, "unauthorized");
        assert!(answer.1.contains("www-authenticate: Bearer"), "{answer:?}");
    }
}

#[tokio::test]
async fn request_ids_are_kept_or_replaced() {
    let (server, _) = api().await;
    let (_, head, body) = call(&server, "GET /id HTTP/1.1\r\nX-Request-ID: mine-1", "").await;
    assert_eq!(body, "mine-1");
    assert!(head.contains("x-request-id: mine-1"));
    for bad in ["a b", "<script>", "a\r\nX-Request-ID: b"] {
        let (_, _, id) = call(
            &server,
            &format!("GET /id HTTP/1.1\r\nX-Request-ID: {bad}"),
            "",
        )
        .await;
        assert_eq!(id.len(), 32, "{bad}: {id}");
    }
}

#[tokio::test]
async fn a_panic_costs_its_own_request() {
    let (server, _) = api().await;
    assert_error(
        &call(&server, "GET /panic HTTP/1.1", "").await,
        500,
        "internal",
    );
    assert_eq!(call(&server, "GET /item/4 HTTP/1.1", "").await.2, "4");
}

#[tokio::test]
async fn a_stalled_body_ends_by_timeout() {
    let (server, _) = api().await;
    let mut stream = TcpStream::connect(server.addr).await.unwrap();
    let head = "POST /count HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\
                Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{";
    stream.write_all(head.as_bytes()).await.unwrap();
    assert_error(&split(&read_to_end(&mut stream).await), 408, "timeout");
}

#[tokio::test]
async fn label_values_stay_bounded() {
    let (server, registry) = api().await;
    for n in 0..3 {
        call(&server, &format!("GET /item/{n} HTTP/1.1"), "").await;
        call(&server, &format!("BREW{n} /coffee/{n} HTTP/1.1"), "").await;
    }
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    assert!(
        text.contains(r#"{route="/item/{id}",method="GET",status="200"} 3"#),
        "{text}"
    );
    assert!(
        text.contains(r#"{route="none",method="other",status="404"} 3"#),
        "{text}"
    );
    assert!(!text.contains("coffee") && !text.contains("BREW"), "{text}");
}
