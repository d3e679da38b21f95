//! curl, for what people do with it every day.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Gateway, Options, Origin, Table, read_head};

const HOST: &str = "c1.compute.localhost";
const VERSIONS: [&str; 2] = ["--http1.1", "--http2"];

async fn gateway_to(origin: &Origin) -> Gateway {
    let gateway = Gateway::start(Options::default()).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 443, origin.address);
    table.run("c0", 80, origin.address);
    gateway
}

/// Says what framing the body came in and how long it was.
async fn weigher() -> Origin {
    Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        loop {
            let head = read_head(&mut stream).await.to_ascii_lowercase();
            if head.is_empty() {
                return;
            }
            let length = head.split("content-length: ").nth(1).map(|rest| {
                let digits = rest.split("\r\n").next().unwrap_or_default();
                digits.parse::<usize>().expect("a length")
            });
            let chunked = head.contains("transfer-encoding: chunked\r\n");
            let (mut len, mut trailers) = (0, String::new());
            if let Some(length) = length {
                assert!(!chunked, "{head:?}");
                if head.contains("expect: 100-continue") {
                    let consent = "HTTP/1.1 100 Continue\r\n\r\n";
                    stream.write_all(consent.as_bytes()).await.unwrap();
                }
                stream.read_exact(&mut vec![0; length]).await.unwrap();
                len = length;
            } else if chunked {
                if head.contains("expect: 100-continue") {
                    let consent = "HTTP/1.1 100 Continue\r\n\r\n";
                    stream.write_all(consent.as_bytes()).await.unwrap();
                }
                loop {
                    let line = read_line(&mut stream).await;
                    let size = usize::from_str_radix(&line, 16).expect("a size");
                    if size == 0 {
                        break;
                    }
                    stream.read_exact(&mut vec![0; size + 2]).await.unwrap();
                    len += size;
                }
                loop {
                    let line = read_line(&mut stream).await;
                    if line.is_empty() {
                        break;
                    }
                    trailers.push_str(&line);
                }
            }
            let framing = match (length, chunked) {
                (Some(_), _) => "length",
                (_, true) => "chunked",
                _ => "none",
            };
            let said = format!("{framing} {len} {trailers}");
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{said}",
                said.len()
            );
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

async fn read_line(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        line.push(stream.read_u8().await.expect("more"));
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).expect("text")
}

/// C15, C13: uploads with and without `Expect`, with and without a length, keep their framing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_every_kind_arrive_whole() {
    let origin = weigher().await;
    let gateway = gateway_to(&origin).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(5 << 20).unwrap();
    let path = file.path().display().to_string();
    for version in VERSIONS {
        for (more, expected) in [
            (&["--data", "12345"][..], "length 5 "),
            (&["--data", ""], "length 0 "),
            (&["--upload-file", &path], "length 5242880 "),
            (
                &["--upload-file", &path, "--header", "expect: 100-continue"],
                "length 5242880 ",
            ),
            (
                &["--upload-file", &path, "--header", "expect:"],
                "length 5242880 ",
            ),
            (&["--form", "a=1"], "length 135 "),
        ] {
            let got = gateway.https(HOST, "/", &[more, &[version]].concat()).await;
            let text = got.text();
            if more[0] == "--form" {
                assert!(text.starts_with("length "), "{version} {more:?}: {text}");
            } else {
                assert_eq!(text, expected, "{version} {more:?}");
            }
        }
    }
    // Without a length: in chunks, all the way.
    for more in [&["--http1.1"][..], &["--http1.1", "--header", "expect:"]] {
        let chunked = [
            "--upload-file",
            &path,
            "--header",
            "transfer-encoding: chunked",
        ];
        let got = gateway.https(HOST, "/", &[&chunked, more].concat()).await;
        assert_eq!(got.text(), "chunked 5242880 ", "{more:?}");
    }
    gateway.stop().await;
}

/// Ranges, conditions and methods are the upstream's business: they pass unchanged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_methods_pass_unchanged() {
    let origin = Origin::raw("127.64.0.2", async |_, mut stream: TcpStream| {
        loop {
            let head = read_head(&mut stream).await;
            let Some((method, _)) = head.split_once(' ') else {
                return;
            };
            let lower = head.to_ascii_lowercase();
            let answer = if lower.contains("\r\nrange: bytes=2-4\r\n") {
                assert!(lower.contains("\r\nif-range: \"v1\"\r\n"), "{head:?}");
                "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-4/10\r\n\
                 ETag: \"v1\"\r\nContent-Length: 3\r\n\r\ncde"
                    .to_owned()
            } else if lower.contains("\r\nrange: bytes=99-\r\n") {
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */10\r\n\
                 Content-Length: 0\r\n\r\n"
                    .to_owned()
            } else {
                let length = method.len();
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{method}")
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await;
    let gateway = gateway_to(&origin).await;
    for version in VERSIONS {
        let ranged = ["--range", "2-4", "--header", "if-range: \"v1\"", version];
        let got = gateway.https(HOST, "/", &ranged).await;
        assert_eq!((got.status, got.text().as_str()), (206, "cde"), "{version}");
        assert_eq!(got.field("content-range"), Some("bytes 2-4/10"));
        assert_eq!(got.field("etag"), Some("\"v1\""));
        let got = gateway.https(HOST, "/", &["--range", "99-", version]).await;
        assert_eq!((got.exit, got.status), (0, 416), "{version}");
        assert_eq!(got.field("content-range"), Some("bytes */10"));
        for method in ["DELETE", "OPTIONS", "PROPFIND", "PATCH", "M-SEARCH", "get"] {
            let got = gateway
                .https(HOST, "/", &["--request", method, version])
                .await;
            assert_eq!(
                (got.status, got.text().as_str()),
                (200, method),
                "{version}"
            );
        }
    }
    gateway.stop().await;
}

/// C11: curl as a client of HTTP/1.0, with bodies of every framing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_is_answered_and_closed() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n",
        "HTTP/1.1 200 OK\r\n\r\nabc",
        "HTTP/1.0 200 OK\r\n\r\nabc",
    ] {
        let origin = Origin::blunt("127.64.0.2", answer).await;
        let gateway = gateway_to(&origin).await;
        // In clear: over TLS curl would offer a protocol that nobody else knows.
        let got = gateway
            .http("c0.compute.localhost", "/", &["--http1.0"])
            .await;
        assert_eq!((got.exit, got.status), (0, 200), "{answer:?}");
        assert_eq!(got.text(), "abc", "{answer:?}");
        assert_eq!(got.field("transfer-encoding"), None, "{answer:?}");
        gateway.stop().await;
    }
}

/// C17: a hundred downloads at once on one connection of HTTP/2.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_downloads_at_once_are_all_whole() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = gateway_to(&origin).await;
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("#1").display().to_string();
    let host = format!("https://{HOST}:{}", gateway.addresses.https.port());
    let urls = format!("{host}/download?mib=1&n=[1-100]");
    for version in VERSIONS {
        let more = [
            "--parallel",
            "--parallel-max",
            "100",
            "--output",
            &out,
            "--url",
            &urls,
            version,
        ];
        let got = gateway.https(HOST, "/empty", &more).await;
        assert_eq!(got.exit, 0, "{version}");
        for number in 1..=100 {
            let file = folder.path().join(number.to_string());
            assert_eq!(
                file.metadata().unwrap().len(),
                1 << 20,
                "{version} {number}"
            );
            std::fs::remove_file(file).unwrap();
        }
    }
    gateway.stop().await;
}
