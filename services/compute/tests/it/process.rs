//! The binary: exit codes, messages, signals, and no process left behind.

use std::{
    path::Path,
    process::{Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::support::{
    ALICE, Client, ComputeClient as _, DEADLINE, auth_over_http, common_flags, eventually,
    gateway_key, gone, id_of, ip_of, new_folder, processes_with, ssh,
};

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edd-compute"));
    command.env_clear().stdin(Stdio::null()).kill_on_drop(true);
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

async fn run(command: &mut Command) -> Output {
    timeout(DEADLINE, command.output())
        .await
        .expect("it ends by itself")
        .unwrap()
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes)
        .lines()
        .map(str::to_owned)
        .collect()
}

/// The daemon as its own process.
struct Daemon {
    child: Child,
    api: Client,
    admin: Client,
}

impl Daemon {
    async fn start(folder: &Path, auth_url: &str) -> Self {
        Self::start_as(&mut command(), folder, auth_url).await
    }

    async fn start_as(command: &mut Command, folder: &Path, auth_url: &str) -> Self {
        let mut child = command
            .args(common_flags(folder).await)
            .args(["--auth-url", auth_url, "--log-format=json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap()).lines();
        let listening = async {
            let (mut api, mut admin) = (None, None);
            loop {
                if let (Some(api), Some(admin)) = (api, admin) {
                    return (api, admin);
                }
                let line = log.next_line().await.unwrap().expect("a log");
                let line: Value = serde_json::from_str(&line).unwrap();
                if line["message"] == "listening" {
                    let bound = Client(line["addr"].as_str().unwrap().parse().unwrap());
                    match line["listener"].as_str() {
                        Some("addr") => api = Some(bound),
                        _ => admin = Some(bound),
                    }
                }
            }
        };
        let (api, admin) = timeout(DEADLINE, listening)
            .await
            .expect("it listens in time");
        // The rest is read, so that the daemon does not write into a closed pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        Self { child, api, admin }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().unwrap()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    async fn exit_code(mut self) -> Option<i32> {
        let status = timeout(DEADLINE, self.child.wait())
            .await
            .expect("it ends in time");
        status.unwrap().code()
    }

    async fn create_running(&self) -> Value {
        let answer = self
            .api
            .post("/compute/containers", ALICE, &json!({ "name": "a" }))
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
        self.api.wait_for(id_of(&answer.body), "running").await
    }
}

/// A session by SSH whose command names the container: two processes at least.
async fn log_in(folder: &Path, container: &Value) -> Child {
    let command = format!("sh -c ': {}; sleep 600; :'", marker(container));
    let session = ssh(&gateway_key(folder), ip_of(container), None, &command)
        .spawn()
        .unwrap();
    eventually("the session", async || {
        (processes_with(&marker(container)).len() >= 2).then_some(())
    })
    .await;
    session
}

fn marker(container: &Value) -> String {
    format!("marker-{}", id_of(container))
}

#[tokio::test]
async fn help_and_version_are_successes_and_the_guest_is_hidden() {
    let output = run(command().arg("--help")).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(
        help.contains("--database-url") && !help.contains("guest"),
        "{help}"
    );
    let output = run(command().arg("--version")).await;
    assert_eq!(lines(&output.stdout), ["edd-compute 0.1.0"]);
}

#[tokio::test]
async fn every_bad_flag_and_variable_is_named_with_exit_64() {
    let output = run(command()
        .args(["--addr", "nowhere", "--runtime=docker", "--ports", "9-1"])
        .env("EDD_COMPUTE_ADMIN_ADDR", "9191")
        .env("DATABASE_URL", "mysql://localhost/compute")
        .env("EVENT_BUS_TYPE", "pigeon"))
    .await;
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let lines = lines(&output.stderr);
    assert_eq!(lines.len(), 6, "{lines:#?}");
    for expected in [
        "--event-bus (or EVENT_BUS_TYPE): \"pigeon\" is neither nats nor memory",
        "--addr (or EDD_COMPUTE_ADDR)",
        "--admin-addr (or EDD_COMPUTE_ADMIN_ADDR)",
        "--database-url (or DATABASE_URL): not a database URL",
        "--runtime (or EDD_COMPUTE_RUNTIME): the runtime docker is not in this version",
        "--ports (or EDD_COMPUTE_PORTS)",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(expected)),
            "{expected}: {lines:#?}"
        );
    }
    assert_eq!(
        run(command().arg("--nonsense")).await.status.code(),
        Some(64)
    );
}

#[tokio::test]
async fn a_taken_port_is_one_line_and_exit_1() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = new_folder();
    let addr = taken.local_addr().unwrap().to_string();
    let mut flags = common_flags(folder.path()).await;
    flags.retain(|flag| !flag.starts_with("--addr="));
    flags.push(format!("--addr={addr}"));
    let output = run(command().args(flags)).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines = lines(&output.stderr);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(
        lines[0].contains(&addr) && lines[0].contains("in use"),
        "{lines:#?}"
    );
}

#[tokio::test]
async fn sigterm_drains_and_no_process_is_left() {
    let folder = new_folder();
    let (url, _auth) = auth_over_http().await;
    let daemon = Daemon::start(folder.path(), &url).await;
    let container = daemon.create_running().await;
    let mut session = log_in(folder.path(), &container).await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code().await, Some(0));
    let left: Vec<_> = processes_with(id_of(&container))
        .into_iter()
        .filter(|pid| Some(pid.cast_unsigned()) != session.id())
        .collect();
    assert_eq!(left, [0; 0], "a process outlived the daemon");
    let ended = timeout(DEADLINE, session.wait())
        .await
        .expect("the session ends");
    assert!(!ended.unwrap().success());
}

#[tokio::test]
async fn with_the_bus_of_its_own_process_it_is_ready_without_nats() {
    let folder = new_folder();
    let (url, _auth) = auth_over_http().await;
    let mut command = command();
    command.env("EVENT_BUS_TYPE", "memory");
    let daemon = Daemon::start_as(&mut command, folder.path(), &url).await;
    let ready = daemon.admin.get("/readyz", None).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    assert_eq!(ready.body["status"], "ready", "{ready:?}");
    assert_eq!(ready.body["nats"], "memory", "{ready:?}");
    // The outbox is published there, not kept for somebody else.
    daemon.create_running().await;
    eventually("an empty outbox", async || {
        let ready = daemon.admin.get("/readyz", None).await.body;
        (ready["outbox_pending"] == 0).then_some(())
    })
    .await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.exit_code().await, Some(0));
}

#[tokio::test]
async fn no_process_outlives_a_killed_daemon_and_the_next_one_starts_again() {
    let folder = new_folder();
    let (url, _auth) = auth_over_http().await;
    let daemon = Daemon::start(folder.path(), &url).await;
    let container = daemon.create_running().await;
    let session = log_in(folder.path(), &container).await;
    daemon.signal(Signal::KILL);
    assert_eq!(daemon.exit_code().await, None, "killed by a signal");
    // At once, while the old processes may still be going.
    let next = Daemon::start(folder.path(), &url).await;
    let again = next.api.wait_for(id_of(&container), "running").await;
    assert_eq!(ip_of(&again), ip_of(&container));
    gone(&marker(&container)).await;
    drop(session);
    next.signal(Signal::TERM);
    assert_eq!(next.exit_code().await, Some(0));
    assert_eq!(processes_with(id_of(&container)), [0; 0]);
}

#[tokio::test]
async fn a_guest_ends_with_its_stdin() {
    let mut guest = command()
        .args(["guest", "--addr", "127.64.255.254", "--name", "alone"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = BufReader::new(guest.stdout.take().unwrap()).lines();
    let word = timeout(DEADLINE, words.next_line())
        .await
        .expect("a word in time");
    assert_eq!(word.unwrap().as_deref(), Some("ready"));
    drop(guest.stdin.take());
    let ended = timeout(DEADLINE, guest.wait())
        .await
        .expect("it ends in time");
    assert!(ended.unwrap().success());
}
