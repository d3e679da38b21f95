//! What one client may take, and what is left to the others when many take it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::client::{dial, hear, request};
use crate::support::process::Process;
use crate::support::{Gateway, Options, Origin, Table, eventually, free_port};

const HOST: &str = "c1.compute.localhost";

/// R7: out of files, accepting pauses without spinning, what lives is served, and it recovers.
#[tokio::test]
async fn running_out_of_files_pauses_accepting_and_recovers() {
    let folder = tempfile::TempDir::new().unwrap();
    let ports = format!("--ports={}", free_port());
    let flags = ["--header-timeout=1m", "--workers=1", &ports];
    let mut process = Process::start(folder.path(), 4096, &flags).await;
    let [http, ssh] = ["http", "ssh"].map(|name| process.addresses[name]);
    let mut kept = dial(http).await;
    ask(&mut kept).await;

    let pid = Pid::from_raw(i32::try_from(process.id()).unwrap()).unwrap();
    let fds = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap();
    let few = u64::try_from(fds.count()).unwrap() + 20;
    let limit = |current| Rlimit {
        current: Some(current),
        maximum: Some(4096),
    };
    prlimit(Some(pid), Resource::Nofile, limit(few)).unwrap();
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(dial(http).await);
    }
    let line = |says: &str, door: &str| format!(r#""message":"{says}","door":"{door}""#);
    let cannot = "cannot accept connections, trying again";
    process.line(&line(cannot, "PublicHttp")).await;
    // A file may be free for a moment.
    for _ in 0..20 {
        held.push(dial(ssh).await);
    }
    process.line(&line(cannot, "Ssh")).await;
    // With connections waiting that it cannot take.
    let before = cpu_ticks(&process);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        ask(&mut kept).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let spent = cpu_ticks(&process) - before;
    // A loop that spins takes 200 ticks of these two seconds.
    assert!(spent < 60, "{spent} ticks of 10 ms in 2 s");
    held.truncate(10);
    prlimit(Some(pid), Resource::Nofile, limit(4096)).unwrap();
    // In whichever order.
    let can = "accepting connections again";
    let mut doors = vec!["PublicHttp", "Ssh"];
    while !doors.is_empty() {
        let told = process.line(can).await;
        doors.retain(|door| !told.contains(&line(can, door)));
    }
    let answer = request(&mut dial(http).await, "nobody.example").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

/// One request on a connection that is kept.
async fn ask(stream: &mut TcpStream) {
    let head = b"HEAD / HTTP/1.1\r\nHost: nobody.example\r\n\r\n";
    stream.write_all(head).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 404 "));
}

/// User and system time, in ticks of 10 ms.
fn cpu_ticks(process: &Process) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let (_, after) = stat.rsplit_once(") ").unwrap();
    let fields: Vec<_> = after.split(' ').collect();
    let number = |at: usize| fields[at].parse::<u64>().unwrap();
    number(11) + number(12)
}

#[tokio::test]
async fn more_connections_than_files_is_a_mistake_of_the_command_line() {
    let options = Options::default().flag("--max-connections", "1000000000");
    let Err(exit) = Gateway::try_start(options).await else {
        panic!("it started")
    };
    let text = format!("{exit:?}");
    assert!(text.starts_with("Usage"), "{text}");
    assert!(text.contains("--max-connections"), "{text}");
    assert!(text.contains("open files"), "{text}");
}

async fn from(address: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((address, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// S13: above its rate an address is told so, others are served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_asks_too_often_is_told_to_come_later() {
    let origin = Origin::friendly("127.64.0.2").await;
    let options = Options::default()
        .flag("--max-requests-per-ip", "1")
        .flag("--max-requests-per-ip-burst", "3")
        .flag("--trusted-proxies", "127.0.0.9");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let http = gateway.addresses.http;
    let begun = Instant::now();
    let mut answers = Vec::new();
    for _ in 0..8 {
        answers.push(request(&mut dial(http).await, HOST).await);
    }
    let most = 3 + usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    let (served, refused): (Vec<_>, Vec<_>) = answers
        .iter()
        .partition(|answer| answer.starts_with("HTTP/1.1 200 "));
    assert!((3..=most).contains(&served.len()), "{}", served.len());
    for answer in &refused {
        let lower = answer.to_ascii_lowercase();
        assert!(answer.starts_with("HTTP/1.1 429 "), "{answer}");
        assert!(lower.contains("\r\nretry-after: 1\r\n"), "{answer}");
        assert!(lower.contains("\r\nx-request-id: "), "{answer}");
    }
    let other = request(&mut from([127, 0, 0, 8], http).await, HOST).await;
    assert!(other.starts_with("HTTP/1.1 200 "), "{other}");

    // Of a proxy that speaks for others, it is the others who are counted.
    for (client, expected) in [("192.0.2.1", 3), ("192.0.2.2", 3)] {
        let mut served = 0;
        let begun = Instant::now();
        for _ in 0..4 {
            let mut stream = from([127, 0, 0, 9], http).await;
            let ask = format!(
                "GET / HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n"
            );
            stream.write_all(ask.as_bytes()).await.unwrap();
            let answer = hear(&mut stream).await.unwrap();
            served += usize::from(answer.starts_with(b"HTTP/1.1 200 "));
        }
        let most = expected + usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
        assert!((expected..=most).contains(&served), "{client}: {served}");
    }
    gateway.stop().await;
}

/// S13: the streams of an HTTP/2 connection count one by one, and the connection goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_come_too_often_are_refused_one_by_one() {
    let origin = Origin::friendly("127.64.0.2").await;
    let options = Options::default()
        .flag("--max-requests-per-ip", "1")
        .flag("--max-requests-per-ip-burst", "2");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 443, origin.address);
    let port = gateway.addresses.https.port();
    let url = format!("https://{HOST}:{port}/again");
    let status = "%{http_code} %{num_connects}\n";
    let begun = Instant::now();
    let mut more = vec!["--http2", "--output", "/dev/null", "--write-out", status];
    for _ in 0..5 {
        more.extend(["--output", "/dev/null", &url]);
    }
    let got = gateway.https(HOST, "/", &more).await;
    let text = got.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    let served = lines.iter().filter(|l| l.starts_with("200 ")).count();
    let most = 2 + usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!((2..=most).contains(&served), "{text}");
    let refused = lines.iter().filter(|l| l.starts_with("429 ")).count();
    assert_eq!(served + refused, 6, "{text}");
    let connects = lines.iter().filter(|l| l.ends_with(" 1")).count();
    assert_eq!(connects, 1, "{text}");
    gateway.stop().await;
}

/// S13: 2,000 connections that trickle their heads leave a normal client's p99 within twice what
/// it was, give or take what a busy machine adds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_that_trickles_leaves_others_their_pace() {
    let files = getrlimit(Resource::Nofile);
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    );
    let crowd = 2_000;
    let origin = Origin::friendly("127.64.0.2").await;
    let options = Options::default()
        .flag("--header-timeout", "1m")
        .flag("--max-connections", "4000");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let http = gateway.addresses.http;
    let mut best = f64::MAX;
    for _ in 0..3 {
        let alone = p99(http).await;
        let mut slow = Vec::with_capacity(crowd);
        for index in 0..crowd {
            let port = match index % 2 {
                0 => http,
                _ => gateway.addresses.https,
            };
            let mut stream = dial(port).await;
            let begin: &[u8] = match index % 2 {
                0 => b"GET / HTTP/1.1\r\nX: ",
                _ => &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc],
            };
            stream.write_all(begin).await.unwrap();
            slow.push(stream);
        }
        eventually("the crowd is in", || async {
            gateway.shared.gate.open() >= crowd
        })
        .await;
        let trickle = tokio::spawn(async move {
            loop {
                // Each sends a byte every ten seconds.
                for part in slow.chunks_mut(20) {
                    for stream in part {
                        let _ = stream.write_all(b"a").await;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        });
        let beside = p99(http).await;
        trickle.abort();
        eprintln!("p99 alone {alone:?}, beside {crowd} that trickle {beside:?}");
        let ratio = beside.as_secs_f64() / (alone + NOISE).as_secs_f64();
        best = best.min(ratio);
        eventually("the crowd is gone", || async {
            gateway.shared.gate.open() < 100
        })
        .await;
        if best <= 2.0 {
            break;
        }
    }
    assert!(best <= 2.0, "{best} times the p99");
    gateway.stop().await;
}

/// What another process may take from one of two cores at the wrong moment.
const NOISE: Duration = Duration::from_millis(10);

/// Of 1,000 requests, one after the other on one connection.
async fn p99(http: SocketAddr) -> Duration {
    let mut stream = dial(http).await;
    let ask = format!("HEAD / HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
    let mut times = Vec::new();
    for _ in 0..1_000 {
        let begun = Instant::now();
        stream.write_all(ask.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut bytes = [0; 1024];
            let count = stream.read(&mut bytes).await.unwrap();
            assert!(count > 0, "closed");
            answer.extend(&bytes[..count]);
        }
        times.push(begun.elapsed());
        assert!(answer.starts_with(b"HTTP/1.1 200 "));
    }
    times.sort_unstable();
    times[990]
}
