//! Names of targets: DNS with its times to live, against a real resolver on loopback.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinHandle;

use super::caller::Caller;
use crate::support::{Gateway, Options, eventually, free_port, read_head};

type Zone = Arc<Mutex<HashMap<String, (Vec<Ipv4Addr>, u32)>>>;

/// A DNS server that knows A records; ends when dropped.
struct Dns {
    address: SocketAddr,
    zone: Zone,
    task: JoinHandle<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dns {
    async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let zone = Zone::default();
        let records = Arc::clone(&zone);
        let task = tokio::spawn(async move {
            let mut query = [0; 512];
            loop {
                // Errors of a peer that is gone are reported here too.
                let Ok((length, from)) = socket.recv_from(&mut query).await else {
                    continue;
                };
                if let Some(answer) = answer(&query[..length], &records) {
                    let _ = socket.send_to(&answer, from).await;
                }
            }
        });
        Self {
            address,
            zone,
            task,
        }
    }

    fn set(&self, name: &str, addresses: &[&str], ttl: u32) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap());
        let record = (addresses.collect(), ttl);
        self.zone.lock().unwrap().insert(name.to_owned(), record);
    }
}

/// The answer to one question (RFC 1035, section 4): A records, or none with NOERROR or NXDOMAIN.
fn answer(query: &[u8], zone: &Zone) -> Option<Vec<u8>> {
    let mut labels = Vec::new();
    let mut at = 12;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    let question = query.get(12..at + 4)?;
    let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
    let zone = zone.lock().unwrap();
    let found = zone.get(&labels.join("."));
    let (addresses, ttl) = match (found, kind) {
        (Some((addresses, ttl)), 1) => (addresses.as_slice(), *ttl),
        _ => (&[][..], 0),
    };
    let code = if found.is_some() { 0 } else { 3 };
    let count = u8::try_from(addresses.len()).unwrap();
    let mut answer = query.get(..2)?.to_vec();
    answer.extend_from_slice(&[0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    for address in addresses {
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
        answer.extend_from_slice(&ttl.to_be_bytes());
        answer.extend_from_slice(&[0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}

/// Answers every request with its own address.
async fn serve(ip: &str, port: u16) -> JoinHandle<()> {
    let listener = TcpListener::bind((ip, port)).await.unwrap();
    let name = ip.to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(say(stream, name.clone()));
        }
    })
}

async fn say(mut stream: TcpStream, name: String) {
    // No keep-alive: each request shows where the name leads now.
    if !read_head(&mut stream).await.is_empty() {
        let length = name.len();
        let answer = format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{name}"
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

async fn gateway(dns: &Dns, port: u16) -> Gateway {
    let routes = format!("routes:\n- {{host: a.test, target: 'up.example.test:{port}'}}\n");
    let options = Options::routes(routes).flag("--resolver", dns.address.to_string());
    Gateway::start(options).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_in_dns_is_followed_within_its_time_to_live() {
    let dns = Dns::start().await;
    let port = free_port();
    let (_one, _two) = (
        serve("127.0.0.2", port).await,
        serve("127.0.0.3", port).await,
    );
    dns.set("up.example.test", &["127.0.0.2"], 2);
    let gateway = gateway(&dns, port).await;
    let mut caller = Caller::new(&gateway, "a.test");
    for _ in 0..5 {
        assert_eq!(caller.get("/").await.body, "127.0.0.2");
    }
    dns.set("up.example.test", &["127.0.0.3"], 2);
    let changed = Instant::now();
    let follow = || async {
        let answer = Caller::new(&gateway, "a.test").get("/").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body == "127.0.0.3"
    };
    eventually("the new address", follow).await;
    assert!(
        changed.elapsed() < Duration::from_secs(6),
        "{:?}",
        changed.elapsed()
    );
    // Of several addresses all are used.
    dns.set("up.example.test", &["127.0.0.2", "127.0.0.3"], 2);
    let both = || async {
        let mut caller = Caller::new(&gateway, "a.test");
        caller.get("/").await.body != caller.get("/").await.body
    };
    eventually("both addresses", both).await;
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_does_not_answer_gives_way_to_the_next() {
    let dns = Dns::start().await;
    let port = free_port();
    let _one = serve("127.0.0.2", port).await;
    dns.set(
        "up.example.test",
        &["127.0.0.4", "127.0.0.2", "127.0.0.5"],
        60,
    );
    let gateway = gateway(&dns, port).await;
    let mut caller = Caller::new(&gateway, "a.test");
    for _ in 0..6 {
        let answer = caller.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "127.0.0.2"));
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_resolver_takes_no_upstream_with_it() {
    let dns = Dns::start().await;
    let port = free_port();
    let _one = serve("127.0.0.2", port).await;
    dns.set("up.example.test", &["127.0.0.2"], 1);
    let gateway = gateway(&dns, port).await;
    let mut caller = Caller::new(&gateway, "a.test");
    assert_eq!(caller.get("/").await.body, "127.0.0.2");
    drop(dns);
    let dead = Instant::now();
    // Three times its time to live.
    while dead.elapsed() < Duration::from_secs(3) {
        let answer = caller.get("/").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "127.0.0.2"));
        tokio::task::yield_now().await;
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_does_not_exist_is_a_502_until_it_does() {
    let dns = Dns::start().await;
    let port = free_port();
    let _one = serve("127.0.0.2", port).await;
    let gateway = gateway(&dns, port).await;
    assert_eq!(Caller::new(&gateway, "a.test").get("/").await.status, 502);
    dns.set("up.example.test", &["127.0.0.2"], 60);
    eventually("an answer", || async {
        Caller::new(&gateway, "a.test").get("/").await.status == 200
    })
    .await;
    gateway.stop().await;
}
