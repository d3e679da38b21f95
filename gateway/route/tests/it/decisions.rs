//! Who gets what.

use std::net::IpAddr;

use edd_route::decide::{HttpDecision, RawRefusal, SshRefusal, TlsDecision};
use edd_route::{Door, Host, UserId};

use crate::support::{ask, brief, container, key, route, writer};

const ID_SUFFIX: &str = ".compute.cloud.example.com";

#[test]
fn the_host_chooses_first_then_the_longest_path() {
    let writer = writer(
        vec![
            route("api.example.com", "/", "root:1"),
            route("api.example.com", "/compute", "compute:1"),
            route("api.example.com", "/compute/deep/", "deep:1"),
            route("*.example.com", "/", "wild:1"),
            route("bare.example.com", "/only", "only:1"),
        ],
        vec![],
    );
    for (host, path, expected) in [
        ("api.example.com", "/", "root:1"),
        ("API.Example.Com.", "/", "root:1"),
        ("api.example.com:8443", "/x", "root:1"),
        ("api.example.com", "/compute", "compute:1"),
        ("api.example.com", "/compute/", "compute:1"),
        ("api.example.com", "/compute/x", "compute:1"),
        ("api.example.com", "/computer", "root:1"),
        ("api.example.com", "/Compute", "root:1"),
        ("api.example.com", "/compute%2Fx", "root:1"),
        ("api.example.com", "/compute/deep", "deep:1"),
        ("api.example.com", "/compute/deep/er/still", "deep:1"),
        ("api.example.com", "/compute/deeper", "compute:1"),
        ("other.example.com", "/x", "wild:1"),
        ("a.b.example.com", "/", "404"),
        ("example.com", "/", "404"),
        ("bare.example.com", "/only/x", "only:1"),
        ("bare.example.com", "/", "404"),
        ("evil.test", "/", "404"),
        ("api.example.com", "/a/../b", "400"),
        ("api.example.com", "/%2e%2e/b", "400"),
    ] {
        let decision = ask(writer.table(), Door::PublicHttps, host, path);
        assert_eq!(brief(&decision), expected, "{host}{path}");
    }
}

#[test]
fn static_routes_are_never_served_on_dynamic_ports() {
    let writer = writer(vec![route("api.example.com", "/", "root:1")], vec![]);
    let on = |door| brief(&ask(writer.table(), door, "api.example.com", "/"));
    assert_eq!(on(Door::PublicHttps), "root:1");
    assert_eq!(on(Door::PublicHttp), "308");
    assert_eq!(on(Door::Dynamic(8000)), "404");
}

#[test]
fn allow_and_deny_lists_keep_clients_out() {
    let mut inner = route("a.example.com", "/", "a:1");
    inner.allow = vec!["203.0.113.0/24".parse().unwrap()];
    let mut outer = route("b.example.com", "/", "b:1");
    outer.allow.clone_from(&inner.allow);
    outer.deny = vec!["203.0.113.7/32".parse().unwrap()];
    let writer = writer(vec![inner, outer], vec![]);
    let to = |host| brief(&ask(writer.table(), Door::PublicHttps, host, "/"));
    assert_eq!(to("a.example.com"), "a:1");
    assert_eq!(to("b.example.com"), "403");
    let route = writer.table().statics().iter().next().unwrap();
    assert!(route.admits("::ffff:203.0.113.9".parse::<IpAddr>().unwrap()));
    assert!(!route.admits("198.51.100.1".parse::<IpAddr>().unwrap()));
}

#[test]
fn a_containers_name_needs_the_whole_suffix() {
    let writer = writer(vec![], vec![container("abc", &[(443, 8080)])]);
    for (host, expected) in [
        ("abc.compute.cloud.example.com", "abc 10.0.0.1:8080"),
        ("ABC.Compute.cloud.example.com", "abc 10.0.0.1:8080"),
        ("abc.evil.example", "404"),
        ("abc.compute.cloud.example.com.evil.test", "404"),
        ("x.abc.compute.cloud.example.com", "404"),
        ("compute.cloud.example.com", "404"),
        ("abccompute.cloud.example.com", "404"),
    ] {
        let decision = ask(writer.table(), Door::PublicHttps, host, "/");
        assert_eq!(brief(&decision), expected, "{host}");
    }
}

#[test]
fn a_container_needs_to_run_to_have_the_rule_and_to_be_switched_on() {
    let mut stopped = container("stopped", &[(443, 8080)]);
    stopped.running = None;
    let mut off = container("off", &[(443, 8080), (80, 8080), (8000, 8080)]);
    off.https_enabled = false;
    let writer = writer(
        vec![],
        vec![
            container("both", &[(80, 3000), (443, 8080)]),
            container("only", &[(443, 8080)]),
            container("plain", &[(80, 3000)]),
            container("dyn", &[(8000, 7000)]),
            container("pass", &[(443, 8443)]),
            stopped,
            off,
        ],
    );
    for (door, id, expected) in [
        (Door::PublicHttps, "both", "both 10.0.0.1:8080"),
        (Door::PublicHttp, "both", "both 10.0.0.1:3000"),
        (Door::PublicHttp, "only", "308"),
        (Door::PublicHttps, "plain", "404"),
        (Door::PublicHttps, "stopped", "404"),
        (Door::PublicHttp, "stopped", "404"),
        (Door::PublicHttps, "off", "404"),
        (Door::PublicHttp, "off", "off 10.0.0.1:8080"),
        (Door::Dynamic(8000), "off", "off 10.0.0.1:8080"),
        (Door::Dynamic(8000), "dyn", "dyn 10.0.0.1:7000"),
        (Door::Dynamic(8001), "dyn", "404"),
        (Door::PublicHttps, "pass", "421"),
        (Door::PublicHttps, "nobody", "404"),
    ] {
        let decision = ask(writer.table(), door, &format!("{id}{ID_SUFFIX}"), "/");
        assert_eq!(brief(&decision), expected, "{door:?} {id}");
    }
}

#[test]
fn static_hosts_win_over_containers() {
    let host = format!("abc{ID_SUFFIX}");
    let writer = writer(
        vec![route(&host, "/", "static:1")],
        vec![container("abc", &[(443, 8443)])],
    );
    let decision = ask(writer.table(), Door::PublicHttps, &host, "/");
    assert_eq!(brief(&decision), "static:1");
    let sni = Host::parse(&host).unwrap();
    let tls = writer.table().decide_tls(Door::PublicHttps, Some(&sni));
    assert!(matches!(tls, TlsDecision::Terminate), "{tls:?}");
}

#[test]
fn tls_is_passed_through_terminated_or_closed_by_its_name() {
    let writer = writer(
        vec![route("s.example.com", "/", "s:1")],
        vec![
            container("pass", &[(443, 8443), (8001, 443)]),
            container("term", &[(443, 8080), (8002, 8080)]),
        ],
    );
    let of = |door, name: Option<&str>| {
        let host = name.map(|name| Host::parse(name).unwrap());
        match writer.table().decide_tls(door, host.as_ref()) {
            TlsDecision::Close(_) => "close".to_owned(),
            TlsDecision::Passthrough(to) => to.upstream.to_string(),
            TlsDecision::Terminate => "terminate".to_owned(),
        }
    };
    let (pass, term) = (format!("pass{ID_SUFFIX}"), format!("term{ID_SUFFIX}"));
    for (door, name, expected) in [
        (Door::PublicHttps, None, "terminate"),
        (Door::PublicHttps, Some("s.example.com"), "terminate"),
        (Door::PublicHttps, Some("unknown.test"), "terminate"),
        (Door::PublicHttps, Some(pass.as_str()), "10.0.0.1:8443"),
        (Door::PublicHttps, Some(term.as_str()), "terminate"),
        (Door::Dynamic(8001), Some(pass.as_str()), "10.0.0.1:443"),
        (Door::Dynamic(8001), Some(term.as_str()), "close"),
        (Door::Dynamic(8001), Some("s.example.com"), "close"),
        (Door::Dynamic(8001), None, "10.0.0.1:443"),
        (Door::Dynamic(8002), Some(term.as_str()), "terminate"),
        (Door::Dynamic(8002), None, "close"),
        (Door::Dynamic(8003), None, "close"),
    ] {
        assert_eq!(of(door, name), expected, "{door:?} {name:?}");
    }
}

#[test]
fn raw_bytes_go_to_the_one_running_owner_of_the_port() {
    let mut stopped = container("stopped", &[(8000, 1), (8002, 2)]);
    stopped.running = None;
    let writer = writer(
        vec![],
        vec![
            container("a", &[(8000, 7000), (8001, 7001)]),
            container("b", &[(8001, 7001)]),
            stopped,
        ],
    );
    let table = writer.table();
    assert_eq!(
        table.decide_raw(8000).map(|to| to.upstream.port()),
        Ok(7000)
    );
    assert_eq!(table.decide_raw(8001).unwrap_err(), RawRefusal::Ambiguous);
    assert_eq!(table.decide_raw(8002).unwrap_err(), RawRefusal::NoOwner);
    assert_eq!(table.decide_raw(8003).unwrap_err(), RawRefusal::NoOwner);
    assert!(table.port_has_rules(8002));
    assert!(!table.port_has_rules(8003));
}

#[test]
fn ssh_needs_container_switch_and_the_owners_key() {
    let mut on = container("abc", &[]);
    on.ssh_enabled = true;
    let mut stopped = container("stopped", &[]);
    (stopped.ssh_enabled, stopped.running) = (true, None);
    let mut writer = writer(vec![], vec![on, stopped, container("off", &[])]);
    writer.put_keys(UserId(1), vec![key(7, "SHA256:mine")]);
    writer.put_keys(UserId(2), vec![key(8, "SHA256:theirs")]);
    let login = |name, print| {
        let found = writer.table().decide_ssh(name, print)?;
        Ok((found.unix_user, found.key_id))
    };
    let root = |user: &str| Ok((user.to_owned(), 7));
    for (name, print, expected) in [
        ("abc", "SHA256:mine", root("root")),
        ("dev.abc", "SHA256:mine", root("dev")),
        ("first.last.abc", "SHA256:mine", root("first.last")),
        ("abc", "SHA256:theirs", Err(SshRefusal::WrongKey)),
        ("abc", "", Err(SshRefusal::WrongKey)),
        ("off", "SHA256:mine", Err(SshRefusal::Off)),
        ("stopped", "SHA256:mine", Err(SshRefusal::NotRunning)),
        ("nobody", "SHA256:mine", Err(SshRefusal::Unknown)),
        ("root", "SHA256:mine", Err(SshRefusal::Unknown)),
        ("", "SHA256:mine", Err(SshRefusal::BadName)),
        (".abc", "SHA256:mine", Err(SshRefusal::BadName)),
        ("-oProxy.abc", "SHA256:mine", Err(SshRefusal::BadName)),
        ("a b.abc", "SHA256:mine", Err(SshRefusal::BadName)),
        ("dev.", "SHA256:mine", Err(SshRefusal::BadName)),
    ] {
        assert_eq!(login(name, print), expected, "{name:?} {print:?}");
    }
}

#[test]
fn stripping_a_prefix_keeps_the_rest() {
    let mut spec = route("a.example.com", "/sse/info/", "a:1");
    spec.strip_prefix = true;
    let writer = writer(vec![spec], vec![]);
    let HttpDecision::Static(found) = ask(
        writer.table(),
        Door::PublicHttps,
        "a.example.com",
        "/sse/info/x",
    ) else {
        panic!("a static route")
    };
    assert_eq!(found.upstream_path("/sse/info/x"), "/x");
    assert_eq!(found.upstream_path("/sse/info"), "/");
}
