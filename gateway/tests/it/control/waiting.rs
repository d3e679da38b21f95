//! `/api/v1/wait` for a revision means what all gateways on the database mean by it; for a
//! container, that it can be reached as asked.

use super::replicas::pair;
use super::{get, ready, runs_at};
use crate::support::{Bus, Gateway, Options, eventually, replace_file};

/// A login with a key that was posted a moment before the container must not be refused.
#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_waited_for_with_the_keys_of_its_owner() {
    let bus = Bus::start().await;
    let gateway = Gateway::start(Options::default().bus(&bus)).await;
    bus.container("c1", 7, "127.64.0.1", &[]).await;
    let print = |c: &str| format!("SHA256:{}A", c.repeat(42));
    bus.key(1, 7, &print("A")).await;
    // Of somebody else.
    bus.key(2, 8, &print("B")).await;
    let wait = |keys: &str, timeout: &str| {
        format!("/api/v1/wait?container=c1&ssh=true&keys={keys}&timeout={timeout}")
    };
    assert_eq!(get(gateway.admin, &wait("1", "60s")).await.0, 200);
    gateway
        .until("both keys", |table| table.key_owners().len() == 2)
        .await;
    for keys in ["2", "1,3"] {
        let (code, _) = get(gateway.admin, &wait(keys, "50ms")).await;
        assert_eq!(code, 504, "{keys}");
    }
    let (third, added) = (wait("1,3", "60s"), print("C"));
    let (waited, ()) = tokio::join!(get(gateway.admin, &third), bus.key(3, 7, &added));
    assert_eq!(waited.0, 200);
    gateway.stop().await;
}

/// While the database is away from one gateway its routes file changes: the table that is in
/// force then has a number that at the other one is that of an event.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_the_database_does_not_know_is_not_what_is_waited_for() {
    let bus = Bus::start().await;
    let (whole, cut_off, mut way) = pair(&bus).await;
    bus.container("c0", 1, "127.64.0.1", &[]).await;
    for gateway in [&whole, &cut_off] {
        let c0 = "/api/v1/wait?container=c0&address=127.64.0.1&timeout=60s";
        assert_eq!(get(gateway.admin, c0).await.0, 200);
    }
    let before = whole.table().revision;
    cut_off
        .until("the same", |table| table.revision >= before)
        .await;

    way.cut().await;
    eventually("it knows", || async {
        ready(cut_off.admin).await.3 == "unavailable"
    })
    .await;
    // Its own numbers run ahead of the other's.
    for n in 0..20 {
        let host = format!("h{n}.localhost");
        let routes = format!("routes:\n- host: {host}\n  target: 127.0.0.1:9\n");
        replace_file(&cut_off.path("routes.yaml"), &routes);
        let in_force = format!("{host} in force");
        let has = |table: &edd_route::RouteTable| table.static_specs().any(|s| s.host == host);
        cut_off.until(&in_force, has).await;
    }
    bus.container("c1", 1, "127.64.0.2", &[]).await;
    let c1 = "/api/v1/wait?container=c1&address=127.64.0.2&timeout=60s";
    let (code, answer) = get(whole.admin, c1).await;
    assert_eq!(code, 200, "{answer}");
    let revision = answer["revision"].as_u64().expect("a number");
    assert!(revision > before);
    assert!(
        cut_off.table().revision >= revision,
        "{} of its own",
        cut_off.table().revision
    );
    let wait = |timeout| format!("/api/v1/wait?revision={revision}&timeout={timeout}");
    let (code, answer) = get(cut_off.admin, &wait("100ms")).await;
    assert_eq!(code, 504, "c1 is not there yet: {answer}");
    let of_before = format!("/api/v1/wait?revision={before}&timeout=1s");
    assert_eq!(get(cut_off.admin, &of_before).await.0, 200);

    way.mend().await;
    let (code, answer) = get(cut_off.admin, &wait("60s")).await;
    assert_eq!(code, 200, "{answer}");
    assert!(runs_at(&cut_off.table(), "c1", "127.64.0.2"));
    whole.stop().await;
    cut_off.stop().await;
}
