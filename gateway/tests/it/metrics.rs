//! The metric families of HTTP and TLS: they move, and nobody can make them grow without bound.

use std::fmt::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::client::{Greeting, SHORT, dial, request};
use crate::support::{Gateway, Options, Origin, Table, eventually, read_head};

async fn metrics(gateway: &Gateway) -> String {
    let mut stream = dial(gateway.admin).await;
    let ask = "GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The number behind a series of the prefix `edd_gateway_`; 0 if there is none.
async fn value(gateway: &Gateway, series: &str) -> f64 {
    let text = metrics(gateway).await;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("edd_gateway_")?.strip_prefix(series));
    line.map_or(0.0, |number| number.trim().parse().unwrap())
}

async fn becomes(gateway: &Gateway, series: &str, wanted: f64) {
    eventually(&format!("{series} {wanted}"), || async {
        value(gateway, series).await == wanted
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_family_of_http_and_tls_moves() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        while !read_head(&mut stream).await.is_empty() {
            let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let options = Options::default()
        .flag("--header-timeout", format!("{}ms", SHORT.as_millis()))
        .flag("--max-connections-per-ip", "3");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 443, origin.address);
    let host = "c1.compute.localhost";
    let https = gateway.addresses.https;

    let requests = r#"http_requests_total{route="container",method="GET",status="404"}"#;
    assert_eq!(value(&gateway, requests).await, 0.0);
    let mut stream = Greeting::anyone(host).dial(https).await.unwrap();
    becomes(&gateway, r#"connections{listener="https"}"#, 1.0).await;
    let answer = request(&mut stream, host).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    drop(stream);
    becomes(&gateway, requests, 1.0).await;
    becomes(
        &gateway,
        r#"http_request_duration_seconds_count{route="container"}"#,
        1.0,
    )
    .await;
    assert!(
        value(
            &gateway,
            r#"http_request_duration_seconds_sum{route="container"}"#
        )
        .await
            > 0.0
    );
    becomes(&gateway, r#"connections{listener="https"}"#, 0.0).await;
    becomes(&gateway, r#"upstream_connections{state="active"}"#, 0.0).await;
    becomes(&gateway, r#"upstream_connections{state="idle"}"#, 1.0).await;
    becomes(
        &gateway,
        r#"tls_handshakes_total{result="ok",version="1.3"}"#,
        1.0,
    )
    .await;

    // What is no TLS, what begins as TLS and stops, what is refused.
    let mut broken = dial(https).await;
    broken
        .write_all(b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00")
        .await
        .unwrap();
    becomes(
        &gateway,
        r#"tls_handshakes_total{result="failed",version="none"}"#,
        1.0,
    )
    .await;
    drop(broken);
    let mut half = dial(https).await;
    half.write_all(b"\x16\x03\x01\x02\x00").await.unwrap();
    becomes(
        &gateway,
        r#"tls_handshakes_total{result="timeout",version="none"}"#,
        1.0,
    )
    .await;
    drop(half);
    becomes(&gateway, r#"connections{listener="https"}"#, 0.0).await;
    let mut http = Vec::new();
    for _ in 0..3 {
        http.push(dial(gateway.addresses.http).await);
    }
    becomes(&gateway, r#"connections{listener="http"}"#, 3.0).await;
    let mut fourth = dial(gateway.addresses.http).await;
    assert!(matches!(fourth.read(&mut [0]).await, Ok(0) | Err(_)));
    becomes(
        &gateway,
        r#"connections_refused_total{reason="address_limit"}"#,
        1.0,
    )
    .await;
    drop(http);
    becomes(&gateway, r#"connections{listener="http"}"#, 0.0).await;

    let redirected = request(
        &mut dial(gateway.addresses.http).await,
        "c1.compute.localhost",
    )
    .await;
    assert!(redirected.starts_with("HTTP/1.1 308 "), "{redirected}");
    becomes(
        &gateway,
        r#"http_requests_total{route="none",method="GET",status="308"}"#,
        1.0,
    )
    .await;
    assert!(value(&gateway, r#"route_table_revision"#).await > 0.0);
    becomes(&gateway, r#"route_table_entries{kind="containers"}"#, 1.0).await;
    assert_eq!(value(&gateway, "access_log_dropped_total").await, 0.0);
    gateway.stop().await;
}

/// Contract, section 7: label values are bounded whatever clients send.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_odd_requests_leave_few_series() {
    // The upstream answers each request with the status that its path asks for.
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        loop {
            let head = read_head(&mut stream).await;
            let Some(status) = head.split("/s").nth(1).and_then(|rest| rest.get(..3)) else {
                return;
            };
            let answer = format!("HTTP/1.1 {status} Odd\r\nContent-Length: 0\r\n\r\n");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let http = gateway.addresses.http;
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..4_u32 {
        tasks.spawn(async move {
            let mut random = 0x9e37_79b9_u32.wrapping_mul(task + 1);
            let mut next = move |below: u32| {
                random ^= random << 13;
                random ^= random >> 17;
                random ^= random << 5;
                random % below
            };
            for _ in 0..25 {
                let mut stream = dial(http).await;
                let mut asked = String::new();
                for n in 0..100 {
                    let method = match next(3) {
                        0 => ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"][next(5) as usize]
                            .to_owned(),
                        _ => format!("M{:X}", next(1 << 20)),
                    };
                    let host = match next(2) {
                        0 => "c1.compute.localhost".to_owned(),
                        _ => format!("h{}.example", next(1 << 20)),
                    };
                    let status = 200 + next(400);
                    let path = next(1 << 20);
                    let last = if n == 99 { "Connection: close\r\n" } else { "" };
                    write!(
                        asked,
                        "{method} /s{status}/{path} HTTP/1.1\r\nHost: {host}\r\n{last}\r\n"
                    )
                    .unwrap();
                }
                let (mut read, mut write) = stream.split();
                let mut answers = Vec::new();
                let (sent, heard) = tokio::join!(
                    write.write_all(asked.as_bytes()),
                    read.read_to_end(&mut answers)
                );
                sent.unwrap();
                heard.unwrap();
                let answers = String::from_utf8_lossy(&answers);
                assert_eq!(answers.matches("HTTP/1.1 ").count(), 100, "{answers}");
            }
        });
    }
    tasks.join_all().await;
    // The last ones are counted once they are over.
    let all = || async {
        let text = metrics(&gateway).await;
        let lines = text.lines();
        let counts = lines.filter(|line| line.starts_with("edd_gateway_http_requests_total{"));
        let counted: u64 = counts
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum();
        counted >= 10_000
    };
    eventually("all are counted", all).await;
    let text = metrics(&gateway).await;
    let of = |family: &str| {
        let prefix = format!("edd_gateway_{family}{{");
        text.lines()
            .filter(|line| line.starts_with(&prefix))
            .collect::<Vec<_>>()
    };
    let requests = of("http_requests_total");
    let counted: u64 = requests
        .iter()
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum();
    assert_eq!(counted, 10_000);
    // Two routes (`container`, `none`), six methods, some 70 statuses of the upstream's choice.
    assert!(requests.len() < 500, "{} series", requests.len());
    assert!(of("http_request_duration_seconds_count").len() <= 2);
    assert!(
        text.lines().count() < 1000,
        "{} lines",
        text.lines().count()
    );
    gateway.stop().await;
}
