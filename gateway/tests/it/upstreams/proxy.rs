//! The PROXY protocol towards upstreams: each connection is one client's.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::caller::Caller;
use crate::support::{Gateway, Options, Origin, eventually, read_head};

/// Reads a version 2 header; its address part, or what came instead.
async fn read_header(stream: &mut TcpStream) -> Result<Vec<u8>, Vec<u8>> {
    let mut fixed = [0; 16];
    if stream.read_exact(&mut fixed).await.is_err() || !fixed.starts_with(b"\r\n\r\n\0\r\nQUIT\n") {
        return Err(fixed.to_vec());
    }
    let mut rest = vec![0; usize::from(u16::from_be_bytes([fixed[14], fixed[15]]))];
    stream
        .read_exact(&mut rest)
        .await
        .map_err(|_| fixed.to_vec())?;
    let mut header = fixed[12..14].to_vec();
    header.extend(rest);
    Ok(header)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstream_is_told_the_client_and_connections_are_not_shared() {
    let headers = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&headers);
    let origin = Origin::raw("127.0.0.1", move |number, mut stream: TcpStream| {
        let seen = Arc::clone(&seen);
        async move {
            let header = read_header(&mut stream).await.expect("a header");
            seen.lock().unwrap().push(header);
            while !read_head(&mut stream).await.is_empty() {
                let text = number.to_string();
                let length = text.len();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}");
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- host: a.test\n  target: '{}'\n  proxy_protocol: v2\n  \
         health: {{path: /, interval: 1h}}\n",
        origin.address
    )))
    .await;
    let local = [0x20, 0];
    eventually("the check's header", || async {
        headers
            .lock()
            .unwrap()
            .first()
            .is_some_and(|header| *header == local)
    })
    .await;
    let (mut one, mut two) = (
        Caller::new(&gateway, "a.test"),
        Caller::new(&gateway, "a.test"),
    );
    let (first, second) = (one.get("/").await.body, two.get("/").await.body);
    assert_ne!(first, second, "each client has its own");
    assert_eq!(one.get("/").await.body, first, "and keeps it");
    assert_eq!(two.get("/").await.body, second);
    let headers = headers.lock().unwrap().clone();
    let port = gateway.addresses.https.port().to_be_bytes();
    let mut clients = Vec::new();
    for header in &headers[1..] {
        assert_eq!(header[..2], [0x21, 0x11]);
        assert_eq!(header[2..10], [127, 0, 0, 1, 127, 0, 0, 1]);
        assert_eq!(header[12..], port);
        clients.push(header[10..12].to_vec());
    }
    clients.dedup();
    assert_eq!(clients.len(), 2, "{headers:?}");
    gateway.stop().await;
}
