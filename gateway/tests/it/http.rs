//! Requests and answers: routing, statuses, framing, reuse of connections. Real curl and raw sockets.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{DEADLINE, Gateway, Options, Origin, REVOCATION, Table, read_head};

/// Sends `request` to the HTTP listener as it is; everything that comes back until the end.
async fn raw(gateway: &Gateway, request: &str) -> String {
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    let ended = tokio::time::timeout(DEADLINE, read).await;
    ended.expect("the connection is closed").unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_route_answers_over_https_by_http1_and_http2() {
    let origin = Origin::friendly("127.0.0.1").await;
    let target = origin.address;
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- {{host: a.test, target: '{target}'}}\n\
         - {{host: a.test, path: /strip, target: '{target}', strip_prefix: true}}\n"
    )))
    .await;
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let got = gateway.https("a.test", "/x%2Fy?q=1", &[flag]).await;
        assert_eq!((got.status, got.version.as_str()), (200, version));
        assert_eq!(got.json()["target"], "/x%2Fy?q=1");
        assert!(got.field("x-request-id").is_some());

        let stripped = gateway.https("a.test", "/strip/x?q=1", &[flag]).await;
        assert_eq!(stripped.json()["target"], "/x?q=1");
        let nothing_left = gateway.https("a.test", "/strip?q", &[flag]).await;
        assert_eq!(nothing_left.json()["target"], "/?q");

        let cookies = gateway.https("a.test", "/cookies", &[flag]).await;
        assert_eq!(cookies.all("set-cookie"), ["a=1", "b=2"]);

        let posted = gateway
            .https("a.test", "/upload", &[flag, "--data", "12345"])
            .await;
        assert_eq!(posted.text(), "5");
        let chunked = ["--header", "transfer-encoding: chunked", "--data", "123456"];
        if flag == "--http1.1" {
            let posted = gateway.https("a.test", "/upload", &chunked).await;
            assert_eq!(posted.text(), "6");
        }
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_gateway_answers_what_no_upstream_can() {
    let broken = Origin::blunt("127.0.0.1", "").await;
    let garbled = Origin::blunt("127.0.0.1", "SSH-2.0-x\r\n\r\n").await;
    let mute = Origin::raw("127.0.0.1", async |_, mut stream: TcpStream| {
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = closed.local_addr().unwrap();
    drop(closed);
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- {{host: a.test, path: /broken, target: '{}'}}\n\
         - {{host: a.test, path: /garbled, target: '{}'}}\n\
         - {{host: a.test, path: /mute, target: '{}', timeout: 300ms}}\n\
         - {{host: a.test, path: /refused, target: '{refused}'}}\n\
         - {{host: a.test, path: /nowhere, target: 'nowhere.invalid:80'}}\n\
         - {{host: a.test, path: /denied, target: '{refused}', deny: [127.0.0.0/8]}}\n",
        broken.address, garbled.address, mute.address
    )))
    .await;
    for (path, status) in [
        ("/broken", 502),
        ("/garbled", 502),
        ("/mute", 504),
        ("/refused", 502),
        ("/nowhere", 502),
        ("/denied", 403),
        ("/none", 404),
        ("/refused/../x", 400),
    ] {
        for flag in ["--http1.1", "--http2"] {
            let got = gateway.https("a.test", path, &[flag]).await;
            assert_eq!(got.status, status, "{path} {flag}");
            let id = got.field("x-request-id").expect("an id").to_owned();
            assert!(got.text().starts_with(&status.to_string()), "{path}");
            let json = ["--header", "accept: application/json", flag];
            let got = gateway.https("a.test", path, &json).await;
            assert_eq!(got.field("content-type"), Some("application/json"));
            let body = got.json();
            assert_eq!(body["request_id"].as_str(), got.field("x-request-id"));
            assert_ne!(body["request_id"], id);
        }
    }
    let unknown = gateway.https("none.compute.localhost", "/", &[]).await;
    assert_eq!(unknown.status, 404);
    let elsewhere = gateway
        .https("a.test", "/", &["--header", "host: b.test"])
        .await;
    assert_eq!(elsewhere.status, 421);
    let head = gateway.https("a.test", "/none", &["--head"]).await;
    assert_eq!((head.exit, head.status), (0, 404));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_leads_back_to_the_gateway_is_a_502() {
    let gateway = Gateway::start(Options::routes("routes: []\n")).await;
    let mut table = Table::of(&gateway);
    table.run("loop", 80, gateway.addresses.http);
    let got = gateway.http("loop.compute.localhost", "/", &[]).await;
    assert_eq!(got.status, 502);
    gateway.stop().await;
}

/// C19: redirects hung on the number that the listener was bound to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_http_port_redirects_to_the_public_https_port() {
    let routes = "routes:\n- {host: a.test, target: '127.0.0.1:1'}\n";
    let options = Options::routes(routes).flag("--public-https-port", "8443");
    let gateway = Gateway::start(options).await;
    let got = gateway.http("a.test", "/x%20y?q=%2F", &[]).await;
    assert_eq!(got.status, 308);
    assert_eq!(
        got.field("location"),
        Some("https://a.test:8443/x%20y?q=%2F")
    );
    assert_eq!(gateway.http("b.test", "/", &[]).await.status, 404);
    gateway.stop().await;

    let gateway = Gateway::start(Options::routes(routes)).await;
    let got = gateway.http("A.Test.", "/", &[]).await;
    assert_eq!(got.field("location"), Some("https://a.test/"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_heads_are_answered_with_400_and_the_connection_closes() {
    let gateway = Gateway::start(Options::default()).await;
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\nHost: a.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a.test\r\n\r\n",
        "GET /a/../b HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "GET /a%00 HTTP/1.1\r\nHost: a.test\r\n\r\n",
        "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
    ] {
        let answer = raw(&gateway, head).await;
        assert!(
            answer.contains(" 400 Bad Request\r\n"),
            "{head:?}: {answer:?}"
        );
        assert!(answer.contains("\r\nx-request-id: "), "{answer:?}");
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_without_a_body_have_none() {
    let with_length = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n";
    let not_modified = "HTTP/1.1 304 Not Modified\r\netag: \"1\"\r\ncontent-length: 5\r\n\r\n";
    let head_only = Origin::blunt("127.64.0.2", with_length).await;
    let unchanged = Origin::blunt("127.64.0.2", not_modified).await;
    let friendly = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("head", 80, head_only.address);
    table.run("same", 80, unchanged.address);
    table.run("nice", 80, friendly.address);

    let got = gateway
        .http("head.compute.localhost", "/", &["--head"])
        .await;
    assert_eq!((got.exit, got.status), (0, 200));
    assert_eq!(got.field("content-length"), Some("5"));
    let got = gateway.http("same.compute.localhost", "/", &[]).await;
    assert_eq!((got.exit, got.status), (0, 304));
    assert_eq!(got.field("etag"), Some("\"1\""));
    let got = gateway.http("nice.compute.localhost", "/empty", &[]).await;
    assert_eq!((got.exit, got.status), (0, 204));
    assert_eq!(got.field("content-length"), None);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_1_0_client_gets_its_body_up_to_the_close() {
    let chunked = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let origin = Origin::blunt("127.64.0.2", chunked).await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let request = "GET / HTTP/1.0\r\nHost: c1.compute.localhost\r\n\r\n";
    let answer = raw(&gateway, request).await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer:?}");
    assert!(answer.ends_with("\r\n\r\nabc"), "{answer:?}");
    gateway.stop().await;
}

/// Answers the first request of each connection, and the second only with a close.
async fn forgetful() -> Origin {
    Origin::raw("127.64.0.2", async |number, mut stream: TcpStream| {
        read_head(&mut stream).await;
        let body = number.to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        read_head(&mut stream).await;
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_reused_connection_costs_a_safe_request_nothing() {
    let origin = forgetful().await;
    let options = Options::default().flag("--workers", "1");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let host = "c1.compute.localhost";
    assert_eq!(gateway.http(host, "/", &[]).await.text(), "0");
    let again = gateway.http(host, "/", &[]).await;
    assert_eq!((again.status, again.text().as_str()), (200, "1"));
    // A request that may not be repeated fails honestly.
    let posted = gateway.http(host, "/", &["--data", "x"]).await;
    assert_eq!(posted.status, 502);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 2);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_a_reused_connection_is_not_asked_for_again() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "what?\r\n\r\n",
        ] {
            read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let options = Options::default().flag("--workers", "1");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let host = "c1.compute.localhost";
    assert_eq!(gateway.http(host, "/", &[]).await.status, 200);
    assert_eq!(gateway.http(host, "/", &[]).await.status, 502);
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upstream_connections_are_reused_while_the_container_runs_and_never_after() {
    let origin = Origin::raw("127.64.0.2", async |number, mut stream: TcpStream| {
        while !read_head(&mut stream).await.is_empty() {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n{number}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let options = Options::default().flag("--workers", "1");
    let gateway = Gateway::start(options).await;
    let mut table = Table::of(&gateway);
    let ask = async || gateway.http("c1.compute.localhost", "/", &[]).await.text();
    table.run("c1", 80, origin.address);
    assert_eq!(ask().await, "0");
    assert_eq!(ask().await, "0");
    // Another start at the same address is another container for all we know.
    table.remove("c1");
    table.run("c1", 80, origin.address);
    assert_eq!(ask().await, "1");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_that_does_not_come_in_time_ends_the_connection() {
    let options = Options::default()
        .flag("--header-timeout", "800ms")
        .flag("--idle-timeout", "2s");
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let begun = std::time::Instant::now();
    raw(&gateway, "GET / HTTP/1.1\r\nHost: ").await;
    assert!(begun.elapsed() >= Duration::from_millis(700));
    // After an answer the idle timeout counts.
    let begun = std::time::Instant::now();
    raw(
        &gateway,
        "GET / HTTP/1.1\r\nHost: c1.compute.localhost\r\n\r\n",
    )
    .await;
    assert!(begun.elapsed() >= Duration::from_millis(1900));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_body_that_stalls_is_a_408() {
    let origin = Origin::friendly("127.64.0.2").await;
    let options = Options::default().flag("--body-timeout", "300ms");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let half =
        "POST /upload HTTP/1.1\r\nHost: c1.compute.localhost\r\nContent-Length: 10\r\n\r\nabc";
    let answer = raw(&gateway, half).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_asked_for_only_where_it_has_somewhere_to_go() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let ask = |host: &str| {
        format!(
            "POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Length: 3\r\n\
             Expect: 100-continue\r\nConnection: close\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let known = ask("c1.compute.localhost");
    stream.write_all(known.as_bytes()).await.unwrap();
    let head = tokio::time::timeout(DEADLINE, read_head(&mut stream)).await;
    assert!(head.unwrap().starts_with("HTTP/1.1 100 "));
    stream.write_all(b"abc").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer:?}");
    assert!(answer.ends_with("\r\n\r\n3"), "{answer:?}");

    let answer = raw(&gateway, &ask("none.compute.localhost")).await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_to_an_upload_does_not_garble_the_next_one() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        read_head(&mut stream).await;
        let early = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(early.as_bytes()).await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: c1.compute.localhost\r\nContent-Length: 100000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = tokio::time::timeout(DEADLINE, read_head(&mut stream)).await;
    assert!(answer.unwrap().starts_with("HTTP/1.1 413 "));
    // What looks like a request is body still: it is never answered as one.
    let smuggled = "GET / HTTP/1.1\r\nHost: none.compute.localhost\r\n\r\n";
    let _ = stream.write_all(smuggled.as_bytes()).await;
    let mut rest = String::new();
    let read = stream.read_to_string(&mut rest);
    let _ = tokio::time::timeout(DEADLINE, read).await.expect("closed");
    assert_eq!(rest, "");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_takes_its_request_along() {
    let (seen, mut saw) = tokio::sync::mpsc::channel(8);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let seen = seen.clone();
        async move {
            read_head(&mut stream).await;
            seen.send("asked").await.unwrap();
            let _ = stream.read_to_end(&mut Vec::new()).await;
            seen.send("gone").await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let head = "GET / HTTP/1.1\r\nHost: c1.compute.localhost\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut next = async || tokio::time::timeout(DEADLINE, saw.recv()).await.unwrap();
    assert_eq!(next().await, Some("asked"));
    drop(stream);
    assert_eq!(next().await, Some("gone"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_raw_utf8_path_is_redirected_as_it_is() {
    let origin = Origin::friendly("127.0.0.1").await;
    let target = origin.address;
    let gateway = Gateway::start(Options::routes(format!(
        "routes:\n- {{host: a.test, target: '{target}'}}\n"
    )))
    .await;
    let answer = raw(
        &gateway,
        "GET /\u{fc}?q=\u{fc} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer:?}");
    let location = answer.lines().find(|l| l.starts_with("location: https://"));
    let location = location.expect("a location");
    assert!(location.ends_with("/\u{fc}?q=\u{fc}"), "{location:?}");
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_stops_while_it_is_connected_to_is_a_502_at_once() {
    // Its queue of connections is full, so the next SYN is dropped.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.64.0.2:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queued = Vec::new();
    let patience = Duration::from_millis(200);
    while let Ok(stream) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
        queued.push(stream.unwrap());
    }
    let options = Options::default().flag("--connect-timeout", "15s");
    let gateway = Gateway::start(options).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, address);
    let mut stream = TcpStream::connect(gateway.addresses.http).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nHost: c1.compute.localhost\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let answer = tokio::time::timeout(patience, stream.read_u8()).await;
    assert!(answer.is_err(), "it is still connecting");
    table.remove("c1");
    let head = tokio::time::timeout(REVOCATION, read_head(&mut stream)).await;
    let head = head.expect("in time");
    assert!(head.starts_with("HTTP/1.1 502 "), "{head:?}");
    gateway.stop().await;
}
