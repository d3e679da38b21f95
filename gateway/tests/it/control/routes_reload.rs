//! routes.yaml while the gateway runs: good files take over, bad ones never.

use std::os::unix::fs::symlink;

use super::{get, request};
use crate::support::{Gateway, Options, eventually, replace_file};

fn routes(host: &str) -> String {
    format!("routes:\n- host: {host}\n  target: 127.0.0.1:9\n")
}

async fn until_host(gateway: &Gateway, host: &str) {
    gateway
        .until(host, |table| {
            table.static_specs().any(|spec| spec.host == host)
        })
        .await;
}

async fn refusals(gateway: &Gateway) -> u64 {
    let (_, text) = request(gateway.admin, "GET", "/metrics").await;
    let prefix = "edd_gateway_reload_failures_total{kind=\"routes\"} ";
    text.lines()
        .find_map(|line| line.strip_prefix(prefix)?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_takes_over_however_it_was_written() {
    let gateway = Gateway::start(Options::routes(routes("a.localhost"))).await;
    let file = gateway.path("routes.yaml");
    std::fs::write(&file, routes("b.localhost")).expect("written");
    until_host(&gateway, "b.localhost").await;
    // On a machine that stands still a file that is half written may be looked at.
    let refused = refusals(&gateway).await;
    replace_file(&file, &routes("c.localhost"));
    until_host(&gateway, "c.localhost").await;
    let revision = gateway.table().revision;
    // The same content again is no change.
    replace_file(&file, &routes("c.localhost"));
    replace_file(&file, &routes("d.localhost"));
    until_host(&gateway, "d.localhost").await;
    assert_eq!(gateway.table().revision, revision + 1);
    assert_eq!(refusals(&gateway).await, refused);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_map_is_swapped_by_its_symlink() {
    let folder = tempfile::tempdir().expect("a folder");
    let version = |n: u32, host: &str| {
        let name = format!("..2026_{n}");
        std::fs::create_dir(folder.path().join(&name)).expect("created");
        std::fs::write(folder.path().join(&name).join("routes.yaml"), routes(host))
            .expect("written");
        let fresh = folder.path().join("..data_tmp");
        symlink(&name, &fresh).expect("linked");
        std::fs::rename(&fresh, folder.path().join("..data")).expect("renamed");
        name
    };
    let mut old = version(0, "v0.localhost");
    let file = folder.path().join("routes.yaml");
    symlink("..data/routes.yaml", &file).expect("linked");
    let options = Options::default().flag("--routes", file.display().to_string());
    let gateway = Gateway::start(options).await;
    until_host(&gateway, "v0.localhost").await;
    for n in 1..5 {
        let host = format!("v{n}.localhost");
        let new = version(n, &host);
        std::fs::remove_dir_all(folder.path().join(&old)).expect("removed");
        old = new;
        until_host(&gateway, &host).await;
    }
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_file_is_refused_whole_and_the_old_table_stays() {
    let gateway = Gateway::start(Options::routes(routes("good.localhost"))).await;
    let file = gateway.path("routes.yaml");
    let revision = gateway.table().revision;
    let good = "- host: new.localhost\n  target: 127.0.0.1:9\n";
    let bad = [
        "routes: [{".to_owned(),
        "routes:\n- host: new.localhost\n".to_owned(),
        format!("routes:\n{good}- host: b.localhost\n  target: nonsense\n"),
        format!("routes:\n{good}- host: b.localhost\n  target: a:99999\n"),
        format!("routes:\n{good}  color: blue\n"),
        format!("routes:\n{good}{good}"),
        format!("routes:\n{good}- host: 'b c'\n  target: a:1\n"),
        format!("routes:\n{good}- host: x.compute.localhost\n  target: a:1\n"),
        "\u{0}".to_owned(),
    ];
    for (n, text) in (1..).zip(bad) {
        replace_file(&file, &text);
        eventually(&format!("the refusal of {text:?}"), || async {
            refusals(&gateway).await == n
        })
        .await;
    }
    std::fs::remove_file(&file).expect("removed");
    eventually("the refusal of nothing", || async {
        refusals(&gateway).await == 10
    })
    .await;
    let (_, live) = get(gateway.admin, "/api/v1/routes").await;
    assert_eq!(live["revision"], revision);
    assert_eq!(live["routes"][0]["host"], "good.localhost");
    replace_file(&file, &format!("routes:\n{good}"));
    until_host(&gateway, "new.localhost").await;
    gateway.stop().await;
}
