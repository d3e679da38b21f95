//! Connections that leave plain request and answer: switched, closed by one side, left alone.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::support::ask::{H1, unwatched};
use crate::support::client::{Greeting, hear};
use crate::support::{DEADLINE, Gateway, Options, Origin, Table, read_head};

use super::spy::{HOST, gateway};

/// S1: `Upgrade: websocket`, or a path below /ws/ or /sse/, made a raw pipe of the connection,
/// whatever the upstream said; what followed went there unseen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_a_101_makes_a_pipe() {
    let (gateway, _table, spy) = gateway().await;
    for (method, path, more) in [
        (
            "GET",
            "/ws/chat",
            "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        ),
        (
            "POST",
            "/x",
            "Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n",
        ),
        ("GET", "/sse/events", "Accept: text/event-stream\r\n"),
        ("GET", "/ws/", ""),
    ] {
        let mut h1 = H1::dial(gateway.addresses.http).await;
        // The second would go to the same upstream by a pipe, with an identity of its own making.
        h1.say(format!(
            "{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{more}\r\n\
             GET /second HTTP/1.1\r\nHost: none.compute.localhost\r\n\
             X-Forwarded-For: 6.6.6.6\r\n\r\n\
             GET /third HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n"
        ))
        .await;
        let first = h1.answer(false, &unwatched()).await;
        assert!(first.is(200, path), "{path}: {first:?}");
        let second = h1.answer(false, &unwatched()).await;
        assert_eq!(second.status, 404, "{path}: {second:?}");
        let third = h1.answer(false, &unwatched()).await;
        assert!(third.is(200, "/third"), "{path}: {third:?}");
        let heads = spy.heads();
        assert_eq!(heads.len(), 2, "{path}: {heads:?}");
        assert!(!heads[1].contains("6.6.6.6"), "{path}: {heads:?}");
    }
    gateway.stop().await;
}

/// C9: the end of an upstream was not passed on over TLS or where first bytes had been looked at:
/// answers up to the close hung.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_upstreams_end_ends_the_answer_on_every_way_in() {
    let origin = Origin::blunt("127.64.0.2", "HTTP/1.0 200 OK\r\n\r\nall of it").await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    let port = gateway.port(0);
    table.run("c0", 80, origin.address);
    table.run("c1", 443, origin.address);
    table.run("c2", port.port(), origin.address);
    let begun = std::time::Instant::now();
    for (id, address, tls) in [
        ("c0", gateway.addresses.http, false),
        ("c1", gateway.addresses.https, true),
        ("c2", port, false),
        ("c2", port, true),
    ] {
        let host = format!("{id}.compute.localhost");
        for version in ["1.0", "1.1"] {
            let ask = format!("GET / HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n");
            let heard = if tls {
                let mut stream = Greeting::anyone(&host).dial(address).await.unwrap();
                stream.write_all(ask.as_bytes()).await.unwrap();
                hear(&mut stream).await
            } else {
                let mut stream = crate::support::client::dial(address).await;
                stream.write_all(ask.as_bytes()).await.unwrap();
                hear(&mut stream).await
            };
            // A clean end: with TLS the closing alert before it.
            let heard = String::from_utf8(heard.expect("a clean end")).unwrap();
            assert!(heard.contains(" 200 OK\r\n"), "{id} {version}: {heard}");
            assert!(heard.contains("all of it"), "{id} {version}: {heard}");
        }
    }
    assert!(begun.elapsed() < DEADLINE / 2, "{:?}", begun.elapsed());
    gateway.stop().await;
}

/// C10: after one side's end the other was waited for, for ever: idle sockets leaked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_sides_end_lets_the_other_go() {
    let (ended, mut ends) = mpsc::channel(8);
    let (end, ending) = mpsc::channel::<()>(1);
    let ending = std::sync::Arc::new(tokio::sync::Mutex::new(ending));
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let (ended, ending) = (ended.clone(), std::sync::Arc::clone(&ending));
        async move {
            read_head(&mut stream).await;
            let agree =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
            stream.write_all(agree.as_bytes()).await.unwrap();
            let mut ending = ending.lock().await;
            let mut byte = [0];
            tokio::select! {
                _ = ending.recv() => {}
                _ = stream.read(&mut byte) => {}
            }
            drop(ending);
            drop(stream);
            let _ = ended.send(()).await;
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let ask = "GET / HTTP/1.1\r\nHost: c1.compute.localhost\r\n\
               Connection: Upgrade\r\nUpgrade: x\r\n\r\n";
    for by_client in [true, false] {
        let mut h1 = H1::dial(gateway.addresses.http).await;
        h1.say(ask).await;
        let (line, _) = h1.head().await.expect("an answer");
        assert!(line.starts_with("HTTP/1.1 101 "), "{line}");
        if by_client {
            drop(h1);
        } else {
            end.send(()).await.unwrap();
            assert!(h1.ends().await, "a clean end");
            drop(h1);
        }
        let seen = timeout(DEADLINE, ends.recv()).await;
        seen.expect("the upstream is let go").unwrap();
        crate::support::eventually("nothing is held", || async {
            gateway.shared.gate.open() == 0 && gateway.shared.gate.upstreams() == 0
        })
        .await;
    }
    gateway.stop().await;
}
