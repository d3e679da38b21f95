//! Upstreams of the tests: one that says what it saw, and one that writes what it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::body::Body;
use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{Query, Request};
use axum::http::{HeaderName, StatusCode};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A server of the test; ends with it.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    /// Connections accepted so far.
    pub(crate) connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    /// Answers with what it saw, and streams on demand. On `ip`, any port.
    pub(crate) async fn friendly(ip: &str) -> Self {
        let app = Router::new()
            .route("/ws", get(echo_frames))
            .route("/cookies", get(cookies))
            .route("/empty", any(|| async { StatusCode::NO_CONTENT }))
            .route("/download", get(download))
            .route("/upload", any(upload))
            .fallback(mirror);
        Self::run(ip, async move |listener| {
            axum::serve(listener, app).await.expect("a server");
        })
        .await
    }

    /// Gives each connection, with its number, to `serve`.
    pub(crate) async fn raw<F: Future<Output = ()> + Send + 'static>(
        ip: &str,
        serve: impl Fn(usize, TcpStream) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let number = count.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(number, stream));
            }
        });
        Self {
            address,
            connections,
            task,
        }
    }

    /// Reads a head, writes `answer`, closes.
    pub(crate) async fn blunt(ip: &str, answer: &'static str) -> Self {
        Self::raw(ip, async move |_, mut stream: TcpStream| {
            read_head(&mut stream).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        })
        .await
    }

    async fn run<F: Future<Output = ()> + Send + 'static>(
        ip: &str,
        serve: impl FnOnce(TcpListener) -> F,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).await.expect("a port");
        Self {
            address: listener.local_addr().expect("an address"),
            connections: Arc::default(),
            task: tokio::spawn(serve(listener)),
        }
    }
}

/// Reads up to the empty line; empty if the other side closed first.
pub(crate) async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return String::new(),
        }
    }
    String::from_utf8(head).expect("text")
}

/// Method, target and header fields as they arrived.
async fn mirror(request: Request) -> axum::Json<Value> {
    let fields: Vec<_> = request
        .headers()
        .iter()
        .map(|(name, value)| json!([name.as_str(), String::from_utf8_lossy(value.as_bytes())]))
        .collect();
    axum::Json(json!({
        "method": request.method().as_str(),
        "target": request.uri().to_string(),
        "fields": fields,
    }))
}

async fn cookies() -> impl IntoResponse {
    let cookie = HeaderName::from_static("set-cookie");
    (
        AppendHeaders([(cookie.clone(), "a=1"), (cookie, "b=2")]),
        "cookies",
    )
}

async fn echo_frames(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Text(_) | Message::Binary(_) = message
                && socket.send(message).await.is_err()
            {
                return;
            }
        }
    })
}

#[derive(serde::Deserialize)]
struct Size {
    mib: usize,
}

async fn download(Query(Size { mib }): Query<Size>) -> Body {
    let mebibyte = Bytes::from(vec![7; 1 << 20]);
    let chunks = stream::repeat(mebibyte)
        .take(mib)
        .map(Ok::<_, std::io::Error>);
    Body::from_stream(chunks)
}

async fn upload(request: Request) -> String {
    let mut chunks = request.into_body().into_data_stream();
    let mut total = 0;
    while let Some(Ok(chunk)) = chunks.next().await {
        total += chunk.len();
    }
    total.to_string()
}
