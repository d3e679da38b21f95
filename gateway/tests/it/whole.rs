//! The main job in one go: routes, containers and their end, with real curl.

use std::path::Path;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::support::{Bus, Gateway, Options, eventually};

/// An upstream that answers every request with `text` and keeps the connection.
async fn origin(address: &str, text: &'static str) -> std::net::SocketAddr {
    let listener = TcpListener::bind(address).await.expect("an address");
    let bound = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = vec![0; 16 * 1024];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    let length = text.len();
                    let answer =
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{text}");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    bound
}

/// `curl` against the gateway: status and body.
async fn curl(ca: &Path, args: &[&str], url: &str) -> (String, String) {
    let output = Command::new("curl")
        .args([
            "--silent",
            "--show-error",
            "--max-time",
            "10",
            "--write-out",
            "\n%{http_version} %{http_code}",
        ])
        .arg("--cacert")
        .arg(ca)
        .args(args)
        .arg(url)
        .output()
        .await
        .expect("curl starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').expect("a status line");
    assert!(
        output.status.success(),
        "{url}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    (status.to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_route_is_served_by_both_protocols_and_changed_by_its_file() {
    let one = origin("127.0.0.1:0", "one").await;
    let two = origin("127.0.0.1:0", "two").await;
    let route = |to| format!("routes:\n- host: site.localhost\n  target: {to}\n");
    let gateway = Gateway::start(Options::routes(route(one))).await;
    let url = format!(
        "https://site.localhost:{}/x",
        gateway.addresses.https.port()
    );
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let (status, body) = curl(&gateway.ca(), &[flag], &url).await;
        assert_eq!(
            (status.as_str(), body.as_str()),
            (format!("{version} 200").as_str(), "one")
        );
    }
    let plain = format!(
        "http://site.localhost:{}/x?q",
        gateway.addresses.http.port()
    );
    let (status, _) = curl(&gateway.ca(), &[], &plain).await;
    assert_eq!(status, "1.1 308");
    let unknown = format!(
        "https://nobody.compute.localhost:{}/",
        gateway.addresses.https.port()
    );
    assert_eq!(
        curl(&gateway.ca(), &["--http1.1"], &unknown).await.0,
        "1.1 404"
    );

    crate::support::replace_file(&gateway.path("routes.yaml"), &route(two));
    eventually("the new target", || async {
        curl(&gateway.ca(), &[], &url).await.1 == "two"
    })
    .await;
    crate::support::replace_file(&gateway.path("routes.yaml"), "routes: [{host: }]\n");
    let revision = gateway.table().revision;
    eventually("the refusal", || async {
        let text = metrics(gateway.admin).await;
        text.contains("edd_gateway_reload_failures_total{kind=\"routes\"} 1")
    })
    .await;
    assert_eq!(curl(&gateway.ca(), &[], &url).await.1, "two");
    assert_eq!(gateway.table().revision, revision);
    gateway.stop().await;
}

/// A scrape of the admin listener.
async fn metrics(admin: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(admin).await.expect("connected");
    let request = b"GET /metrics HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_reachable_by_its_events_and_gone_with_them() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    origin("127.64.1.1:8080", "page").await;
    let port = gateway.port(0).port();
    let published = Instant::now();
    bus.container("whole1", 1, "127.64.1.1", &[(443, 8080), (port, 8080)])
        .await;
    gateway
        .until("the rule", |table| table.port_has_rules(port))
        .await;
    println!(
        "four events in effect {:?} after the first",
        published.elapsed()
    );
    let url = format!(
        "https://whole1.compute.localhost:{}/",
        gateway.addresses.https.port()
    );
    let (status, body) = curl(&gateway.ca(), &["--http2"], &url).await;
    assert_eq!((status.as_str(), body.as_str()), ("2 200", "page"));
    let by_port = format!("http://whole1.compute.localhost:{port}/");
    assert_eq!(curl(&gateway.ca(), &[], &by_port).await.1, "page");

    bus.stopped("whole1").await;
    gateway
        .until("the stop", |table| {
            table
                .container("whole1")
                .is_some_and(|c| c.running.is_none())
        })
        .await;
    assert_eq!(curl(&gateway.ca(), &[], &url).await.0, "2 404");
    bus.deleted("whole1", 1).await;
    gateway
        .until("the end", |table| table.container("whole1").is_none())
        .await;
    assert!(!gateway.table().port_has_rules(port));
    gateway.stop().await;
}
