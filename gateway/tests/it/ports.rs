//! Dynamic ports: protocols told apart by their first bytes, and where each goes.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::ssh::rig::{Sshd, command, exit_code, unix_user, until_text};
use crate::support::client::{Greeting, dial, hear, leaf, request, say, singly};
use crate::support::containers::{Containers, container_address, echo, is_kept_alive, server, web};
use crate::support::{Curled, DEADLINE, Gateway, Options, REVOCATION, eventually};

async fn gateway() -> (Gateway, Containers, SocketAddr) {
    let gateway = Gateway::start(Options::default()).await;
    let containers = Containers::of(&gateway);
    let port = gateway.port(0);
    (gateway, containers, port)
}

/// Bytes that no protocol begins with.
fn noise(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 256) as u8).collect()
}

/// What accepts TLS for a container, and its certificate.
fn tls_acceptor(name: &str) -> (TlsAcceptor, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), certificate)
}

/// A TLS server that echoes, and its certificate.
pub(crate) async fn tls_echo(addr: SocketAddr, name: &str) -> CertificateDer<'static> {
    let (acceptor, certificate) = tls_acceptor(name);
    server(addr, move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let stream = acceptor.accept(stream).await?;
            let (mut read, mut write) = tokio::io::split(stream);
            tokio::io::copy(&mut read, &mut write).await?;
            write.shutdown().await
        }
    })
    .await;
    certificate
}

#[tokio::test]
async fn a_port_without_a_rule_closes_at_once_and_without_a_reset() {
    let (_gateway, _containers, port) = gateway().await;
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        assert_eq!(say(port, &[]).await.unwrap(), b"");
        quickest = quickest.min(begun.elapsed());
        assert_eq!(say(port, &[b"GET / HTTP/1.1\r\n\r\n"]).await.unwrap(), b"");
    }
    // Not after the half second that other silent clients get.
    assert!(quickest < Duration::from_millis(400), "{quickest:?}");
}

#[tokio::test]
async fn other_bytes_go_raw_to_the_one_owner_and_back_whole() {
    let (_gateway, mut containers, port) = gateway().await;
    let upstream = echo(container_address()).await;
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);
    let sent = noise(1_000_000);
    let (mut read, mut write) = dial(port).await.into_split();
    let send = async {
        write.write_all(&sent).await.unwrap();
        // The end of one direction; the echo of the rest is still to come.
        write.shutdown().await.unwrap();
    };
    let ((), heard) = tokio::join!(send, hear(&mut read));
    assert!(heard.unwrap() == sent);
}

/// What comes after a container has said all it has to say, and how much it has had.
async fn counting_after_its_own_end<S>(stream: S, told: mpsc::Sender<usize>) -> std::io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (mut read, mut write) = tokio::io::split(stream);
    write.write_all(b"all I have").await?;
    write.shutdown().await?;
    let mut had = Vec::new();
    read.read_to_end(&mut had).await?;
    let _ = told.send(had.len()).await;
    Ok(())
}

/// The other direction goes on for as long as the client has something to say.
async fn says_more_after_the_end<S>(stream: S, mut told: mpsc::Receiver<usize>)
where
    S: AsyncRead + AsyncWrite,
{
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = noise(1_000_000);
    // The first bytes say that it is none of the protocols that the gateway knows.
    write.write_all(&sent[..10]).await.unwrap();
    assert_eq!(hear(&mut read).await.unwrap(), b"all I have");
    write.write_all(&sent[10..]).await.unwrap();
    write.shutdown().await.unwrap();
    let had = timeout(DEADLINE, told.recv()).await.expect("in time");
    assert_eq!(had, Some(sent.len()));
}

#[tokio::test]
async fn a_container_that_ends_first_still_gets_all_that_its_client_sends() {
    let (_gateway, mut containers, port) = gateway().await;
    let (tell, told) = mpsc::channel(1);
    let upstream = server((container_address(), 0).into(), move |stream| {
        counting_after_its_own_end(stream, tell.clone())
    })
    .await;
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);
    says_more_after_the_end(dial(port).await, told).await;
}

#[tokio::test]
async fn a_container_that_ends_its_own_tls_first_still_gets_the_rest() {
    let (_gateway, mut containers, port) = gateway().await;
    let (acceptor, own) = tls_acceptor("a1.compute.localhost");
    let (tell, told) = mpsc::channel(1);
    let through = container_address();
    server((through, 8443).into(), move |stream| {
        let (acceptor, tell) = (acceptor.clone(), tell.clone());
        async move { counting_after_its_own_end(acceptor.accept(stream).await?, tell).await }
    })
    .await;
    containers.run("a1", through, &[(port.port(), 8443)]);
    let stream = Greeting::anyone("a1.compute.localhost").dial(port).await;
    let stream = stream.unwrap();
    assert_eq!(leaf(&stream), own);
    says_more_after_the_end(stream, told).await;
}

/// C22: protocols in which the server speaks first hung.
#[tokio::test]
async fn a_server_that_speaks_first_is_heard_after_half_a_second() {
    let (_gateway, mut containers, port) = gateway().await;
    let upstream = server((container_address(), 0).into(), async |mut stream| {
        stream.write_all(b"220 ready\r\n").await?;
        let mut quit = [0; 6];
        stream.read_exact(&mut quit).await?;
        stream.write_all(b"221 bye\r\n").await
    })
    .await;
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);

    let begun = Instant::now();
    let mut stream = dial(port).await;
    let mut banner = [0; 11];
    stream.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"220 ready\r\n");
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(490), "{took:?}");
    stream.write_all(b"QUIT\r\n").await.unwrap();
    assert_eq!(hear(&mut stream).await.unwrap(), b"221 bye\r\n");
}

/// C22: a first segment under four bytes was rejected.
#[tokio::test]
async fn bytes_that_never_become_clear_go_raw_too() {
    let (_gateway, mut containers, port) = gateway().await;
    let upstream = echo(container_address()).await;
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);
    for text in [
        &b"GE"[..],
        b"SSH",
        b"PRI * HTTP/2.0\r\n\r\nS",
        b"get key\r\n",
        b"\x16",
    ] {
        let mut stream = dial(port).await;
        stream.write_all(text).await.unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).await.unwrap();
        assert_eq!(back, text);
        // A client that ends at once is understood without the wait.
        let mut stream = dial(port).await;
        stream.write_all(text).await.unwrap();
        stream.shutdown().await.unwrap();
        let heard = hear(&mut stream).await.unwrap();
        // Half a ClientHello cannot become anything; this is only its first byte.
        assert_eq!(heard, text);
    }
}

#[tokio::test]
async fn ssh_is_answered_by_the_gateway_whoever_owns_the_port() {
    let (_gateway, mut containers, port) = gateway().await;
    let upstream = echo(container_address()).await;
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);
    let mut stream = dial(port).await;
    for byte in b"SSH-2.0-test\r\n" {
        stream.write_all(&[*byte]).await.unwrap();
    }
    let mut banner = [0; 8];
    stream.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0-");
    // What follows is the gateway's key exchange, not an echo.
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(stream.read_u8().await.unwrap());
    }
    assert!(!line.starts_with(b"test"), "{}", line.escape_ascii());
}

/// All at the same time, each held open until the others have been served; with a real `ssh` and a
/// real `sshd`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_port_serves_tls_http_ssh_and_raw_bytes() {
    let ssh_port = crate::support::free_port();
    let options = Options::default().flag("--container-ssh-port", ssh_port.to_string());
    let gateway = Gateway::start(options).await;
    let mut containers = Containers::of(&gateway);
    let port = gateway.port(0);
    let address = container_address();
    let both = server((address, 0).into(), async |mut stream| {
        let mut first = [0; 3];
        stream.read_exact(&mut first).await?;
        if &first == b"GET" {
            let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nweb";
            stream.write_all(answer.as_bytes()).await?;
            return stream.shutdown().await;
        }
        stream.write_all(&first).await?;
        let (mut read, mut write) = stream.split();
        tokio::io::copy(&mut read, &mut write).await.map(|_| ())
    })
    .await;
    containers.run("a1", address, &[(port.port(), both.port())]);
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    key.write_openssh_file(gateway.path("key"), LineEnding::LF)
        .unwrap();
    let fingerprint = key.public_key().fingerprint(HashAlg::Sha256);
    containers.ssh("a1", &fingerprint.to_string());
    let line = std::fs::read_to_string(gateway.path("state/ssh_client_ed25519.pub")).unwrap();
    let at = SocketAddr::new(address, ssh_port);
    let _sshd = Sshd::start(&gateway.path("sshd"), at, line.trim_end(), &[]).await;

    let mut ssh = command("ssh");
    let key = gateway.path("key").display().to_string();
    ssh.args(["-F", "none", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"])
        .args(["-o", "StrictHostKeyChecking=no", "-o", "IdentitiesOnly=yes"])
        .args(["-o", "UserKnownHostsFile=/dev/null", "-i", &key])
        .args(["-p", &port.port().to_string()])
        .args(["-l", &format!("{}.a1", unix_user()), "127.0.0.1", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut ssh = ssh.spawn().unwrap();
    let (mut input, mut back) = (ssh.stdin.take().unwrap(), ssh.stdout.take().unwrap());
    input.write_all(b"by ssh\n").await.unwrap();
    until_text(&mut back, "by ssh").await;
    let mut raw = dial(port).await;
    raw.write_all(b"\0raw").await.unwrap();
    let mut four = [0; 4];
    raw.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"\0raw");
    let ca = gateway.ca();
    let greeting = Greeting {
        name: "a1.compute.localhost",
        ca: Some(&ca),
        alpn: &[b"http/1.1"],
    };
    let mut tls = greeting.dial(port).await.unwrap();
    for _ in 0..3 {
        let answer = request(&mut dial(port).await, "a1.compute.localhost").await;
        assert!(answer.ends_with("web"), "{answer}");
    }
    let answer = request(&mut tls, "a1.compute.localhost").await;
    assert!(answer.ends_with("web"), "{answer}");
    raw.write_all(b"on").await.unwrap();
    raw.read_exact(&mut four[..2]).await.unwrap();
    assert_eq!(&four[..2], b"on");
    input.write_all(b"still\n").await.unwrap();
    until_text(&mut back, "still").await;
    drop(input);
    assert_eq!(exit_code(&mut ssh).await, Some(0));
}

/// The answer to a request that begins with the HTTP/2 preface.
async fn preface(gateway: &Gateway, port: SocketAddr, host: &str) -> Curled {
    let url = format!("http://{host}:{}/", port.port());
    let prior = ["--http2-prior-knowledge"];
    gateway.curl(&url, host, port.port(), &prior).await
}

#[tokio::test]
async fn http_goes_by_host_and_never_raw() {
    let (gateway, mut containers, port) = gateway().await;
    let reached = Arc::new(AtomicUsize::new(0));
    let (one, two) = (
        web(container_address(), "one").await,
        web(container_address(), "two").await,
    );
    containers.run("a1", one.ip(), &[(port.port(), one.port())]);
    containers.run("a2", two.ip(), &[(port.port(), two.port())]);
    for (host, body) in [
        ("a1.compute.localhost", "one"),
        ("a2.compute.localhost", "two"),
    ] {
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let answer = say(port, &singly(text.as_bytes())).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert!(answer.ends_with(body), "{answer}");
        let answer = preface(&gateway, port, host).await;
        assert_eq!((answer.status, &*answer.version), (200, "2"), "{host}");
        assert_eq!(answer.text(), body);
    }

    // Alone on its port, and still not reached by another name.
    containers.stop("a1");
    containers.stop("a2");
    let counter = Arc::clone(&reached);
    let upstream = server((container_address(), 0).into(), move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    })
    .await;
    containers.run("a3", upstream.ip(), &[(port.port(), upstream.port())]);
    for host in [
        "other.compute.localhost",
        "a1.compute.localhost",
        "nobody.example",
    ] {
        let answer = request(&mut dial(port).await, host).await;
        assert!(answer.starts_with("HTTP/1.1 404 "), "{host}: {answer}");
        let answer = preface(&gateway, port, host).await;
        assert_eq!((answer.status, &*answer.version), (404, "2"), "{host}");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn tls_goes_by_name_through_or_is_terminated_here() {
    let (gateway, mut containers, port) = gateway().await;
    let through = container_address();
    let own = tls_echo((through, 8443).into(), "a1.compute.localhost").await;
    let plain = web(container_address(), "plain").await;
    containers.run("a1", through, &[(port.port(), 8443)]);
    containers.run("a2", plain.ip(), &[(port.port(), plain.port())]);

    let mut stream = Greeting::anyone("a1.compute.localhost")
        .dial(port)
        .await
        .unwrap();
    assert_eq!(leaf(&stream), own);
    let sent = noise(100_000);
    let mut back = vec![0; sent.len()];
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let (sending, receiving) = tokio::join!(write.write_all(&sent), read.read_exact(&mut back));
    sending.unwrap();
    receiving.unwrap();
    assert!(back == sent);

    let ca = gateway.ca();
    let greeting = Greeting {
        name: "a2.compute.localhost",
        ca: Some(&ca),
        alpn: &[b"http/1.1"],
    };
    let mut stream = greeting.dial(port).await.unwrap();
    let answer = request(&mut stream, "a2.compute.localhost").await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("plain"),
        "{answer}"
    );

    for name in ["nobody.compute.localhost", "localhost", "127.0.0.1"] {
        let refused = Greeting::anyone(name).dial(port).await.unwrap_err();
        assert_ne!(
            refused.kind(),
            ErrorKind::ConnectionReset,
            "{name}: {refused}"
        );
    }
}

#[tokio::test]
async fn the_public_port_passes_tls_through_by_name_too() {
    let (gateway, mut containers, _port) = gateway().await;
    let https = gateway.addresses.https;
    let through = container_address();
    let own = tls_echo((through, 443).into(), "a1.compute.localhost").await;
    let plain = web(container_address(), "plain").await;
    containers.run("a1", through, &[(443, 443)]);
    containers.run("a2", plain.ip(), &[(443, plain.port())]);

    let mut stream = Greeting::anyone("a1.compute.localhost")
        .dial(https)
        .await
        .unwrap();
    assert_eq!(leaf(&stream), own);
    stream.write_all(b"echo").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(hear(&mut stream).await.unwrap(), b"echo");

    let mut stream = Greeting::anyone("a2.compute.localhost")
        .dial(https)
        .await
        .unwrap();
    let answer = request(&mut stream, "a2.compute.localhost").await;
    assert!(answer.ends_with("plain"), "{answer}");

    // Stopped: the name is nobody's, and the gateway says so in words.
    containers.stop("a1");
    let mut stream = Greeting::anyone("a1.compute.localhost")
        .dial(https)
        .await
        .unwrap();
    assert_ne!(leaf(&stream), own);
    let answer = request(&mut stream, "a1.compute.localhost").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
}

#[tokio::test]
async fn tls_without_a_name_goes_to_a_single_owner_that_speaks_tls() {
    let (gateway, mut containers, port) = gateway().await;
    let through = container_address();
    let own = tls_echo((through, 8443).into(), "a1.compute.localhost").await;
    containers.run("a1", through, &[(port.port(), 8443)]);
    let stream = Greeting::anyone("127.0.0.1").dial(port).await.unwrap();
    assert_eq!(leaf(&stream), own);

    let plain = echo(container_address()).await;
    let other = gateway.port(1);
    containers.run("a2", plain.ip(), &[(other.port(), plain.port())]);
    assert!(Greeting::anyone("127.0.0.1").dial(other).await.is_err());
}

#[tokio::test]
async fn raw_bytes_go_nowhere_when_several_containers_could_take_them() {
    let (_gateway, mut containers, port) = gateway().await;
    let (one, two) = (
        echo(container_address()).await,
        echo(container_address()).await,
    );
    containers.run("a1", one.ip(), &[(port.port(), one.port())]);
    containers.run("a2", two.ip(), &[(port.port(), two.port())]);
    assert_eq!(say(port, &[&noise(10)]).await.unwrap(), b"");
    containers.stop("a2");
    let mut stream = dial(port).await;
    stream.write_all(&noise(10)).await.unwrap();
    let mut back = [0; 10];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(back, noise(10)[..]);
}

#[tokio::test]
async fn a_stop_ends_its_own_raw_connections_and_no_others() {
    let (gateway, mut containers, port) = gateway().await;
    let other = gateway.port(1);
    let (one, two) = (
        echo(container_address()).await,
        echo(container_address()).await,
    );
    containers.run("a1", one.ip(), &[(port.port(), one.port())]);
    containers.run("a2", two.ip(), &[(other.port(), two.port())]);
    let (mut first, mut second) = (dial(port).await, dial(other).await);
    for stream in [&mut first, &mut second] {
        stream.write_all(b"\0").await.unwrap();
        stream.read_u8().await.unwrap();
    }
    let begun = Instant::now();
    containers.stop("a1");
    // A reset: what was heard so far may not be all.
    let end = hear(&mut first).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < REVOCATION);
    second.write_all(b"\0").await.unwrap();
    second.read_u8().await.unwrap();
    eventually("the connection is over", || async {
        gateway.shared.gate.open() == 1
    })
    .await;
}

#[tokio::test]
async fn a_container_that_does_not_answer_is_a_reset() {
    let (_gateway, mut containers, port) = gateway().await;
    containers.run("a1", container_address(), &[(port.port(), 9)]);
    let end = say(port, &[&noise(10)]).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn an_address_that_leads_back_to_us_is_refused() {
    let (gateway, mut containers, port) = gateway().await;
    let own = gateway.addresses.http;
    containers.run("a1", own.ip(), &[(port.port(), own.port())]);
    let end = say(port, &[&noise(10)]).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_stop_ends_a_connection_whose_container_is_still_being_reached() {
    let (gateway, mut containers, port) = gateway().await;
    // A listener with no room left: connecting to it takes as long as one is patient.
    let address = SocketAddr::new(container_address(), 0);
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM.nonblocking(),
        None,
    );
    let socket = socket.unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(0).unwrap();
    let full = socket.local_addr().unwrap().as_socket().unwrap();
    let filling = std::net::TcpStream::connect(full).unwrap();
    containers.run("a1", full.ip(), &[(port.port(), full.port())]);
    let mut stream = dial(port).await;
    stream.write_all(&noise(10)).await.unwrap();
    eventually("it is being reached", || async {
        gateway.shared.gate.upstreams() == 1
    })
    .await;
    let begun = Instant::now();
    containers.stop("a1");
    let end = hear(&mut stream).await.unwrap_err();
    assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    assert!(begun.elapsed() < REVOCATION);
    assert_eq!(gateway.shared.gate.upstreams(), 0);
    drop(filling);
}

/// The client's first bytes stay the first, behind the header, whoever they are for.
#[tokio::test]
async fn containers_that_want_to_know_who_calls_get_a_proxy_header_first() {
    let gateway = Gateway::start(Options {
        flags: vec!["--send-proxy-protocol=told,named:443".into()],
        ..Options::default()
    })
    .await;
    let mut containers = Containers::of(&gateway);
    let (port, other, https) = (gateway.port(0), gateway.port(1), gateway.addresses.https);
    let told = echo(container_address()).await;
    containers.run("told", told.ip(), &[(port.port(), told.port())]);
    let untold = echo(container_address()).await;
    containers.run("untold", untold.ip(), &[(other.port(), untold.port())]);

    let (mut heard, mut own) = (Vec::new(), Vec::new());
    for address in [port, other] {
        let mut stream = dial(address).await;
        own.push(stream.local_addr().unwrap());
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        heard.push(hear(&mut stream).await.unwrap());
    }
    assert_eq!(announced_before(&heard[0]), (own[0], &b"hello"[..]));
    assert_eq!(heard[1], b"hello", "nobody named it");

    // TLS that is passed through: nothing of the handshake is lost or moved.
    let (seen, mut first) = mpsc::channel(1);
    let address = container_address();
    server((address, 443).into(), move |mut stream| {
        let seen = seen.clone();
        async move {
            let mut bytes = vec![0; 28 + 5];
            stream.read_exact(&mut bytes).await?;
            let _ = seen.send(bytes).await;
            Ok(())
        }
    })
    .await;
    containers.run("named", address, &[(443, 443)]);
    let refused = Greeting::anyone("named.compute.localhost")
        .dial(https)
        .await;
    assert!(refused.is_err(), "it has closed");
    let bytes = first.recv().await.unwrap();
    let (client, rest) = announced_before(&bytes);
    assert_eq!(client.ip(), https.ip());
    assert_eq!(rest.first(), Some(&22), "a handshake record");
}

/// Whom the header in front of `bytes` announces, and what follows it.
fn announced_before(bytes: &[u8]) -> (SocketAddr, &[u8]) {
    use edd_detect::proxy::{Announcement, Client, announced};
    match announced(bytes) {
        Announcement::Complete {
            client: Client::Known(client),
            length,
        } => (client, &bytes[length..]),
        other => panic!("{other:?} in front of {bytes:?}"),
    }
}

/// A container that vanished would be waited for until the idle limit.
#[tokio::test]
async fn a_container_that_says_nothing_is_asked_whether_it_lives() {
    let (_gateway, mut containers, port) = gateway().await;
    let upstream = echo(container_address()).await;
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);
    let mut stream = dial(port).await;
    stream.write_all(b"\0").await.unwrap();
    stream.read_u8().await.unwrap();
    eventually("a keepalive's timer", || async { is_kept_alive(upstream) }).await;
}

/// S13: raw connections without a word stayed for ever.
#[tokio::test]
async fn a_raw_connection_ends_after_its_silence_and_not_before() {
    let gateway = Gateway::start(Options::default().flag("--stream-idle-timeout", "1s")).await;
    let mut containers = Containers::of(&gateway);
    let port = gateway.port(0);
    let upstream = echo(container_address()).await;
    containers.run("a1", upstream.ip(), &[(port.port(), upstream.port())]);
    let mut stream = dial(port).await;
    let begun = Instant::now();
    let mut last = begun;
    // Longer than the limit in all, and never silent for as long.
    while begun.elapsed() < Duration::from_millis(1500) {
        stream.write_all(b"\x01here").await.unwrap();
        let mut heard = [0; 5];
        stream.read_exact(&mut heard).await.unwrap();
        last = Instant::now();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Not an end that could be taken for that of the data.
    let end = hear(&mut stream).await;
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let silent = last.elapsed();
    assert!(silent >= Duration::from_millis(950), "{silent:?}");
}
