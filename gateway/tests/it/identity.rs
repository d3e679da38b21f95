//! What upstreams are told about the client, and what clients cannot make them believe.

use serde_json::Value;

use crate::support::{Gateway, Options, Origin, Table};

const HOST: &str = "c1.compute.localhost";

/// All values of a field as the origin saw it.
fn seen<'j>(mirrored: &'j Value, name: &str) -> Vec<&'j str> {
    let fields = mirrored["fields"].as_array().expect("fields");
    fields
        .iter()
        .filter(|field| field[0] == name)
        .filter_map(|field| field[1].as_str())
        .collect()
}

const CLAIMS: [&str; 14] = [
    "--header",
    "x-forwarded-for: 6.6.6.6",
    "--header",
    "x-forwarded-proto: gopher",
    "--header",
    "x-forwarded-host: evil.test",
    "--header",
    "forwarded: for=6.6.6.6",
    "--header",
    "x-request-id: mine-1",
    "--header",
    "connection: keep-alive, x-hop",
    "--header",
    "x-hop: 1",
];

/// S2, S15: upstreams believed the client's own fields.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_cannot_speak_for_others() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 443, origin.address);
    let authority = format!("{HOST}:{}", gateway.addresses.https.port());
    for flag in ["--http1.1", "--http2"] {
        let claims = match flag {
            "--http1.1" => &CLAIMS[..],
            _ => &CLAIMS[..10],
        };
        let got = gateway.https(HOST, "/", &[claims, &[flag]].concat()).await;
        let told = got.json();
        assert_eq!(seen(&told, "host"), [authority.as_str()]);
        assert_eq!(seen(&told, "x-forwarded-for"), ["127.0.0.1"]);
        assert_eq!(seen(&told, "x-forwarded-proto"), ["https"]);
        assert_eq!(seen(&told, "x-forwarded-host"), [authority.as_str()]);
        assert!(seen(&told, "forwarded").is_empty());
        assert!(seen(&told, "x-hop").is_empty());
        let id = seen(&told, "x-request-id");
        assert_eq!(id, got.all("x-request-id"));
        assert_ne!(id, ["mine-1"]);
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_proxy_is_believed_and_its_chain_goes_on() {
    let origin = Origin::friendly("127.64.0.2").await;
    let options = Options::default().flag("--trusted-proxies", "127.0.0.0/8");
    let gateway = Gateway::start(options).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let got = gateway.http(HOST, "/", &CLAIMS).await;
    let told = got.json();
    assert_eq!(seen(&told, "x-forwarded-for"), ["6.6.6.6, 127.0.0.1"]);
    assert_eq!(seen(&told, "x-forwarded-proto"), ["http"]);
    assert_eq!(seen(&told, "x-forwarded-host"), ["evil.test"]);
    assert!(seen(&told, "forwarded")[0].starts_with("for=6.6.6.6, for=127.0.0.1;"));
    assert_eq!(seen(&told, "x-request-id"), ["mine-1"]);
    assert_eq!(got.field("x-request-id"), Some("mine-1"));
    let odd = ["--header", "x-request-id: not valid"];
    let got = gateway.http(HOST, "/", &odd).await;
    assert_ne!(got.field("x-request-id"), Some("not valid"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_cookies_and_absolute_targets_pass() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 80, origin.address);
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let header = format!("traceparent: {trace}");
    let more = ["--header", &header, "--cookie", "a=1; b=2"];
    let told = gateway.http(HOST, "/", &more).await.json();
    assert_eq!(seen(&told, "traceparent"), [trace]);
    assert_eq!(seen(&told, "cookie"), ["a=1; b=2"]);

    // The target's authority wins over the Host field.
    let port = gateway.addresses.http.port();
    let target = format!("http://{HOST}:{port}/x?y=1");
    let more = ["--request-target", &target, "--header", "host: other.test"];
    let told = gateway.http(HOST, "/", &more).await.json();
    assert_eq!(told["target"], "/x?y=1");
    assert_eq!(seen(&told, "host"), [format!("{HOST}:{port}")]);
    gateway.stop().await;
}
