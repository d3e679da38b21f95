//! What the operator is told is what happens.

use edd_route::UserId;

use crate::support::{CLIENT, container, key, route, writer};

#[test]
fn a_static_route_says_its_line_its_target_and_what_it_shadows() {
    let mut writer = writer(
        vec![
            route("a.example.com", "/", "root:1"),
            route("a.example.com", "/x", "x:1"),
        ],
        vec![],
    );
    let _ = writer.publish(5);
    let answer = writer
        .table()
        .explain_url("https://a.example.com/x/y?q=1", CLIENT, |_| false)
        .expect("a good url");
    assert_eq!(answer.outcome, "proxied to x:1 as /x/y");
    assert_eq!(answer.rule.as_deref(), Some("static route a.example.com/x"));
    assert_eq!(answer.origin.as_deref(), Some("routes.yaml:1"));
    assert_eq!(
        answer.shadows,
        ["static route a.example.com/ (routes.yaml:1)"]
    );
    assert_eq!(answer.revision, 5);
}

#[test]
fn containers_say_their_events_and_refusals_their_reason() {
    let mut spec = container("abc", &[(443, 8443), (8000, 7000)]);
    spec.ssh_enabled = true;
    let mut writer = writer(vec![], vec![spec]);
    let url = |url: &str| {
        writer
            .table()
            .explain_url(url, CLIENT, |port| port == 8000)
            .unwrap()
    };
    let answer = url("https://abc.compute.cloud.example.com/");
    assert_eq!(answer.outcome, "TLS is passed through to the container");
    assert_eq!(answer.upstream.as_deref(), Some("10.0.0.1:8443"));
    assert!(answer.origin.unwrap().contains("stream sequence 2"));
    let answer = url("http://abc.compute.cloud.example.com:8000/x");
    assert_eq!(
        answer.rule.as_deref(),
        Some("container abc, ingress rule 8000 -> 7000")
    );
    assert_eq!(
        url("http://abc.compute.cloud.example.com/").outcome,
        "308 to https"
    );
    let answer = url("https://zzz.compute.cloud.example.com/");
    assert_eq!(answer.outcome, "404: no such container");
    assert_eq!(
        url("https://nobody.test").outcome,
        "404: no route for this host"
    );

    assert_eq!(
        writer.table().explain_tcp(8000).upstream.as_deref(),
        Some("10.0.0.1:7000")
    );
    let closed = writer.table().explain_tcp(8001).outcome;
    assert_eq!(
        closed,
        "closed: no running container has a rule for the port"
    );

    assert_eq!(
        writer.table().explain_ssh("abc").outcome,
        "refused: its owner has no key"
    );
    writer.put_keys(UserId(1), vec![key(1, "SHA256:k")]);
    let login = writer.table().explain_ssh("dev.abc").outcome;
    assert_eq!(login, "logs in as dev with one of: SHA256:k");
}

#[test]
fn bad_questions_are_errors() {
    let writer = writer(vec![], vec![]);
    for url in [
        "",
        "a.example.com",
        "ftp://a/",
        "https://",
        "https://a b/",
        "https://[::1/",
    ] {
        assert!(
            writer.table().explain_url(url, CLIENT, |_| false).is_err(),
            "{url}"
        );
    }
}
