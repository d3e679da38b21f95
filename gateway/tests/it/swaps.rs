//! Routes, certificates and the process change under a load, and no client notices.
//!
//! `cargo xtask bench swaps` does the same at full size.

use std::sync::Arc;
use std::time::Duration;

use edd_bench::load::{Counts, Load, Plan, Protocol, leaf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Gateway, Options, Origin, eventually, free_port, replace_file};

const HOST: &str = "swaps.localhost";

async fn answering() -> Origin {
    Origin::raw("127.0.0.1", async |_, mut stream: TcpStream| {
        let mut bytes = Vec::new();
        while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
            while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                bytes.drain(..end + 4);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhere\n";
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    })
    .await
}

fn routes(n: usize, origins: &[Origin; 2]) -> String {
    let target = origins[n % 2].address;
    format!(
        "routes:\n- host: {HOST}\n  target: {target}\n\
         - host: other.localhost\n  path: /v{n}\n  target: {target}\n"
    )
}

fn write_certificate(gateway: &Gateway) {
    let pair = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
    let key = pair.signing_key.serialize_pem();
    replace_file(&gateway.path("certs/tls.key"), &key);
    replace_file(&gateway.path("certs/tls.crt"), &pair.cert.pem());
}

fn options(ports: &str, origins: &[Origin; 2], n: usize) -> Options {
    Options::routes(routes(n, origins))
        .flag("--ports", ports)
        .flag("--drain-timeout", "30s")
}

fn assert_unnoticed(counts: &Counts) {
    assert_eq!(counts.failed, 0, "{counts:#?}");
    assert_eq!(counts.reset, 0, "{counts:#?}");
    assert!(counts.answered > 0, "{counts:#?}");
}

/// R4, R6: a change of process or certificate costs nobody a request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_notice_nothing_of_changed_routes_certificates_and_processes() {
    let origins = [answering().await, answering().await];
    let ports = free_port().to_string();
    let old = Gateway::start(options(&ports, &origins, 0)).await;
    let plan = Plan {
        address: old.addresses.https,
        host: HOST.into(),
        path: "/".into(),
        connections: 6,
        per_second: 150,
    };
    let loads = [Protocol::Http1, Protocol::Http2].map(|protocol| Load::start(&plan, protocol));
    for n in 1..=40 {
        let revision = old.table().revision;
        replace_file(&old.path("routes.yaml"), &routes(n, &origins));
        old.until("the next table", |table| table.revision > revision)
            .await;
        if n % 8 == 0 {
            let before = leaf(&plan).await.unwrap();
            write_certificate(&old);
            eventually("the new certificate", || async {
                leaf(&plan).await.unwrap() != before
            })
            .await;
        }
    }
    let swapped = loads.each_ref().map(Load::counts);
    for counts in &swapped {
        assert_unnoticed(counts);
        assert_eq!((counts.closed, counts.refused), (0, 0), "{counts:#?}");
        assert_eq!(counts.connected, 6, "{counts:#?}");
    }
    let asked = origins
        .each_ref()
        .map(|origin| origin.connections.load(std::sync::atomic::Ordering::SeqCst));
    assert!(asked.iter().all(|asked| *asked > 0), "both were routed to");

    let mut next = options(&ports, &origins, 40);
    next.folder = Some(Arc::clone(&old.folder));
    next.flags.push("--take-over".into());
    let new = Gateway::start(next).await;
    old.ended().await;
    // All are connected to the new process now, and it serves them.
    let before = loads.each_ref().map(Load::counts);
    eventually("more answers", || async {
        let now = loads.each_ref().map(Load::counts);
        now.iter()
            .zip(&before)
            .all(|(now, before)| now.answered > before.answered + 50)
    })
    .await;
    for (load, before) in loads.into_iter().zip(&swapped) {
        let counts = load.stop().await.since(before);
        assert_unnoticed(&counts);
        assert!(
            counts.closed >= 6,
            "all moved to the new process: {counts:#?}"
        );
        assert!(counts.took(990) < Duration::from_secs(5), "{counts:#?}");
    }
    new.stop().await;
}
