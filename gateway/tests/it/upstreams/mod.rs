//! Static routes with several targets, targets that fail, TLS and names: the way to the upstreams.

mod balance;
mod breaker;
mod caller;
mod names;
mod process;
mod proxy;
mod tls;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Gateway, client};

/// A GET on the admin listener; its JSON.
async fn admin(gateway: &Gateway, path: &str) -> Value {
    let text = admin_text(gateway, path).await;
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A GET on the admin listener; its body.
async fn admin_text(gateway: &Gateway, path: &str) -> String {
    let mut stream = client::dial(gateway.admin).await;
    let request = format!("GET {path} HTTP/1.0\r\nHost: admin\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head");
    body.to_owned()
}

/// The states of the targets of the only route, by target.
async fn states(gateway: &Gateway) -> Vec<(String, String)> {
    let routes = admin(gateway, "/api/v1/routes").await;
    let targets = routes["routes"][0]["targets"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    targets
        .iter()
        .map(|target| (text(&target["target"]), text(&target["state"])))
        .collect()
}
