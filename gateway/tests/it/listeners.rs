//! What listens where, by role and not by number, and what it takes to start.

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::control::get;
use crate::support::client::{Greeting, dial, request};
use crate::support::{Gateway, Options, Origin, Table, eventually, read_head};

/// Answers each request with one word.
async fn saying(ip: &str, word: &'static str) -> Origin {
    Origin::raw(ip, move |_, mut stream: TcpStream| async move {
        while !read_head(&mut stream).await.is_empty() {
            let length = word.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{word}");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    })
    .await
}

/// C18: 8443 is a port like any other when the HTTPS listener is elsewhere, and never 443.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_on_port_8443_is_served_there() {
    let (public, dynamic) = (
        saying("127.64.0.2", "public").await,
        saying("127.64.0.3", "dynamic").await,
    );
    let options = Options::default()
        .flag("--ports-addr", "127.0.0.84")
        .flag("--ports", "8443,18080");
    let gateway = Gateway::start(options).await;
    let mut table = Table::of(&gateway);
    table.run("c1", 443, public.address);
    table.run("c2", 8443, dynamic.address);
    table.run("c3", 18080, dynamic.address);
    let ask = async |addr, id: &str| {
        let host = format!("{id}.compute.localhost");
        let mut stream = Greeting::anyone(&host).dial(addr).await.unwrap();
        request(&mut stream, &host).await
    };
    assert!(ask(gateway.port(0), "c2").await.ends_with("dynamic"));
    assert!(ask(gateway.addresses.https, "c1").await.ends_with("public"));
    assert!(ask(gateway.port(1), "c3").await.ends_with("dynamic"));
    // Nobody's rule on one port is somebody's on another: unknown on the public port, closed
    // on a dynamic one.
    let answer = ask(gateway.addresses.https, "c2").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    let unknown = Greeting::anyone("c3.compute.localhost");
    assert!(unknown.dial(gateway.port(0)).await.is_err());
    gateway.stop().await;
}

/// C19: 80 and 443 of a rule name the HTTP and HTTPS listeners, whatever they are bound to;
/// redirects name the public port.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_for_80_and_443_follow_the_roles_of_the_listeners() {
    let origin = saying("127.64.0.2", "here").await;
    let options = Options::routes("routes:\n- host: a.localhost\n  target: 127.0.0.1:9\n")
        .flag("--public-https-port", "4443");
    let gateway = Gateway::start(options).await;
    let mut table = Table::of(&gateway);
    table.run("plain", 80, origin.address);
    table.run("secret", 443, origin.address);
    assert!(!matches!(gateway.addresses.http.port(), 80 | 18080));
    let plain = async |host: &str| request(&mut dial(gateway.addresses.http).await, host).await;
    assert!(plain("plain.compute.localhost").await.ends_with("here"));
    for host in ["a.localhost", "secret.compute.localhost"] {
        let answer = plain(host).await.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 308 "), "{answer}");
        let location = format!("\r\nlocation: https://{host}:4443/\r\n");
        assert!(answer.contains(&location), "{answer}");
    }
    let host = "secret.compute.localhost";
    let mut stream = Greeting::anyone(host)
        .dial(gateway.addresses.https)
        .await
        .unwrap();
    assert!(request(&mut stream, host).await.ends_with("here"));
    gateway.stop().await;
}

/// R8: nothing of a cluster is needed at the start, no NATS, no database, no Kubernetes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_routes_are_served_when_nothing_else_is_there() {
    let origin = saying("127.0.0.1", "here").await;
    let routes = format!(
        "routes:\n- host: a.localhost\n  target: {}\n",
        origin.address
    );
    // Nobody listens on the one, and the other is a file in the way of a folder.
    let options = Options {
        nats_url: Some("nats://127.0.0.1:1".into()),
        ..Options::routes(routes)
    }
    .flag("--database-url", "sqlite:///dev/null/gateway.db");
    let gateway = Gateway::start(options).await;
    let mut stream = Greeting::anyone("a.localhost")
        .dial(gateway.addresses.https)
        .await
        .unwrap();
    assert!(request(&mut stream, "a.localhost").await.ends_with("here"));
    eventually("degraded, but ready", || async {
        let (code, body) = get(gateway.admin, "/readyz").await;
        code == 200 && body["status"] == "degraded"
    })
    .await;
    gateway.stop().await;
}
