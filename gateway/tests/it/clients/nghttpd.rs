//! nghttp2's server: an upstream that speaks nothing but HTTP/2.

use std::process::Stdio;

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::support::{Gateway, Options, eventually, free_port, program};

/// nghttpd in clear on a port of its own; ends with its value.
async fn nghttpd(folder: &std::path::Path) -> (Child, u16) {
    let port = free_port();
    let child = Command::new(program("nghttpd", "EDD_NGHTTPD"))
        .args(["--no-tls", "--address=127.0.0.1", "--echo-upload"])
        .arg("--trailer=x-end: yes")
        .arg(format!("--htdocs={}", folder.display()))
        .arg(port.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("it starts");
    eventually("nghttpd listens", || async {
        TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    })
    .await;
    (child, port)
}

/// C17: an upstream that speaks nothing but HTTP/2 in clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nghttpd_is_reached_by_clients_of_both_versions() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("small"), "small").unwrap();
    let large = vec![7; 20 << 20];
    std::fs::write(folder.path().join("large"), &large).unwrap();
    let (_server, port) = nghttpd(folder.path()).await;
    let routes = format!("routes:\n- {{host: a.test, target: 'h2c://127.0.0.1:{port}'}}\n");
    let gateway = Gateway::start(Options::routes(routes)).await;
    for version in ["--http1.1", "--http2"] {
        let got = gateway.https("a.test", "/small", &[version]).await;
        assert_eq!(
            (got.status, got.text().as_str()),
            (200, "small"),
            "{version}"
        );
        assert!(got.field("server").is_some_and(|s| s.contains("nghttpd")));
        let got = gateway.https("a.test", "/none", &[version]).await;
        assert_eq!(got.status, 404, "{version}");
        let got = gateway.https("a.test", "/large", &[version]).await;
        assert!(got.body == large, "{version}: {} bytes", got.body.len());
        let head = gateway
            .https("a.test", "/large", &["--head", version])
            .await;
        assert_eq!((head.exit, head.status), (0, 200), "{version}");
        // What is sent comes back.
        let path = folder.path().join("large").display().to_string();
        let upload = ["--upload-file", &path, "--request", "POST", version];
        let got = gateway.https("a.test", "/echo", &upload).await;
        assert!(got.body == large, "{version}: {} bytes", got.body.len());
    }
    gateway.stop().await;
}
