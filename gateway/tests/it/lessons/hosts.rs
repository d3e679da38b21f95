//! Names and ports: who is meant, by which listener.

use crate::support::ask::{Asker, H1, H2, Question, Speaks, unwatched};
use crate::support::client::{Greeting, dial, request};
use crate::support::containers::Containers;
use crate::support::{Gateway, Options, Origin};

use super::spy::{Spy, fields, gateway, values};

/// S5: static routes were served in clear on every port but 80, and on all dynamic ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn static_routes_are_served_by_https_alone() {
    let spy = Spy::on("127.0.0.1").await;
    let routes = format!(
        "routes:\n- {{host: core.test, target: '{}'}}\n",
        spy.origin.address
    );
    let gateway = Gateway::start(Options::routes(routes)).await;
    // A container opens the port, so that somebody listens there at all.
    let mut containers = Containers::of(&gateway);
    let port = gateway.port(0);
    let other = crate::support::containers::web("127.64.0.2".parse().unwrap(), "other").await;
    containers.run("a1", other.ip(), &[(port.port(), other.port())]);
    let answer = request(&mut dial(gateway.addresses.http).await, "core.test").await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    let answer = request(&mut dial(port).await, "core.test").await;
    assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    // The port closes TLS whose name it has no rule for.
    assert!(Greeting::anyone("core.test").dial(port).await.is_err());
    for host in ["a1.compute.localhost", "core.test"] {
        let greeting = Greeting::anyone("a1.compute.localhost");
        let mut stream = greeting.dial(port).await.unwrap();
        let answer = request(&mut stream, host).await;
        let served = answer.starts_with("HTTP/1.1 200 ");
        assert_eq!(served, host != "core.test", "{host}: {answer}");
    }
    assert!(!spy.was_dialled());
    let got = gateway.https("core.test", "/", &[]).await;
    assert_eq!(got.status, 200);
    assert!(spy.was_dialled());
    gateway.stop().await;
}

/// S6: the first label of any name was taken for a container. C24: any name with the platform's
/// suffix somewhere inside was, too, so that a static host of that form could not be served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_containers_name_is_its_whole_name() {
    let statics = Origin::friendly("127.0.0.1").await;
    let routes = format!(
        "routes:\n- {{host: spy1.compute.localhost.example.test, target: '{0}'}}\n\
         - {{host: a.compute.localhost.example, target: '{0}'}}\n",
        statics.address
    );
    let spy = Spy::on("127.64.0.2").await;
    let gateway = Gateway::start(Options::routes(routes)).await;
    let mut table = crate::support::Table::of(&gateway);
    table.run("spy1", 80, spy.origin.address);
    for host in [
        "spy1.evil.example",
        "spy1.localhost",
        "spy1.compute.localhost.evil.example",
        "spy1.compute.localhostx",
        "spy1.xcompute.localhost",
        "x.spy1.compute.localhost",
        "spy1compute.localhost",
        ".compute.localhost",
        "spy1",
        "compute.localhost",
    ] {
        let answer = request(&mut dial(gateway.addresses.http).await, host).await;
        let refused = answer.starts_with("HTTP/1.1 404 ") || answer.starts_with("HTTP/1.1 400 ");
        assert!(refused, "{host}: {answer}");
    }
    assert!(!spy.was_dialled());
    for host in [
        "spy1.compute.localhost.example.test",
        "a.compute.localhost.example",
    ] {
        assert_eq!(gateway.https(host, "/", &[]).await.status, 200, "{host}");
    }
    gateway.stop().await;
}

/// S7: the name in the TLS greeting routed, and any Host went through to that upstream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_host_routes_and_must_be_covered_by_the_certificate() {
    let (one, two) = (Spy::on("127.0.0.1").await, Spy::on("127.0.0.1").await);
    let routes = format!(
        "routes:\n- {{host: one.localhost, target: '{}'}}\n\
         - {{host: two.localhost, target: '{}'}}\n\
         - {{host: else.test, target: '{}'}}\n",
        one.origin.address, two.origin.address, one.origin.address
    );
    // Certificates of one's own, so that one of them covers two hosts and not the third.
    let folder = std::sync::Arc::new(tempfile::TempDir::new().unwrap());
    for (place, names) in [
        ("certs", &["one.localhost", "two.localhost"][..]),
        ("certs/other", &["else.test"]),
    ] {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
        let leaf = rcgen::CertificateParams::new(names).unwrap();
        let leaf = leaf.self_signed(&key).unwrap();
        let place = folder.path().join(place);
        std::fs::create_dir_all(&place).unwrap();
        std::fs::write(place.join("tls.crt"), leaf.pem()).unwrap();
        std::fs::write(place.join("tls.key"), key.serialize_pem()).unwrap();
    }
    let options = Options {
        folder: Some(folder),
        ..Options::routes(routes)
    };
    let gateway = Gateway::start(options).await;
    for (host, status, spy) in [
        ("one.localhost", 200, Some(&one)),
        ("two.localhost", 200, Some(&two)),
        ("TWO.localhost.", 200, Some(&two)),
        ("else.test", 421, None),
        ("nobody.test", 421, None),
    ] {
        let greeting = Greeting {
            name: "one.localhost",
            ca: None,
            alpn: &[b"h2"],
        };
        let tls = greeting.dial(gateway.addresses.https).await.unwrap();
        let mut asker = Asker::H2(H2::on(tls).await);
        let heard = asker.ask(&Question::get(host, "/x"), &unwatched()).await;
        assert_eq!(heard.status, status, "h2 {host}: {heard:?}");
        let mut stream = Greeting::anyone("one.localhost")
            .dial(gateway.addresses.https)
            .await
            .unwrap();
        let answer = request(&mut stream, host).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "h1 {host}: {answer}"
        );
        assert_eq!(
            one.heads().len(),
            if spy.is_some_and(|s| std::ptr::eq(s, &one)) {
                2
            } else {
                0
            }
        );
        assert_eq!(
            two.heads().len(),
            if spy.is_some_and(|s| std::ptr::eq(s, &two)) {
                2
            } else {
                0
            }
        );
    }
    gateway.stop().await;
}

/// C1: `/compute` matched `/computer`, `/health` matched `/healthz`, `/ws` matched `/wsx`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prefixes_end_at_segments() {
    let mut spies = Vec::new();
    let mut routes = String::from("routes:\n");
    for path in [
        "/",
        "/compute",
        "/health",
        "/sse",
        "/sse/health",
        "/logs/download",
    ] {
        let spy = Spy::on("127.0.0.1").await;
        routes.push_str(&format!(
            "- {{host: api.test, path: {path}, target: '{}'}}\n",
            spy.origin.address
        ));
        spies.push((path, spy));
    }
    let gateway = Gateway::start(Options::routes(routes)).await;
    for (path, expected) in [
        ("/", "/"),
        ("/compute", "/compute"),
        ("/compute/", "/compute"),
        ("/compute/x?y=/health", "/compute"),
        ("/computer", "/"),
        ("/compute%2Fx", "/"),
        ("/Compute", "/"),
        ("/health", "/health"),
        ("/healthz", "/"),
        ("/sse/health", "/sse/health"),
        ("/sse/healthy", "/sse"),
        ("/sse/progress", "/sse"),
        ("/ssex", "/"),
        ("/logs", "/"),
        ("/logs/download/1", "/logs/download"),
        ("//compute", "/"),
    ] {
        for version in ["--http1.1", "--http2"] {
            let got = gateway.https("api.test", path, &[version]).await;
            assert_eq!((got.status, got.text().as_str()), (200, path), "{version}");
            let asked: Vec<_> = spies
                .iter()
                .filter(|(_, spy)| !spy.heads().is_empty())
                .map(|(path, _)| *path)
                .collect();
            assert_eq!(asked, [expected], "{path} {version}");
        }
    }
    gateway.stop().await;
}

/// C18: a rule for one port was rewritten to another, so that a port with a meaning elsewhere never
/// worked. C19: what 80 and 443 mean hung on the numbers that the listeners were bound to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_name_doors_by_role_and_ports_by_number() {
    let (plain, secure, dynamic) = (
        Spy::on("127.64.0.2").await,
        Spy::on("127.64.0.2").await,
        Spy::on("127.64.0.2").await,
    );
    let gateway = Gateway::start(Options::default()).await;
    let mut containers = Containers::of(&gateway);
    let port = gateway.port(0);
    let rules = [
        (80, plain.origin.address.port()),
        (443, secure.origin.address.port()),
        (port.port(), dynamic.origin.address.port()),
    ];
    containers.run("a1", "127.64.0.2".parse().unwrap(), &rules);
    let host = "a1.compute.localhost";
    // By no listener is the port the one that the rule names, except on the dynamic port.
    assert_ne!(gateway.addresses.http.port(), 80);
    assert_ne!(gateway.addresses.https.port(), 443);
    let answer = request(&mut dial(gateway.addresses.http).await, host).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(gateway.https(host, "/", &[]).await.status, 200);
    let answer = request(&mut dial(port).await, host).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let mut stream = Greeting::anyone(host).dial(port).await.unwrap();
    let answer = request(&mut stream, host).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(plain.heads().len(), 1);
    assert_eq!(secure.heads().len(), 1);
    assert_eq!(dynamic.heads().len(), 2);
    // Only a rule for 443: port 80 redirects, to where the public finds it.
    containers.run("a2", "127.64.0.2".parse().unwrap(), &rules[1..2]);
    let host = "a2.compute.localhost";
    let answer = request(&mut dial(gateway.addresses.http).await, host).await;
    assert!(answer.starts_with("HTTP/1.1 308 "), "{answer}");
    let location = format!("location: https://{host}/\r\n");
    assert!(answer.to_ascii_lowercase().contains(&location), "{answer}");
    gateway.stop().await;
}

/// C21: hosts were compared with their case and their trailing dot, paths decoded here and raw
/// there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_the_same_in_any_case_and_paths_stay_raw() {
    let (gateway, _table, spy) = gateway().await;
    for host in [
        "spy1.compute.localhost",
        "SPY1.Compute.LocalHost",
        "spy1.compute.localhost.",
        "SPY1.compute.localhost.:8080",
    ] {
        for speaks in [Speaks::H1, Speaks::H2] {
            let mut asker = Asker::dial(speaks, gateway.addresses.http).await;
            let question = Question::get(host, "/a%2Fb//c");
            let heard = asker.ask(&question, &unwatched()).await;
            assert!(heard.is(200, "/a%2Fb//c"), "{host} {speaks:?}: {heard:?}");
            let head = spy.heads().pop().expect("one");
            assert_eq!(values(&fields(&head), "host"), [host], "{head}");
        }
        let mut h1 = H1::dial(gateway.addresses.http).await;
        h1.say(format!(
            "GET http://{host}/x HTTP/1.1\r\nHost: other.test\r\n\r\n"
        ))
        .await;
        let heard = h1.answer(false, &unwatched()).await;
        assert!(heard.is(200, "/x"), "{host}: {heard:?}");
        let head = spy.heads().pop().expect("one");
        assert_eq!(values(&fields(&head), "host"), [host], "{head}");
    }
    // The name of the greeting, too.
    for name in ["SPY2.compute.LOCALHOST", "spy2.compute.localhost"] {
        let mut stream = Greeting::anyone(name)
            .dial(gateway.addresses.https)
            .await
            .unwrap();
        let answer = request(&mut stream, "spy2.compute.localhost").await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{name}: {answer}");
    }
    gateway.stop().await;
}

/// C25: the wildcard certificate covered one label too few, so that no container's page could be
/// verified.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_containers_page_is_verified_by_its_name() {
    let (gateway, _table, _spy) = gateway().await;
    let ca = gateway.ca();
    for (name, port) in [
        ("spy2.compute.localhost", gateway.addresses.https),
        ("spy3.compute.localhost", gateway.port(0)),
        ("localhost", gateway.addresses.https),
    ] {
        for alpn in [&[&b"h2"[..]][..], &[b"http/1.1"]] {
            let greeting = Greeting {
                name,
                ca: Some(&ca),
                alpn,
            };
            greeting
                .dial(port)
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }
    // Verified by curl, as every request of these tests by TLS is.
    let got = gateway.https("spy2.compute.localhost", "/", &[]).await;
    assert_eq!((got.exit, got.status), (0, 200));
    gateway.stop().await;
}
