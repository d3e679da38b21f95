//! Start and end.

use crate::support::{Gateway, Options, Origin};

/// R8: a cluster's API was needed at start, even for plain HTTP. Nothing is: no events, and a
/// database that cannot be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_but_a_routes_file_is_needed_to_serve() {
    let origin = Origin::friendly("127.0.0.1").await;
    let routes = format!(
        "routes:\n- {{host: a.test, target: '{}'}}\n",
        origin.address
    );
    let options = Options::routes(routes)
        .flag("--database-url", "sqlite:///proc/nowhere/gateway.db")
        .flag("--nats-url", "nats://127.0.0.1:1");
    let gateway = Gateway::start(options).await;
    let got = gateway.https("a.test", "/", &[]).await;
    assert_eq!(got.status, 200);
    gateway.stop().await;
}
