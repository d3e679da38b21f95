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

const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// A trace that is one goes on with its state; what is none is replaced, over both versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn traces_go_on_or_begin_anew() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 443, origin.address);
    for flag in ["--http1.1", "--http2"] {
        for (parents, state, expected) in [
            (&[GOOD][..], "a=1,b=2", Some((GOOD, Some("a=1,b=2")))),
            (&[GOOD], "not a state", Some((GOOD, None))),
            (&["00-not-a-trace-01"], "a=1", None),
            (&[GOOD, GOOD], "a=1", None),
            (
                &["00-00000000000000000000000000000000-b7ad6b7169203331-01"],
                "a=1",
                None,
            ),
        ] {
            let mut fields: Vec<_> = parents
                .iter()
                .map(|p| format!("traceparent: {p}"))
                .collect();
            fields.push(format!("tracestate: {state}"));
            let mut more = vec![flag];
            for field in &fields {
                more.extend(["--header", field.as_str()]);
            }
            let told = gateway.https(HOST, "/", &more).await.json();
            let (parent, state) = (seen(&told, "traceparent"), seen(&told, "tracestate"));
            match expected {
                Some((same, kept)) => {
                    assert_eq!(parent, [same], "{flag}");
                    assert_eq!(state, kept.into_iter().collect::<Vec<_>>(), "{flag}");
                }
                None => {
                    let [new] = parent[..] else {
                        panic!("{parent:?}")
                    };
                    assert_eq!((new.len(), new.get(..3)), (55, Some("00-")), "{new}");
                    assert!(!parents.contains(&new));
                    assert!(state.is_empty(), "{state:?}");
                }
            }
        }
        let more = [flag, "--header", "tracestate: a=1"];
        let told = gateway.https(HOST, "/", &more).await.json();
        assert!(seen(&told, "traceparent").is_empty() && seen(&told, "tracestate").is_empty());
    }
    gateway.stop().await;
}

/// S2, S15, S19: nothing that says who a client is survives, however it is written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_spelling_of_a_claim_reaches_an_upstream() {
    let origin = Origin::friendly("127.64.0.2").await;
    let gateway = Gateway::start(Options::default()).await;
    Table::of(&gateway).run("c1", 443, origin.address);
    let claims = [
        "X-Forwarded-For",
        "x_forwarded_for",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X_FORWARDED_PROTO",
        "X-Forwarded-Server",
        "Forwarded",
        "X-Real-IP",
        "X_Real_IP",
        "X-Request-Id",
        "x_request_id",
        "Client-Cert",
        "client_cert_chain",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Keep-Alive",
    ];
    let fields = claims.map(|name| format!("{name}: 6.6.6.6"));
    for flag in ["--http1.1", "--http2"] {
        let mut more = vec![flag];
        for field in fields
            .iter()
            // Over HTTP/2 these are malformed.
            .filter(|field| flag == "--http1.1" || !is_of_the_connection(field))
        {
            more.extend(["--header", field.as_str()]);
        }
        let got = gateway.https(HOST, "/", &more).await;
        assert_eq!(got.status, 200, "{flag}");
        let told = got.json();
        let text = told["fields"].to_string();
        assert!(!text.contains("6.6.6.6"), "{flag}: {text}");
        assert_eq!(seen(&told, "x-forwarded-for"), ["127.0.0.1"], "{flag}");
        assert_eq!(seen(&told, "x-request-id"), got.all("x-request-id"));
    }
    gateway.stop().await;
}

fn is_of_the_connection(field: &str) -> bool {
    field.starts_with("Proxy-Connection") || field.starts_with("Keep-Alive")
}

/// Lists of a route judge the client, over both versions: the peer, or whom a trusted proxy names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_of_a_route_judge_the_client() {
    let origin = Origin::friendly("127.64.0.2").await;
    let target = origin.address;
    let routes = format!(
        "routes:\n\
         \x20 - {{host: open.localhost, target: '{target}', deny: [192.0.2.66]}}\n\
         \x20 - {{host: few.localhost, target: '{target}', allow: [192.0.2.0/24, '2001:db8::/32']}}\n\
         \x20 - {{host: own.localhost, target: '{target}', allow: [127.0.0.0/8]}}\n"
    );
    for (is_trusted, cases) in [
        (
            false,
            &[
                ("open.localhost", "192.0.2.66", 200),
                ("few.localhost", "192.0.2.1", 403),
                ("own.localhost", "192.0.2.1", 200),
            ][..],
        ),
        (
            true,
            &[
                ("open.localhost", "192.0.2.66", 403),
                ("open.localhost", "192.0.2.1", 200),
                ("few.localhost", "192.0.2.1", 200),
                ("few.localhost", "::ffff:192.0.2.1", 200),
                ("few.localhost", "2001:db8::1", 200),
                ("few.localhost", "198.51.100.1, 192.0.2.1", 200),
                ("few.localhost", "192.0.2.1, 198.51.100.1", 403),
                // What cannot be read is nobody: the proxy itself is judged.
                ("few.localhost", "192.0.2.1, nonsense", 403),
                ("own.localhost", "192.0.2.1", 403),
            ],
        ),
    ] {
        let mut options = Options::routes(routes.clone());
        if is_trusted {
            options = options.flag("--trusted-proxies", "127.0.0.1");
        }
        let gateway = Gateway::start(options).await;
        for (host, chain, status) in cases {
            let claim = format!("x-forwarded-for: {chain}");
            for flag in ["--http1.1", "--http2"] {
                let got = gateway.https(host, "/", &[flag, "--header", &claim]).await;
                assert_eq!(got.status, *status, "{host} {chain} {flag}");
            }
        }
        gateway.stop().await;
    }
}
