//! What is written down about sessions: the access log, metrics, recordings.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Instant;

use edd_gateway::ssh::Limits;
use russh::keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg};
use russh::{ChannelMsg, client};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::rig::{Rig, Sshd, exit_code, output, stdout, unix_user, until_text, within};
use super::session::{Trusting, next, strict_client};
use crate::logs;
use crate::support::containers::{Containers, container_address};
use crate::support::{DEADLINE, Gateway, Options, REVOCATION, eventually, free_port};

/// The value of a field in a line of the log.
fn field<'l>(line: &'l str, name: &str) -> &'l str {
    let begin = format!(" {name}=");
    let rest = line
        .split_once(&begin)
        .unwrap_or_else(|| panic!("{name}: {line}"))
        .1;
    match rest.strip_prefix('"') {
        // No value here has an escaped quote at its end.
        Some(text) => text
            .split_once("\" ")
            .map_or_else(|| text.trim_end_matches('"'), |(v, _)| v),
        None => rest.split(' ').next().unwrap_or(rest),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_one_record_and_a_line_per_channel() {
    logs::watch();
    let rig = Rig::start().await;
    let _c = rig.container("logged-ssh").await;
    let fingerprint = rig
        .key()
        .public_key()
        .fingerprint(Default::default())
        .to_string();
    let mut master = rig.master("logged-ssh").await;
    let failed = output(
        rig.ssh_over("logged-ssh")
            .arg("printf 12345; exit 3; # \u{7}"),
    )
    .await;
    assert_eq!(failed.status.code(), Some(3));
    let killed = output(rig.ssh_over("logged-ssh").arg("kill -TERM $$")).await;
    assert!(!killed.status.success());

    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = echo.local_addr().unwrap().port();
    tokio::spawn(async move {
        let (mut socket, _) = echo.accept().await.unwrap();
        let (mut read, mut write) = socket.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    });
    let mut forward = rig.ssh_as(
        &rig.login("logged-ssh"),
        "owner",
        &[
            "-o",
            &format!("ControlPath={}", rig.at("master")),
            "-W",
            &format!("127.0.0.1:{port}"),
        ],
    );
    let mut forward = forward
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = forward.stdin.take().unwrap();
    input.write_all(b"secret data").await.unwrap();
    drop(input);
    let mut back = String::new();
    let mut out = forward.stdout.take().unwrap();
    out.read_to_string(&mut back).await.unwrap();
    assert_eq!(back, "secret data");
    exit_code(&mut forward).await;
    master.kill().await.unwrap();

    let written = || logs::lines("logged-ssh");
    eventually("the session's record", || async {
        written().iter().any(|line| field(line, "kind") == "ssh")
    })
    .await;
    let lines = written();
    let session = lines.last().unwrap();
    assert_eq!(field(session, "kind"), "ssh", "its channels come before it");
    assert_eq!(field(session, "user"), rig.login("logged-ssh"));
    assert_eq!(field(session, "owner"), "7");
    assert_eq!(field(session, "fingerprint"), fingerprint);
    assert_eq!(field(session, "route"), "container");
    assert!(field(session, "revision").parse::<u64>().unwrap() > 0);
    assert_eq!(field(session, "channels"), "3");
    assert!(field(session, "peer").starts_with("127.0.0.1:"));
    assert!(
        field(session, "opened").contains("session exec kill -TERM $$ -> TERM"),
        "{session}"
    );
    let id = field(session, "session");
    assert_eq!(field(session, "request_id"), id);
    let channels: Vec<_> = lines
        .iter()
        .filter(|line| field(line, "kind") == "ssh-channel")
        .collect();
    assert_eq!(channels.len(), 3, "{lines:#?}");
    assert!(channels.iter().all(|line| field(line, "session") == id));
    assert_eq!(field(channels[0], "request"), "exec");
    assert!(field(channels[0], "command").starts_with("printf 12345; exit 3; # \\u{7}"));
    assert_eq!(field(channels[0], "bytes_out"), "5");
    assert_eq!(field(channels[0], "exit"), "3");
    assert_eq!(field(channels[1], "exit"), "TERM");
    assert_eq!(field(channels[2], "type"), "direct-tcpip");
    assert_eq!(field(channels[2], "to"), format!("127.0.0.1:{port}"));
    assert_eq!(field(channels[2], "bytes_in"), "11");
    assert_eq!(field(channels[2], "bytes_out"), "11");
    assert!(lines.iter().all(|line| !line.contains("secret data")));

    let metrics = rig.metrics();
    for expected in [
        "ssh_channels_total{type=\"session\"} 2",
        "ssh_channels_total{type=\"direct-tcpip\"} 1",
        "ssh_bytes_total{direction=\"in\"} 11",
        "ssh_bytes_total{direction=\"out\"} 16",
    ] {
        assert!(metrics.contains(expected), "{expected}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_not_opened_is_told_with_its_reason() {
    logs::watch();
    let rig = Rig::start().await;
    rig.put("logged-away", super::rig::free_address(), None, |_| {});
    let away = output(rig.ssh("logged-away").arg("true")).await;
    assert!(!away.status.success());
    let refused = || {
        let lines = logs::lines("logged-away");
        let mut channels = lines.iter().filter(|line| line.contains("ssh-channel"));
        channels
            .any(|line| field(line, "note") == "connect_failed" && field(line, "channel") == "0")
    };
    eventually("the channel's line", || async { refused() }).await;
    let expected = "ssh_open_failures_total{reason=\"connect_failed\"} 1";
    assert!(rig.metrics().contains(expected));
}

/// The recordings of a container.
fn recordings(rig: &Rig, container: &str) -> Vec<PathBuf> {
    let folder = rig.path("recordings").join(container);
    std::fs::read_dir(folder)
        .map(|files| files.map(|file| file.unwrap().path()).collect())
        .unwrap_or_default()
}

async fn recording_rig(containers: &str) -> Rig {
    // The folder of the rig is not known yet.
    let containers = containers.to_owned();
    Rig::start_tuned(Limits::default(), &[], move |config| {
        let folder = config.state_dir.parent().unwrap().join("recordings");
        config.ssh.recordings = Some(edd_gateway::config::Recordings {
            folder,
            containers: Some(vec![edd_route::ContainerId::new(&containers).unwrap()]),
            bytes_max: 1 << 20,
        });
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_terminal_shows_is_recorded_and_nothing_else() {
    let rig = recording_rig("c1").await;
    let _c1 = rig.container("c1").await;
    let _c2 = rig.container("c2").await;
    // Without a terminal, and of a container that is not named.
    assert_eq!(stdout(rig.ssh("c1").arg("echo plain")).await, "plain\n");
    let tty = ["-tt"];
    let mut other = rig.ssh_as(&rig.login("c2"), "owner", &tty);
    stdout(other.arg("echo other")).await;
    assert!(recordings(&rig, "c1").is_empty() && recordings(&rig, "c2").is_empty());

    let mut ssh = rig.ssh_as(&rig.login("c1"), "owner", &tty);
    let mut ssh = ssh
        .env("TERM", "xterm-color")
        .arg("stty -echo; echo password?; read secret; echo thanks")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = ssh.stdout.take().unwrap();
    until_text(&mut out, "password?").await;
    let mut input = ssh.stdin.take().unwrap();
    input.write_all(b"hunter2\n").await.unwrap();
    until_text(&mut out, "thanks").await;
    assert_eq!(exit_code(&mut ssh).await, Some(0));
    eventually("the recording is complete", || async {
        rig.metrics()
            .contains("ssh_recordings_total{result=\"complete\"} 1")
    })
    .await;
    let files = recordings(&rig, "c1");
    assert_eq!(files.len(), 1);
    let mode = std::fs::metadata(&files[0]).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&files[0]).unwrap();
    let mut lines = text.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(header["version"], 2);
    // Without a terminal of its own `ssh` says 0 to both, which no player takes.
    assert_eq!(
        (&header["width"], &header["height"]),
        (&80.into(), &24.into())
    );
    assert_eq!(header["env"]["TERM"], "xterm-color");
    let shown: String = lines
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event[1] == "o")
        .map(|event| event[2].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(shown, "password?\r\nthanks\r\n");
    assert!(!text.contains("hunter2"));
}

/// The first request alone was written down, also when the container had refused it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_behind_a_refused_subsystem_is_told_and_recorded() {
    logs::watch();
    let rig = recording_rig("logged-refused").await;
    let _c = rig.container("logged-refused").await;
    let client = strict_client(&rig, "logged-refused").await;
    // With the answer awaited, and all in one go.
    for patient in [true, false] {
        let mut channel = client.channel_open_session().await.unwrap();
        channel
            .request_pty(true, "xterm", 80, 24, 0, 0, &[])
            .await
            .unwrap();
        assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
        channel.request_subsystem(true, "nope").await.unwrap();
        if patient {
            assert!(matches!(next(&mut channel).await, ChannelMsg::Failure));
        }
        channel.request_shell(patient).await.unwrap();
        // Refused, and no disguise for what runs.
        channel.request_subsystem(false, "sftp").await.unwrap();
        let input = "stty -echo; echo sh''own; exit 4\n";
        channel.data_bytes(input).await.unwrap();
        let status = loop {
            if let ChannelMsg::ExitStatus { exit_status } = next(&mut channel).await {
                break exit_status;
            }
        };
        assert_eq!(status, 4);
        channel.close().await.unwrap();
    }
    let told = || {
        let lines = logs::lines("logged-refused");
        let channels = lines.iter().filter(|line| {
            line.contains("ssh-channel")
                && field(line, "request") == "shell"
                && field(line, "command") == "-"
                && field(line, "recorded") == "true"
        });
        channels.count()
    };
    eventually("both lines", || async { told() == 2 }).await;
    eventually("both recordings", || async {
        rig.metrics()
            .contains("ssh_recordings_total{result=\"complete\"} 2")
    })
    .await;
    let files = recordings(&rig, "logged-refused");
    assert_eq!(files.len(), 2);
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(text.contains("shown"), "{text}");
    }
}

/// Also what the gateway has made in advance, and nothing of the recording is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_ends_all_connections_to_the_container_and_completes_the_recording() {
    let rig = recording_rig("c1").await;
    let c1 = rig.container("c1").await;
    let client = strict_client(&rig, "c1").await;
    let mut shell = client.channel_open_session().await.unwrap();
    shell
        .request_pty(true, "xterm", 100, 30, 0, 0, &[])
        .await
        .unwrap();
    shell.exec(true, "echo shown; cat").await.unwrap();
    let mut shown = String::new();
    while !shown.contains("shown") {
        if let ChannelMsg::Data { data } = next(&mut shell).await {
            shown.push_str(&String::from_utf8_lossy(&data));
        }
    }
    let _other = client.channel_open_session().await.unwrap();
    // One each, and a spare.
    eventually("a spare", || async { rig.shared.gate.upstreams() == 3 }).await;
    let begun = Instant::now();
    rig.put("c1", c1.address, Some(&c1.host_key), |spec| {
        spec.ssh_enabled = false;
    });
    eventually("all of them end", || async {
        rig.shared.gate.upstreams() == 0
    })
    .await;
    assert!(begun.elapsed() < REVOCATION, "{:?}", begun.elapsed());
    eventually("the recording is complete", || async {
        rig.metrics()
            .contains("ssh_recordings_total{result=\"complete\"} 1")
    })
    .await;
    let files = recordings(&rig, "c1");
    let text = std::fs::read_to_string(&files[0]).unwrap();
    let events: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(events[0]["width"], 100);
    assert!(text.ends_with('\n') && text.contains("shown"), "{text}");
}

/// What the writer has not come to when the last session is cut is still written.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_has_ended_has_written_its_recordings() {
    let ssh_port = free_port();
    let folder = Arc::new(tempfile::TempDir::new().unwrap());
    let recordings = folder.path().join("recordings");
    let options = Options {
        folder: Some(Arc::clone(&folder)),
        ..Options::default()
    };
    let options = options
        .flag("--container-ssh-port", ssh_port.to_string())
        .flag("--ssh-recordings", recordings.display().to_string())
        .flag("--ssh-record", "*");
    let gateway = Gateway::start(options).await;
    let mut containers = Containers::of(&gateway);
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let fingerprint = key.public_key().fingerprint(HashAlg::Sha256);
    let line = std::fs::read_to_string(gateway.path("state/ssh_client_ed25519.pub")).unwrap();
    let address = container_address();
    let at = SocketAddr::new(address, ssh_port);
    let _sshd = Sshd::start(&gateway.path("sshd"), at, line.trim_end(), &[]).await;
    containers.run("c1", address, &[]);
    containers.ssh("c1", &fingerprint.to_string());
    let socket = TcpStream::connect(gateway.addresses.ssh).await.unwrap();
    let trusting = Trusting(Arc::default());
    let mut client = client::connect_stream(Arc::default(), socket, trusting)
        .await
        .unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(key), None);
    let user = format!("{}.c1", unix_user());
    let login = client.authenticate_publickey(user, key).await;
    assert!(login.unwrap().success());
    let mut shell = client.channel_open_session().await.unwrap();
    shell
        .request_pty(true, "xterm", 80, 24, 0, 0, &[])
        .await
        .unwrap();
    // Not faster than any disk, or the recording would be torn.
    let run = "n=0; while :; do n=$((n + 1)); echo line $n; sleep 0.01; done";
    shell.exec(true, run).await.unwrap();
    // Reads on and on, to the moment at which it is cut.
    let reading = tokio::spawn(async move {
        let mut shown = Vec::new();
        while let Some(message) = shell.wait().await {
            if let ChannelMsg::Data { data } = message {
                shown.extend_from_slice(&data);
            }
        }
        shown
    });
    let any = || std::fs::read_dir(recordings.join("c1")).is_ok_and(|mut all| all.next().is_some());
    eventually("a recording", || async { any() }).await;
    gateway.stop().await;
    let file = std::fs::read_dir(recordings.join("c1")).unwrap().next();
    let text = std::fs::read_to_string(file.unwrap().unwrap().path()).unwrap();
    let shown = within(DEADLINE, "the end", reading).await.unwrap();
    let shown = String::from_utf8_lossy(&shown).into_owned();
    // The gateway's own words are among them, and the last line may be cut.
    let lines = shown.lines().filter_map(|line| line.strip_prefix("line "));
    let last = lines.filter_map(|number| number.parse::<u32>().ok()).max();
    let whole = last.expect("some lines") - 1;
    let written: String = text
        .lines()
        .skip(1)
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter(|event| event[1] == "o")
        .map(|event| event[2].as_str().unwrap().to_owned())
        .collect();
    let wanted: String = (1..=whole).map(|n| format!("line {n}\r\n")).collect();
    assert!(whole > 0 && written.starts_with(&wanted), "{written}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recording_that_cannot_be_written_costs_its_session_nothing() {
    let rig = recording_rig("c1").await;
    let _c1 = rig.container("c1").await;
    std::fs::remove_dir_all(rig.path("recordings")).unwrap();
    std::fs::write(rig.path("recordings"), "no folder").unwrap();
    let mut ssh = rig.ssh_as(&rig.login("c1"), "owner", &["-tt"]);
    let shown = tokio::time::timeout(DEADLINE, stdout(ssh.arg("echo fine"))).await;
    assert_eq!(shown.unwrap(), "fine\r\n");
    eventually("it is counted", || async {
        rig.metrics()
            .contains("ssh_recordings_total{result=\"failed\"} 1")
    })
    .await;
}
