//! nghttp2's client.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::timeout;

use crate::support::{DEADLINE, Gateway, Options, Origin, Table, program, read_head};

const HOST: &str = "c1.compute.localhost";

/// What `nghttp -v` says about these requests.
async fn nghttp(gateway: &Gateway, host: &str, more: &[&str], paths: &[&str]) -> String {
    let port = gateway.addresses.https.port();
    let mut command = Command::new(program("nghttp", "EDD_NGHTTP"));
    command.args(["--verbose", "--no-verify-peer", "--timeout=20"]);
    command.arg(format!("--header=:authority: {host}"));
    command.args(more);
    for path in paths {
        // A name that resolves everywhere; the certificate covers both.
        command.arg(format!("https://localhost:{port}{path}"));
    }
    let output = timeout(DEADLINE * 2, command.kill_on_drop(true).output()).await;
    let output = output.expect("an end in time").expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    said
}

/// C17: streams, headers, trailers and windows as nghttp2 understands them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nghttp_is_content_with_every_answer() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        loop {
            let head = read_head(&mut stream).await;
            let Some(path) = head.split(' ').nth(1) else {
                return;
            };
            let answer = match path {
                "/trailers" => {
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                     3\r\nabc\r\n0\r\nX-Sum: 3\r\n\r\n"
                }
                "/hints" => {
                    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                     HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                }
                "/none" => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-UPPER: Kept\r\n\r\nok",
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 443, origin.address);
    let said = nghttp(
        &gateway,
        HOST,
        &["--no-dep"],
        &["/", "/trailers", "/hints", "/none"],
    )
    .await;
    assert_eq!(said.matches(":status: 200").count(), 3, "{said}");
    assert_eq!(said.matches(":status: 103").count(), 1, "{said}");
    assert_eq!(said.matches(":status: 204").count(), 1, "{said}");
    assert!(said.contains("x-upper: Kept"), "{said}");
    assert!(said.contains("x-sum: 3"), "{said}");
    // RFC 8441 is offered.
    assert!(
        said.contains("ENABLE_CONNECT_PROTOCOL") || said.contains("(0x08):1]"),
        "{said}"
    );
    // Fifty of each at once.
    let said = nghttp(&gateway, HOST, &["--multiply=50"], &["/", "/trailers"]).await;
    assert_eq!(said.matches(":status: 200").count(), 100, "{said}");
    gateway.stop().await;
}

/// Padding, continuation frames and small windows are within the rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nghttp_may_pad_and_continue_and_be_narrow() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 443, origin.address);
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(300_000).unwrap();
    let data = format!("--data={}", file.path().display());
    let said = nghttp(
        &gateway,
        HOST,
        &["--padding=200", "--continuation", &data],
        &["/upload"],
    )
    .await;
    assert!(said.contains("300000"), "{said}");
    let narrow = [
        "--window-bits=10",
        "--connection-window-bits=10",
        "--null-out",
    ];
    let said = nghttp(&gateway, HOST, &narrow, &["/download?mib=1"]).await;
    assert!(said.contains(":status: 200"), "{said}");
    gateway.stop().await;
}
