//! Certificates change under load: no handshake fails, no connection is closed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::{Greeting, leaf};
use crate::support::tls::Client;
use crate::support::{Gateway, Options, eventually};
use crate::tls::{der, pair, put};

const SWAPS: usize = 20;

/// R6: certificates renewed under full and resumed handshakes and kept-alive connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_renewals_lose_no_handshake_and_no_connection() {
    let folder = Arc::new(TempDir::new().unwrap());
    let certs = folder.path().join("certs");
    put(&certs, &pair(&["a.example"]));
    let gateway = Gateway::start(Options {
        folder: Some(Arc::clone(&folder)),
        ..Options::default()
    })
    .await;
    let https = gateway.addresses.https;
    let over = Arc::new(AtomicBool::new(false));
    let counts: [Arc<AtomicUsize>; 3] = Default::default();

    let mut load = Vec::new();
    for resumes in [false, true] {
        let (over, count) = (Arc::clone(&over), Arc::clone(&counts[usize::from(resumes)]));
        load.push(tokio::spawn(async move {
            let mut client = Client::new(None);
            while !over.load(Ordering::Relaxed) {
                let (_, answer) = client.visit(https, "a.example").await;
                assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
                count.fetch_add(1, Ordering::Relaxed);
                if !resumes {
                    client = Client::new(None);
                }
            }
        }));
    }
    for _ in 0..4 {
        let (over, count) = (Arc::clone(&over), Arc::clone(&counts[2]));
        load.push(tokio::spawn(async move {
            let client = Client::new(None);
            let mut kept = client.dial(https, "a.example").await.unwrap();
            while !over.load(Ordering::Relaxed) {
                let ask = b"HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n";
                kept.write_all(ask).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(kept.read_u8().await.expect("kept open"));
                }
                assert!(head.starts_with(b"HTTP/1.1 404 "));
                count.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    for _ in 0..SWAPS {
        let before: Vec<_> = counts.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let renewed = pair(&["a.example"]);
        put(&certs, &renewed);
        eventually("the renewed certificate is shown", || async {
            let stream = Greeting::anyone("a.example").dial(https).await;
            leaf(&stream.expect("a handshake")) == der(&renewed.0)
        })
        .await;
        eventually("all kinds of load have gone on", || async {
            let mut counted = counts.iter().zip(&before);
            counted.all(|(count, before)| count.load(Ordering::Relaxed) > *before)
        })
        .await;
    }
    over.store(true, Ordering::Relaxed);
    for task in load {
        task.await.expect("nothing was lost");
    }
    let done = counts.map(|count| count.load(Ordering::Relaxed));
    eprintln!("full and resumed handshakes, kept-alive requests: {done:?}");
}
