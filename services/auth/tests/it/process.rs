//! The binary: exit codes, messages, signals.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Client, DEADLINE, PASSWORD};

fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edd-auth"));
    command.args(flags).env_clear().stdin(Stdio::null());
    command
}

/// Runs to the end, which must come by itself and soon.
fn run(command: &mut Command) -> Output {
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait(child)
}

fn wait(mut child: Child) -> Output {
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("still running: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes)
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn help_and_version_are_successes() {
    for (flag, expected) in [
        ("--help", "--database-url"),
        ("--version", "edd-auth 0.1.0"),
    ] {
        let output = run(&mut command(&[flag]));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(expected),
            "{output:?}"
        );
    }
}

#[test]
fn every_bad_flag_and_variable_is_named_with_exit_64() {
    let mut command = command(&["--addr", "nowhere", "--events=maybe", "--log-format", "xml"]);
    command
        .env("EDD_AUTH_ADMIN_ADDR", "9191")
        .env("DATABASE_URL", "mysql://localhost/auth")
        .env("EVENT_BUS_TYPE", "pigeon");
    let output = run(&mut command);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let lines = lines(&output.stderr);
    assert_eq!(lines.len(), 6, "{lines:#?}");
    for (line, expected) in lines.iter().zip([
        "--addr (or EDD_AUTH_ADDR)",
        "--admin-addr (or EDD_AUTH_ADMIN_ADDR)",
        "--database-url (or DATABASE_URL): not a database URL",
        "--event-bus (or EVENT_BUS_TYPE): \"pigeon\" is neither nats nor memory",
        "--events (or EDD_AUTH_EVENTS)",
        "--log-format (or EDD_AUTH_LOG_FORMAT)",
    ]) {
        assert!(line.starts_with(&format!("edd-auth: {expected}")), "{line}");
    }
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn an_unknown_flag_exits_64() {
    for flags in [&["--adr", "x"][..], &["serve"], &["--addr"]] {
        let output = run(&mut command(flags));
        assert_eq!(output.status.code(), Some(64), "{output:?}");
    }
}

#[test]
fn taken_ports_exit_1_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let taken = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [addr, admin] = taken
        .each_ref()
        .map(|listener| listener.local_addr().unwrap().to_string());
    let url = url(folder.path());
    let flags = [
        "--addr",
        &addr,
        "--admin-addr",
        &admin,
        "--database-url",
        &url,
    ];
    let output = run(&mut command(&flags));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines = lines(&output.stderr);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    for expected in [&addr, &admin, "--addr", "--admin-addr", "in use"] {
        assert!(lines[0].contains(expected), "{}", lines[0]);
    }
    assert!(!folder.path().join("auth.db").exists(), "nothing was made");
}

#[test]
fn a_file_that_is_no_database_exits_1_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("auth.db"), "not a database ".repeat(500)).unwrap();
    let url = url(folder.path());
    let flags = [
        "--addr=127.0.0.1:0",
        "--admin-addr=127.0.0.1:0",
        "--database-url",
        &url,
    ];
    let output = run(&mut command(&flags));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let lines = lines(&output.stderr);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains("auth.db"), "{}", lines[0]);
}

#[tokio::test]
async fn sigterm_drains_and_exits_0() {
    let folder = tempfile::tempdir().unwrap();
    let url = url(folder.path());
    let flags = [
        "--addr=127.0.0.1:0",
        "--admin-addr=127.0.0.1:0",
        "--log-format=json",
        "--database-url",
        &url,
    ];
    let mut child = command(&flags)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, received) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let client = loop {
        let line = received
            .recv_timeout(DEADLINE)
            .expect("a line about the listener");
        let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
        if line["message"] == "listening" && line["listener"] == "addr" {
            break Client(line["addr"].as_str().unwrap().parse().unwrap());
        }
    };
    let body = serde_json::json!({ "username": "alice", "password": PASSWORD });
    let answer = client.post("/api/register", None, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");

    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let output = wait(child);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    reader.join().unwrap();
    let rest: Vec<String> = received.iter().collect();
    assert!(
        rest.iter().any(|line| line.contains("\"drained\"")),
        "{rest:#?}"
    );
    assert!(
        !rest.iter().any(|line| line.contains(PASSWORD)),
        "{rest:#?}"
    );
    let token = answer.body["token"].as_str().unwrap();
    assert!(!rest.iter().any(|line| line.contains(token)), "{rest:#?}");
}

/// Ready without NATS; and nobody waits for a confirmation that nobody could give.
#[tokio::test]
async fn with_the_bus_of_its_own_process_it_is_ready_and_runs_no_sagas() {
    let folder = tempfile::tempdir().unwrap();
    let url = url(folder.path());
    let flags = [
        "--addr=127.0.0.1:0",
        "--admin-addr=127.0.0.1:0",
        "--log-format=json",
        "--saga-timeout=100ms",
        "--database-url",
        &url,
    ];
    let mut child = command(&flags)
        .env("EVENT_BUS_TYPE", "memory")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, received) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    let (mut addr, mut admin) = (None, None);
    while addr.is_none() || admin.is_none() {
        let line = received.recv_timeout(DEADLINE).expect("a line in time");
        let line: serde_json::Value = serde_json::from_str(&line).expect("a JSON line");
        if line["message"] == "listening" {
            let bound = Client(line["addr"].as_str().unwrap().parse().unwrap());
            match line["listener"].as_str() {
                Some("addr") => addr = Some(bound),
                _ => admin = Some(bound),
            }
        }
    }
    let (client, admin) = (addr.unwrap(), admin.unwrap());
    let body = serde_json::json!({ "username": "alice", "password": PASSWORD });
    let answer = client.post("/api/register", None, &body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let ready = admin.get("/readyz", None).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    assert_eq!(ready.body["status"], "ready", "{ready:?}");
    assert_eq!(ready.body["nats"], "memory", "{ready:?}");
    // Begun in the transaction of the user, if at all.
    let sagas = admin.get("/api/v1/sagas", None).await;
    assert_eq!(sagas.body, serde_json::json!({ "sagas": [] }));

    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let output = wait(child);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    reader.join().unwrap();
}

/// What clients send by mistake, in paths, names and headers, is masked.
#[tokio::test]
async fn the_log_shows_neither_tokens_nor_mail_addresses() {
    for format in ["json", "text"] {
        let folder = tempfile::tempdir().unwrap();
        let url = url(folder.path());
        let format_flag = format!("--log-format={format}");
        let flags = [
            "--addr=127.0.0.1:0",
            "--admin-addr=127.0.0.1:0",
            "--log=debug",
            &format_flag,
            "--database-url",
            &url,
        ];
        let mut child = command(&flags).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, received) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let client = loop {
            let line = received.recv_timeout(DEADLINE).expect("a line");
            if line.contains("listening") && !line.contains("admin") {
                let (_, rest) = line.split_once("127.0.0.1:").expect("an address");
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break Client(format!("127.0.0.1:{port}").parse().unwrap());
            }
        };
        let mail = "ann.example@example.org";
        let body = serde_json::json!({ "username": mail, "password": PASSWORD });
        let answer = client.post("/api/register", None, &body).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        let body = serde_json::json!({ "username": "ann", "password": PASSWORD });
        let answer = client.post("/api/register", None, &body).await;
        let token = answer.body["token"].as_str().unwrap().to_owned();
        let wrong: String = token.chars().rev().collect();
        let answer = client.get("/api/session", Some(&wrong)).await;
        assert_eq!(answer.status, 401, "{answer:?}");
        // Where it does not belong.
        for path in [
            format!("/api/session/{wrong}"),
            format!("/api/users/{mail}"),
            format!("/api/users/{}", mail.replace('@', "%40")),
        ] {
            client.get(&path, Some(&token)).await;
        }
        let headers = format!("X-Request-ID: {token}\r\n");
        client.call("GET", "/api/session", &headers, "").await;

        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        wait(child);
        reader.join().unwrap();
        let log: Vec<String> = received.iter().collect();
        let log = log.join("\n");
        for expected in [
            "/api/session/***",
            "/api/users/a***@example.org",
            "%40example.org",
        ] {
            assert!(log.contains(expected), "{expected}: {log}");
        }
        for secret in [wrong.as_str(), &token, PASSWORD, "ann.example"] {
            assert!(!log.contains(secret), "{secret}: {log}");
        }
    }
}

fn url(folder: &Path) -> String {
    format!("sqlite://{}", folder.join("auth.db").display())
}
