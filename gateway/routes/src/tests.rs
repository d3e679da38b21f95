//! What each key means and what each mistake says.

use std::time::Duration;

use edd_route::{HealthSpec, Origin, ProxyHeader, Scheme, StaticRouteSpec};

use crate::{Context, Mistake, parse};

/// `good.pem` is there, other files are not.
fn read_for(text: &str, platform_domain: &str) -> Result<Vec<StaticRouteSpec>, Vec<String>> {
    let read_ca = |file: &str| match file {
        "good.pem" => Ok("PEM".to_owned()),
        _ => Err("is not there".to_owned()),
    };
    let context = Context {
        file: "routes.yaml",
        platform_domain,
        read_ca: &read_ca,
    };
    parse(text, &context).map_err(|mistakes| mistakes.iter().map(Mistake::to_string).collect())
}

fn read(text: &str) -> Result<Vec<StaticRouteSpec>, Vec<String>> {
    read_for(text, "cloud.example.com")
}

#[test]
fn the_shipped_file_is_valid() {
    let text = include_str!("../../../routes.yaml");
    let routes = read_for(text, "cloud.eddisonso.com").expect("valid");
    let targets: Vec<_> = routes.iter().map(StaticRouteSpec::targets_text).collect();
    assert_eq!(
        targets,
        [
            "edd-compute:80",
            "cluster-monitor:80",
            "simple-file-share-frontend:80"
        ]
    );
    assert!(
        matches!(&routes[0].origin, Origin::File { line: 8, .. }),
        "{:?}",
        routes[0]
    );
    assert!(routes[1].strip_prefix);
}

#[test]
fn every_key_is_read() {
    let text = "\
routes:
- host: '*.Example.com.'
  path: /x
  target: http://10.0.0.1:80
  strip_prefix: true
  timeout: 5s
  connect_timeout: 1s
  idle_timeout: 2m
  retries: 0
  fail_on: [503, 502, 503]
  proxy_protocol: v2
  allow: [10.0.0.0/8, '::1']
  deny: [10.1.2.3]
- host: b.example.com
  targets:
    - {target: 'https://One.example:8443', weight: 3}
    - target: '[2001:DB8::1]:90'
    - target: https://two.example
    - target: h2c://three.example
  health: {path: '/healthz?deep=1', interval: 5s, timeout: 500ms}
  ca: good.pem
";
    let routes = read(text).expect("valid");
    let [a, b] = routes.as_slice() else {
        panic!("{routes:?}")
    };
    assert_eq!((a.host.as_str(), a.path.as_str()), ("*.example.com", "/x"));
    assert_eq!(a.targets_text(), "10.0.0.1:80");
    let seconds = |n| Some(Duration::from_secs(n));
    assert_eq!(
        (a.timeout, a.connect_timeout, a.idle_timeout),
        (seconds(5), seconds(1), seconds(120))
    );
    assert_eq!((a.retries, a.fail_on.as_slice()), (0, &[502, 503][..]));
    assert_eq!((a.allow.len(), a.deny.len()), (2, 1));
    assert_eq!(a.proxy_protocol, Some(ProxyHeader::V2));
    assert!(a.strip_prefix && a.ca.is_none() && a.health.is_none());

    assert_eq!(
        b.targets_text(),
        "https://one.example:8443, [2001:db8::1]:90, https://two.example:443, h2c://three.example:80"
    );
    let weights: Vec<_> = b.targets.iter().map(|target| target.weight).collect();
    assert_eq!(weights, [3, 1, 1, 1]);
    let hosts: Vec<_> = b.targets.iter().map(|target| target.host()).collect();
    assert_eq!(
        hosts,
        ["one.example", "2001:db8::1", "two.example", "three.example"]
    );
    assert_eq!(b.targets[0].scheme, Scheme::Https);
    let health = HealthSpec {
        path: "/healthz?deep=1".into(),
        interval: Duration::from_secs(5),
        timeout: Duration::from_millis(500),
    };
    assert_eq!(b.health, Some(health));
    assert_eq!(b.ca.as_ref().map(|ca| ca.pem.as_str()), Some("PEM"));
    assert_eq!(b.retries, 2);
}

#[test]
fn health_has_defaults() {
    let routes = read("routes:\n- {host: a, target: 'b:1', health: {path: /up}}\n").expect("valid");
    let health = routes[0].health.as_ref().expect("checked");
    assert_eq!(health.interval, Duration::from_secs(10));
    assert_eq!(health.timeout, Duration::from_secs(2));
}

#[test]
fn no_routes_is_a_valid_file() {
    assert_eq!(read("routes: []\n"), Ok(Vec::new()));
    assert_eq!(read("routes:\n"), Ok(Vec::new()));
}

#[test]
fn all_mistakes_are_reported_with_line_and_column() {
    let text = "\
routes:
  - host: bad host
    target: a:1
  - host: a.example.com
    path: relative
    target: a
    colour: red
  - host: b.example.com
    target: b:99999
    strip_prefix: perhaps
  - host: x.compute.cloud.example.com
    target: b:1
  - target: b:1
  - host: c.example.com
    path: /x/
    target: c:1
  - host: C.example.com
    path: /x
    target: c:2
  - 7
extra: 1
";
    let mistakes = read(text).expect_err("mistakes");
    let expected = [
        "2:11: host: `bad host` has a character that is not allowed",
        "5:11: path: `relative`: path does not start with a slash",
        "6:13: target: `a` is not host:port",
        "7:5: unknown key `colour`, expected host, path, target, targets, strip_prefix, timeout, \
             connect_timeout, idle_timeout, retries, fail_on, health, ca, proxy_protocol, allow or deny",
        "9:13: target: `b:99999`: bad port `99999`",
        "10:19: strip_prefix: expected true or false, found text",
        "11:11: host: `x.compute.cloud.example.com` lies under compute.cloud.example.com, where containers are",
        "13:5: `host` is missing",
        "17:5: c.example.com/x is routed on line 14 already",
        "20:5: expected a route, found a number",
        "21:1: unknown key `extra`, expected routes",
    ];
    assert_eq!(mistakes, expected);
}

#[test]
fn each_kind_of_bad_file_names_its_place() {
    for (text, place) in [
        ("routes: [", "1:"),
        ("routes:\n  - host: a\n   target: b\n", "3:"),
        ("routes:\n\t- host: a\n", "2:"),
        ("- a\n", "1:1: expected `routes:`, found a list"),
        ("", "1:1: the file is empty"),
        ("a: &x [*x]\n", "1:"),
        ("routes:\n- host: a\n  host: b\n  target: c:1\n", "3:"),
        (
            "routes:\n- {host: a, target: 'ftp://b:1'}\n",
            "2:21: target: unknown scheme",
        ),
        (
            "routes:\n- {host: 'a:80', target: 'b:1'}\n",
            "2:10: host: `a:80` has a port",
        ),
        (
            "routes:\n- {host: a, target: 'b:0'}\n",
            "2:21: target: `b:0`: bad port",
        ),
        (
            "routes:\n- {host: a, target: 'b:1', path: '/a/../b'}\n",
            "2:34: path:",
        ),
        (
            "routes:\n- {host: a, target: 'b:1', path: '/a?b'}\n",
            "2:34: path:",
        ),
        (
            "routes:\n- {host: a, target: 'b:1', timeout: 5}\n",
            "2:37: timeout: expected text",
        ),
        (
            "routes:\n- {host: a, target: 'b:1', deny: [x]}\n",
            "2:35: deny: `x` is not a network",
        ),
        (
            "routes:\n- {host: a, target: 'b:1', deny: []}\n",
            "2:34: deny: the list is empty",
        ),
    ] {
        let mistakes = read(text).expect_err(text);
        let first = mistakes.first().map(String::as_str).unwrap_or_default();
        assert!(first.starts_with(place), "{text:?}: {mistakes:?}");
    }
}

/// One route with these keys; its mistakes.
fn mistakes(keys: &str) -> Vec<String> {
    match read(&format!("routes:\n- {{host: a, {keys}}}\n")) {
        Err(mistakes) => mistakes,
        Ok(routes) => panic!("{keys}: {routes:?}"),
    }
}

#[test]
fn each_mistake_in_a_target_says_what_is_wrong() {
    for (target, expected) in [
        (
            "ftp://b:1",
            "target: unknown scheme ftp://, expected http, h2c or https",
        ),
        ("HTTP://b:1", "target: unknown scheme HTTP://"),
        ("://b:1", "target: unknown scheme ://"),
        ("http://b:1/", "target: `http://b:1/` has a path"),
        ("https://b/x?y", "target: `https://b/x?y` has a path"),
        ("b", "target: `b` is not host:port"),
        (":80", "target: `:80` is not host:port"),
        ("https://", "target: `https://` is not host:port"),
        ("http://:80", "target: `http://:80` is not host:port"),
        ("b:0", "target: `b:0`: bad port `0`"),
        ("b:+80", "target: `b:+80`: bad port `+80`"),
        ("b:65536", "target: `b:65536`: bad port"),
        ("b:", "target: `b:`: bad port ``"),
        (
            "b:1:2",
            "target: `b:1:2`: an IPv6 address stands in brackets",
        ),
        (
            "::1:80",
            "target: `::1:80`: an IPv6 address stands in brackets",
        ),
        ("[::1]", "target: `[::1]` is not host:port"),
        ("[::g]:80", "target: `[::g]:80`: host"),
        ("u@b:80", "target: `u@b:80`: host"),
        ("b c:80", "target: `b c:80`: host"),
    ] {
        let found = mistakes(&format!("target: '{target}'"));
        let expected = format!("2:21: {expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "{target}: {found:?}"
        );
    }
}

#[test]
fn each_mistake_in_several_targets_says_what_is_wrong() {
    let many: Vec<_> = (1..=65).map(|n| format!("{{target: 'b:{n}'}}")).collect();
    let many = format!("targets: [{}]", many.join(", "));
    for (keys, expected) in [
        ("targets: []", "targets: the list is empty"),
        (
            "targets: b:1",
            "targets: expected a list of targets, found text",
        ),
        (
            "targets: ['b:1']",
            "targets: expected `target: …`, found text",
        ),
        ("targets: [{weight: 1}]", "`target` is missing"),
        (
            "targets: [{target: 'b:1', port: 2}]",
            "unknown key `port`, expected target or weight",
        ),
        (
            "targets: [{target: 'b:1', weight: 0}]",
            "weight: expected a whole number from 1 to 1000",
        ),
        (
            "targets: [{target: 'b:1', weight: 1001}]",
            "weight: expected a whole number",
        ),
        (
            "targets: [{target: 'b:1', weight: -1}]",
            "weight: expected a whole number",
        ),
        (
            "targets: [{target: 'b:1', weight: 1.5}]",
            "weight: expected a whole number",
        ),
        (
            "targets: [{target: 'b:1', weight: 99999999999999999999}]",
            "weight: expected a whole number",
        ),
        (
            "targets: [{target: 'b:1', weight: heavy}]",
            "weight: expected a whole number from 1 to 1000, found text",
        ),
        (
            "targets: [{target: 'b:1'}, {target: 'http://B:1', weight: 2}]",
            "targets: `b:1` is there twice",
        ),
        (
            "target: 'b:1', targets: [{target: 'b:2'}]",
            "`target` and `targets` exclude each other",
        ),
        (
            many.as_str(),
            "targets: 65 targets, at most 64 are possible",
        ),
    ] {
        let found = mistakes(keys);
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{keys}: {found:?}"
        );
    }
    // Both the weight and the target of one entry.
    assert_eq!(mistakes("targets: [{target: b, weight: 0}]").len(), 2);
}

#[test]
fn each_mistake_in_an_option_says_what_is_wrong() {
    for (option, expected) in [
        ("retries: 3", "retries: expected a whole number from 0 to 2"),
        (
            "retries: two",
            "retries: expected a whole number from 0 to 2, found text",
        ),
        (
            "connect_timeout: 0s",
            "connect_timeout: must be longer than 0",
        ),
        (
            "idle_timeout: soon",
            "idle_timeout: \"soon\" is not a duration",
        ),
        (
            "fail_on: 503",
            "fail_on: expected a list of statuses, found a number",
        ),
        (
            "fail_on: [404]",
            "fail_on: expected a whole number from 500 to 599",
        ),
        ("fail_on: []", "fail_on: the list is empty"),
        ("health: /up", "health: expected `path: …`, found text"),
        ("health: {interval: 1s}", "health: `path` is missing"),
        (
            "health: {path: up}",
            "path: `up`: path does not start with a slash",
        ),
        ("health: {path: '/a b'}", "path: `/a b` has ' '"),
        (
            "health: {path: /up, interval: 10ms}",
            "interval: must be 100ms or longer",
        ),
        (
            "health: {path: /up, timeout: 0s}",
            "timeout: must be longer than 0",
        ),
        (
            "health: {path: /up, method: GET}",
            "unknown key `method`, expected path, interval or timeout",
        ),
        ("ca: good.pem", "ca: no target of the route is https://"),
        (
            "proxy_protocol: v1",
            "proxy_protocol: expected v2, found `v1`",
        ),
        (
            "proxy_protocol: true",
            "proxy_protocol: expected text, found true or false",
        ),
    ] {
        let found = mistakes(&format!("target: 'b:1', {option}"));
        assert!(
            found.len() == 1 && found[0].contains(expected),
            "{option}: {found:?}"
        );
    }
    let found = mistakes("target: 'https://b', ca: bad.pem");
    assert_eq!(found, ["2:38: ca: `bad.pem`: is not there"]);
    let found = mistakes("target: 'h2c://b', proxy_protocol: v2");
    assert!(found[0].contains("serves many clients"), "{found:?}");
    // A target that cannot be read is the only mistake that is sure.
    assert_eq!(
        mistakes("target: b, ca: good.pem, proxy_protocol: v2").len(),
        1
    );
}
