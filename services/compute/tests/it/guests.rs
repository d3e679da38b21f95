//! What a container of the local runtime serves: page, WebSocket, event stream,
//! raw echo, SSH.

use edd_store::query;
use std::{path::Path, process::Stdio};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpStream,
    time::timeout,
};
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    ALICE, Client, DEADLINE, Ends, Service, auth_over_http, eventually, gone, id_of, ip_of,
    make_key, processes_with, ssh,
};

struct Guest {
    service: Service,
    container: Value,
    _auth: Ends,
}

impl Guest {
    async fn start() -> Self {
        let (url, auth) = auth_over_http().await;
        let service = Service::start_with(&["--auth-url", &url]).await;
        let container = service.create_running(&json!({ "name": "a" })).await;
        Self {
            service,
            container,
            _auth: auth,
        }
    }

    fn id(&self) -> &str {
        id_of(&self.container)
    }

    fn ip(&self) -> &str {
        ip_of(&self.container)
    }

    fn page(&self) -> Client {
        Client(format!("{}:8080", self.ip()).parse().unwrap())
    }

    /// From the only place where it is told: the event.
    async fn host_key(&self) -> String {
        query("SELECT ssh_host_key FROM containers WHERE id = $1")
            .bind(self.id())
            .value(&self.service.database().await)
            .await
            .unwrap()
    }

    /// Runs a command by SSH: exit code and output.
    async fn run(&self, key: &Path, command: &str) -> (Option<i32>, String) {
        let host_key = self.host_key().await;
        let ssh = ssh(key, self.ip(), Some(&host_key), command).output();
        let output = timeout(DEADLINE, ssh)
            .await
            .expect("ssh ends in time")
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    }
}

#[tokio::test]
async fn the_page_names_its_container_and_echoes_headers() {
    let guest = Guest::start().await;
    let answer = guest.page().get("/", None).await;
    assert_eq!(answer.status, 200);
    assert!(answer.text.contains(guest.id()), "{answer:?}");
    let headers = "X-One: 1\r\nX-Two: a\r\nX-Two: b\r\n";
    let answer = guest.page().call("GET", "/headers?q=1", headers, "").await;
    assert_eq!(answer.body["container"], guest.id());
    assert_eq!(answer.body["uri"], "/headers?q=1");
    assert_eq!(answer.body["headers"]["x-one"], "1");
    assert_eq!(answer.body["headers"]["x-two"], "a, b");
    assert_eq!(guest.page().get("/nowhere", None).await.status, 404);
    guest.service.stop().await;
}

#[tokio::test]
async fn web_socket_messages_come_back() {
    let guest = Guest::start().await;
    let stream = TcpStream::connect((guest.ip(), 8080)).await.unwrap();
    let url = format!("ws://{}:8080/ws", guest.ip());
    let talk = async {
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        for message in [Message::text("hello"), Message::binary(vec![7; 100_000])] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), message);
        }
        socket.close(None).await.unwrap();
        while socket.next().await.is_some_and(|message| message.is_ok()) {}
    };
    timeout(DEADLINE, talk).await.expect("an echo in time");
    guest.service.stop().await;
}

#[tokio::test]
async fn the_event_stream_ticks() {
    let guest = Guest::start().await;
    let mut stream = TcpStream::connect((guest.ip(), 8080)).await.unwrap();
    stream
        .write_all(b"GET /events HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut lines = BufReader::new(stream).lines();
    let mut ticks = Vec::new();
    while ticks.len() < 2 {
        let line = timeout(DEADLINE, lines.next_line())
            .await
            .expect("a tick in time");
        if let Some(data) = line.unwrap().expect("it goes on").strip_prefix("data: ") {
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(data["container"], guest.id());
            ticks.push(data["tick"].as_u64().unwrap());
        }
    }
    assert_eq!(ticks, [1, 2]);
    guest.service.stop().await;
}

#[tokio::test]
async fn raw_bytes_come_back_and_the_end_too() {
    let guest = Guest::start().await;
    let mut stream = TcpStream::connect((guest.ip(), 7000)).await.unwrap();
    let sent: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let talk = async {
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut echoed = Vec::new();
        stream.read_to_end(&mut echoed).await.unwrap();
        echoed
    };
    assert!(timeout(DEADLINE, talk).await.expect("an echo in time") == sent);
    guest.service.stop().await;
}

#[tokio::test]
async fn ssh_lets_in_the_gateways_key_and_no_other() {
    let guest = Guest::start().await;
    let gateway = guest.service.gateway_key();
    let (code, output) = guest.run(&gateway, "echo out; echo err >&2; exit 7").await;
    assert_eq!((code, output.as_str()), (Some(7), "out\n"));
    let stranger = guest.service.folder.path().join("stranger");
    make_key(&stranger);
    let (code, output) = guest.run(&stranger, "echo out").await;
    assert_eq!((code, output.as_str()), (Some(255), ""));
    guest.service.stop().await;
}

#[tokio::test]
async fn a_new_key_of_the_gateway_opens_containers_that_run() {
    let guest = Guest::start().await;
    let gateway = guest.service.gateway_key();
    let next = guest.service.folder.path().join("next");
    make_key(&next);
    assert_eq!(guest.run(&next, "true").await.0, Some(255));
    std::fs::copy(next.with_extension("pub"), gateway.with_extension("pub")).unwrap();
    // The key is looked at again when a container starts.
    guest.service.create_running(&json!({ "name": "b" })).await;
    eventually("a pass for the new key", async || {
        (guest.run(&next, "true").await.0 == Some(0)).then_some(())
    })
    .await;
    assert_eq!(
        guest.run(&gateway, "true").await.0,
        Some(255),
        "the old key is still good"
    );
    guest.service.stop().await;
}

#[tokio::test]
async fn a_stop_ends_all_that_ssh_sessions_started() {
    let guest = Guest::start().await;
    let (id, key) = (guest.id(), guest.service.gateway_key());
    // One in a session of its own, as daemons do it, whose parent is gone.
    let marker = format!("marker-{id}");
    let command = format!("(setsid sh -c ': {marker}; sleep 600; :' &); echo up; sleep 600");
    let mut child = ssh(&key, guest.ip(), None, &command)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(DEADLINE, lines.next_line())
        .await
        .expect("a login in time");
    assert_eq!(line.unwrap().as_deref(), Some("up"));
    // The client here, and its copies there.
    eventually("the daemon", async || {
        (processes_with(&marker).len() >= 2).then_some(())
    })
    .await;
    let path = format!("/compute/containers/{id}/stop");
    let answer = guest.service.api.post(&path, ALICE, &json!({})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let ended = timeout(DEADLINE, child.wait())
        .await
        .expect("the session ends");
    assert!(!ended.unwrap().success());
    gone(&marker).await;
    guest.service.stop().await;
}

#[tokio::test]
async fn without_an_sshd_containers_run_without_ssh() {
    let (url, _auth) = auth_over_http().await;
    let folder = crate::support::new_folder();
    let service = Service::start_in(folder, &["--auth-url", &url], |config| {
        config.sshd = Some("/does/not/exist".into());
    })
    .await;
    let running = service.create_running(&json!({ "name": "a" })).await;
    assert!(TcpStream::connect((ip_of(&running), 8080)).await.is_ok());
    assert!(TcpStream::connect((ip_of(&running), 2022)).await.is_err());
    let host_key: Option<String> = query("SELECT ssh_host_key FROM containers")
        .value(&service.database().await)
        .await
        .unwrap();
    assert_eq!(host_key, None);
    service.stop().await;
}
