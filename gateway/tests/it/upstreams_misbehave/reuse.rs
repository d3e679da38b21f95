//! Kept connections that are dead when they are used again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::ask::{Asker, Question, Speaks, unwatched};
use crate::support::{Gateway, Options, Origin, Table, read_head};

use super::script::HOST;

/// How a kept connection ends when its second request is there.
#[derive(Clone, Copy, Debug)]
enum Death {
    Close,
    Reset,
    /// After the first bytes of an answer.
    Begun,
}

/// Answers the first request of each connection with the connection's number; the second one
/// kills it. Counts the heads.
async fn mortal(death: Death) -> (Origin, Arc<AtomicUsize>) {
    let heads = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&heads);
    let origin = Origin::raw("127.64.0.2", move |number, mut stream: TcpStream| {
        let count = Arc::clone(&count);
        async move {
            for turn in 0..2 {
                if read_head(&mut stream).await.is_empty() {
                    return;
                }
                count.fetch_add(1, Ordering::SeqCst);
                if turn == 0 {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{number:04}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
            match death {
                Death::Close => {}
                Death::Reset => stream.set_zero_linger().unwrap(),
                Death::Begun => stream.write_all(b"HTTP/1.1 2").await.unwrap(),
            }
        }
    })
    .await;
    (origin, heads)
}

async fn stage(origin: &Origin) -> (Gateway, Table) {
    let gateway = Gateway::start(Options::default().flag("--workers", "1")).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 80, origin.address);
    (gateway, table)
}

/// R9: a GET that meets a connection closed exactly when it is used again is sent once more on a
/// new one; a POST never, an answer that had begun never.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_safe_request_survives_a_dead_connection_and_others_fail_honestly() {
    let seen = unwatched();
    for death in [Death::Close, Death::Reset] {
        for speaks in [Speaks::H1, Speaks::H2] {
            for (method, body, again) in [
                ("GET", None, true),
                ("HEAD", None, true),
                ("OPTIONS", None, true),
                ("POST", None, false),
                ("POST", Some("x"), false),
                ("PATCH", Some("x"), false),
            ] {
                let (origin, heads) = mortal(death).await;
                let (gateway, _table) = stage(&origin).await;
                let mut asker = Asker::dial(speaks, gateway.addresses.http).await;
                let first = asker.ask(&Question::get(HOST, "/"), &seen).await;
                assert!(first.is(200, "0000"), "{first:?}");
                let question = Question {
                    method,
                    body: body.map(Into::into),
                    ..Question::get(HOST, "/")
                };
                let second = asker.ask(&question, &seen).await;
                let case = format!("{method} {body:?} by {speaks:?} after {death:?}: {second:?}");
                let connections = origin.connections.load(Ordering::SeqCst);
                let heads = heads.load(Ordering::SeqCst);
                if again {
                    assert_eq!(second.status, 200, "{case}");
                    assert_eq!((connections, heads), (2, 3), "{case}");
                } else {
                    assert_eq!(second.status, 502, "{case}");
                    assert_eq!((connections, heads), (1, 2), "{case}");
                }
                gateway.stop().await;
            }
        }
    }
}

/// The first byte of an answer ends all trying.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_had_begun_is_not_asked_for_again() {
    let seen = unwatched();
    for speaks in [Speaks::H1, Speaks::H2] {
        let (origin, heads) = mortal(Death::Begun).await;
        let (gateway, _table) = stage(&origin).await;
        let mut asker = Asker::dial(speaks, gateway.addresses.http).await;
        let first = asker.ask(&Question::get(HOST, "/"), &seen).await;
        assert!(first.is(200, "0000"), "{first:?}");
        let second = asker.ask(&Question::get(HOST, "/"), &seen).await;
        assert_eq!(second.status, 502, "{speaks:?}: {second:?}");
        assert_eq!(heads.load(Ordering::SeqCst), 2, "{speaks:?}");
        gateway.stop().await;
    }
}

/// A connection that the upstream closed while it was idle is not used at all: not even a POST
/// is lost to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_closed_while_idle_costs_nobody_anything() {
    let origin = Origin::raw("127.64.0.2", async |number, mut stream: TcpStream| {
        if read_head(&mut stream).await.is_empty() {
            return;
        }
        // Kept by its words, closed all the same.
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{number:04}");
        stream.write_all(answer.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        // The end of it, which the gateway has seen when this comes.
        read_head(&mut stream).await;
    })
    .await;
    let (gateway, _table) = stage(&origin).await;
    let seen = unwatched();
    for speaks in [Speaks::H1, Speaks::H2] {
        let mut asker = Asker::dial(speaks, gateway.addresses.http).await;
        for _ in 0..20 {
            let asked = asker.ask(&Question::get(HOST, "/"), &seen).await;
            assert_eq!(asked.status, 200, "{speaks:?}: {asked:?}");
        }
    }
    gateway.stop().await;
}

/// P5: a hundred requests one after the other use one connection to the upstream, for clients of
/// both versions and on new client connections too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_requests_use_one_upstream_connection() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        while !read_head(&mut stream).await.is_empty() {
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let (gateway, _table) = stage(&origin).await;
    let seen = unwatched();
    for speaks in [Speaks::H1, Speaks::H2] {
        let mut kept = Asker::dial(speaks, gateway.addresses.http).await;
        for _ in 0..25 {
            let heard = kept.ask(&Question::get(HOST, "/"), &seen).await;
            assert!(heard.is(200, "ok"), "{heard:?}");
            let mut fresh = Asker::dial(speaks, gateway.addresses.http).await;
            let heard = fresh.ask(&Question::get(HOST, "/"), &seen).await;
            assert!(heard.is(200, "ok"), "{heard:?}");
        }
    }
    assert_eq!(origin.connections.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}

/// A refusal to keep the connection is respected, by 1.1's word and by 1.0's silence.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_is_not_offered_is_not_kept() {
    let seen = unwatched();
    for head in [
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nConnection: x, Close\r\ncontent-length: 2\r\n\r\nok",
        "HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ] {
        let origin = Origin::raw("127.64.0.2", async move |_, mut stream: TcpStream| {
            // Says it closes, and does not: who asks again on it waits for ever.
            read_head(&mut stream).await;
            stream.write_all(head.as_bytes()).await.unwrap();
            while !read_head(&mut stream).await.is_empty() {}
        })
        .await;
        let (gateway, _table) = stage(&origin).await;
        let mut asker = Asker::dial(Speaks::H1, gateway.addresses.http).await;
        for _ in 0..3 {
            let heard = asker.ask(&Question::get(HOST, "/"), &seen).await;
            assert!(heard.is(200, "ok"), "{head:?}: {heard:?}");
        }
        assert_eq!(origin.connections.load(Ordering::SeqCst), 3, "{head:?}");
        gateway.stop().await;
    }
}
