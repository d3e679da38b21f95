//! Much of everything: gibibytes in flat memory, and a thousand event streams of which two end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::support::ask::{Asker, H1, H2, Question, Speaks, unwatched, upload};
use crate::support::process::Process;
use crate::support::{
    Bus, DEADLINE, Gateway, Options, Origin, REVOCATION, Table, eventually, free_port, read_head,
};

const HOST: &str = "big1.compute.localhost";
const GIB: u64 = 1 << 30;

/// Sends a GiB, or swallows one and says so.
async fn large() -> Origin {
    Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        let buffer = vec![7; 256 << 10];
        loop {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            if head.is_empty() {
                return;
            }
            if head.starts_with("get /small") {
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(answer.as_bytes()).await.unwrap();
            } else if head.starts_with("get ") {
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {GIB}\r\n\r\n");
                stream.write_all(answer.as_bytes()).await.unwrap();
                for _ in 0..GIB / buffer.len() as u64 {
                    if stream.write_all(&buffer).await.is_err() {
                        return;
                    }
                }
            } else {
                let mut left = GIB;
                let mut into = buffer.clone();
                assert!(head.contains(&format!("content-length: {GIB}\r\n")));
                while left > 0 {
                    match stream.read(&mut into).await {
                        Ok(len @ 1..) => left -= len as u64,
                        _ => return,
                    }
                }
                let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

/// C12, C14: a GiB down and a GiB up by each version leave the gateway's memory as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gibibytes_pass_in_flat_memory() {
    const GROWTH_MAX_KIB: usize = 32 << 10;
    let origin = large().await;
    let bus = Bus::start().await;
    let folder = tempfile::TempDir::new().unwrap();
    let nats = format!("--nats-url={}", bus.server.url());
    let ports = format!("--ports={}", free_port());
    let flags = [
        "--platform-domain=localhost",
        "--container-cidrs=127.64.0.0/16",
        "--workers=1",
        &nats,
        &ports,
    ];
    let process = Process::start(folder.path(), 1000, &flags).await;
    let http = process.addresses["http"];
    bus.container("big1", 1, "127.64.0.2", &[(80, origin.address.port())])
        .await;
    for speaks in [Speaks::H1, Speaks::H2] {
        eventually("the container is routed", || async {
            let mut asker = Asker::dial(speaks, http).await;
            let small = Question::get(HOST, "/small");
            asker.ask(&small, &unwatched()).await.status == 200
        })
        .await;
    }
    let before = process.peak_kib();
    let patience = 4 * DEADLINE;

    let mut h1 = H1::dial(http).await;
    h1.say(format!("GET /large HTTP/1.1\r\nHost: {HOST}\r\n\r\n"))
        .await;
    let (_, fields) = h1.head().await.expect("a head");
    assert!(fields.contains(&("content-length".into(), GIB.to_string())));
    let down = timeout(patience, h1.swallow(GIB)).await;
    assert!(down.expect("in time"), "the whole of it");
    let after_h1_down = process.peak_kib();

    h1.say(format!(
        "POST /large HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {GIB}\r\n\r\n"
    ))
    .await;
    let piece = vec![7; 256 << 10];
    for _ in 0..GIB / piece.len() as u64 {
        h1.say(&piece).await;
    }
    assert!(h1.answer(false, &unwatched()).await.is(200, "ok"));
    let after_h1_up = process.peak_kib();

    let mut h2 = H2::dial(http).await;
    let question = Question::get(HOST, "/large");
    let (answer, _stream) = h2.send.send_request(H2::head(&question), true).unwrap();
    let mut body = answer.await.expect("a head").into_body();
    let mut left = GIB;
    let down = async {
        while let Some(data) = body.data().await {
            let len = data.expect("no cut").len();
            left -= len as u64;
            body.flow_control().release_capacity(len).unwrap();
        }
    };
    timeout(patience, down).await.expect("in time");
    assert_eq!(left, 0);
    let after_h2_down = process.peak_kib();

    let mut head = H2::head(&Question {
        method: "POST",
        ..question
    });
    head.headers_mut().insert("content-length", GIB.into());
    let (answer, mut stream) = h2.send.send_request(head, false).unwrap();
    let mebibyte = Bytes::from(vec![7; 1 << 20]);
    let up = async {
        for _ in 0..(GIB >> 20) - 1 {
            stream = upload_part(stream, mebibyte.clone()).await;
        }
        upload(stream, mebibyte.clone()).await.expect("taken")
    };
    let _stream = timeout(patience, up).await.expect("in time");
    let answer = timeout(DEADLINE, answer).await.expect("in time");
    assert_eq!(answer.expect("an answer").status().as_u16(), 200);
    let after_h2_up = process.peak_kib();

    let peaks = [after_h1_down, after_h1_up, after_h2_down, after_h2_up];
    println!("peak memory before {before} KiB, after each GiB {peaks:?} KiB");
    assert!(
        after_h2_up - before < GROWTH_MAX_KIB,
        "{before} KiB became {peaks:?}"
    );
}

/// Sends a piece as the window allows, without an end.
async fn upload_part(mut stream: h2::SendStream<Bytes>, mut piece: Bytes) -> h2::SendStream<Bytes> {
    while !piece.is_empty() {
        stream.reserve_capacity(piece.len());
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
        let room = room.expect("open").expect("no reset");
        let part = piece.split_to(room.min(piece.len()));
        stream.send_data(part, false).expect("sent");
    }
    stream
}

/// Counts its open streams and says a number on each whenever the test counts up.
async fn ticker() -> (Origin, Arc<AtomicUsize>, watch::Sender<usize>) {
    let (count, counted) = watch::channel(0);
    let open = Arc::new(AtomicUsize::new(0));
    let opened = Arc::clone(&open);
    let origin = Origin::raw("127.64.0.2", move |_, mut stream: TcpStream| {
        let (mut counted, open) = (counted.clone(), Arc::clone(&opened));
        async move {
            if read_head(&mut stream).await.is_empty() {
                return;
            }
            open.fetch_add(1, Ordering::SeqCst);
            let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
            let _ = stream.write_all(head.as_bytes()).await;
            let mut end = [0];
            loop {
                let event = format!("data: {}\n\n", *counted.borrow_and_update());
                if stream.write_all(event.as_bytes()).await.is_err() {
                    break;
                }
                tokio::select! {
                    changed = counted.changed() => if changed.is_err() { break },
                    _ = stream.read(&mut end) => break,
                }
            }
            open.fetch_sub(1, Ordering::SeqCst);
        }
    })
    .await;
    (origin, open, count)
}

/// What a client of an event stream has seen.
#[derive(Default)]
struct Listening {
    /// One more than the last number.
    heard: AtomicU64,
    over: AtomicUsize,
}

impl Listening {
    fn take(&self, events: &[u8]) {
        let count = events.iter().filter(|&&byte| byte == b'd').count();
        self.heard.fetch_add(count as u64, Ordering::SeqCst);
    }
}

/// C10, C16: a thousand containers with an event stream each, half of the clients on HTTP/1.1 and
/// half as streams of five connections of HTTP/2: two of them end, and exactly their streams do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_thousand_event_streams_exactly_the_revoked_ones_end() {
    const COUNT: usize = 1000;
    let (origin, open, count) = ticker().await;
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    let mut listenings = Vec::new();
    let mut senders = Vec::new();
    for number in 0..COUNT {
        let id = format!("c{number}");
        table.run(&id, 80, origin.address);
        let host = format!("{id}.compute.localhost");
        let listening = Arc::new(Listening::default());
        listenings.push(Arc::clone(&listening));
        if number % 2 == 0 {
            let mut h1 = H1::dial(gateway.addresses.http).await;
            h1.say(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"))
                .await;
            tokio::spawn(async move {
                let (line, _) = h1.head().await.expect("a head");
                assert!(line.contains(" 200 "), "{line}");
                // The first event may have come with the head.
                listening.take(&h1.rest());
                let mut events = [0; 1024];
                while let Ok(len @ 1..) = h1.stream.read(&mut events).await {
                    listening.take(&events[..len]);
                }
                listening.over.store(1, Ordering::SeqCst);
            });
        } else {
            if number % 200 == 1 {
                senders.push(H2::dial(gateway.addresses.http).await);
            }
            let h2 = senders.last_mut().expect("one");
            let head = H2::head(&Question::get(&host, "/"));
            let mut ready = h2.send.clone().ready().await.expect("open");
            let (answer, stream) = ready.send_request(head, true).unwrap();
            tokio::spawn(async move {
                let _stream = stream;
                let mut body = answer.await.expect("a head").into_body();
                while let Some(Ok(events)) = body.data().await {
                    let _ = body.flow_control().release_capacity(events.len());
                    listening.take(&events);
                }
                listening.over.store(1, Ordering::SeqCst);
            });
        }
    }
    eventually("all are open", || async {
        open.load(Ordering::SeqCst) == COUNT
    })
    .await;
    let others = |number: usize| number != 400 && number != 701;
    for round in 1..=3 {
        if round == 2 {
            table.remove("c400");
            table.remove("c701");
            let gone = async {
                while listenings[400].over.load(Ordering::SeqCst) == 0
                    || listenings[701].over.load(Ordering::SeqCst) == 0
                {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            };
            timeout(REVOCATION, gone).await.expect("in time");
        }
        let before: Vec<_> = listenings
            .iter()
            .map(|listening| listening.heard.load(Ordering::SeqCst))
            .collect();
        count.send(round).unwrap();
        let begun = std::time::Instant::now();
        loop {
            // Who still waits for the round's event.
            let deaf: Vec<_> = (0..COUNT)
                .filter(|&number| round == 1 || others(number))
                .filter(|&n| listenings[n].heard.load(Ordering::SeqCst) <= before[n])
                .map(|n| (n, before[n], listenings[n].over.load(Ordering::SeqCst)))
                .collect();
            if deaf.is_empty() {
                break;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "round {round}: {} of {COUNT} hear nothing (number, events before, over): {:?}",
                deaf.len(),
                &deaf[..deaf.len().min(20)]
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    for (number, listening) in listenings.iter().enumerate() {
        let over = listening.over.load(Ordering::SeqCst) == 1;
        assert_eq!(over, !others(number), "{number}");
    }
    eventually("their upstreams are let go", || async {
        open.load(Ordering::SeqCst) == COUNT - 2
    })
    .await;
    drop(senders);
    gateway.stop().await;
}
