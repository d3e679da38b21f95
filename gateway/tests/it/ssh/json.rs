//! The records of sessions and channels as a process writes them for machines.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use super::rig::{Sshd, command, free_address, output, unix_user};
use crate::support::daemon::Daemon;
use crate::support::{Bus, eventually, free_port};

/// Every record has these, and they differ from run to run.
const ANY: [&str; 3] = ["level", "target", "timestamp"];

/// The record without [`ANY`] and without the fields that differ, which must be of their type.
fn fixed(record: &Value, session: &str) -> Value {
    let mut fields: Map<String, Value> = record.as_object().unwrap().clone();
    for name in ANY {
        assert!(fields.remove(name).unwrap().is_string(), "{record}");
    }
    assert!(fields.remove("ms").unwrap().is_f64(), "{record}");
    assert!(fields.remove("revision").unwrap().is_u64(), "{record}");
    assert_eq!(fields.remove("session").unwrap(), session, "{record}");
    if fields["kind"] == "ssh" {
        assert_eq!(fields.remove("request_id").unwrap(), session, "{record}");
    }
    if let Some(peer) = fields.remove("peer") {
        let peer: SocketAddr = peer.as_str().unwrap().parse().unwrap();
        assert!(peer.ip().is_loopback());
    }
    Value::Object(fields)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_and_channels_are_written_as_json_with_every_field() {
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(folder.path().join("routes.yaml"), "routes: []\n").unwrap();
    let bus = Bus::start().await;
    let port = free_port();
    let mut flags: Vec<String> = ["http", "https", "ssh", "admin"]
        .map(|name| format!("--{name}-addr=127.0.0.1:0"))
        .into();
    flags.extend([
        format!("--ports={}", free_port()),
        format!("--container-ssh-port={port}"),
        "--container-cidrs=127.64.0.0/16".to_owned(),
        format!("--nats-url={}", bus.server.url()),
        format!("--state-dir={}", path("state")),
        format!("--ssh-recordings={}", path("recordings")),
        "--ssh-record=c1".to_owned(),
    ]);
    let mut daemon = Daemon::start(Daemon::command(folder.path(), "exec \"$@\"", &flags));
    let ssh_at = daemon.address("ssh").await;
    let authorized = std::fs::read_to_string(path("state/ssh_client_ed25519.pub")).unwrap();
    let at = SocketAddr::new(free_address(), port);
    let sshd = Sshd::start(&folder.path().join("c1"), at, authorized.trim(), &[]).await;

    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    key.write_openssh_file(folder.path().join("key"), LineEnding::LF)
        .unwrap();
    std::fs::set_permissions(path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let fingerprint = key.public_key().fingerprint(HashAlg::Sha256).to_string();
    bus.created("c1", 7).await;
    let address = at.ip().to_string();
    bus.started("c1", &address, Some(&sshd.host_key)).await;
    bus.ssh("c1", true).await;
    bus.key(5, 7, &fingerprint).await;

    let user = format!("{}.c1", unix_user());
    let master = path("master");
    let ssh = |options: &[&str]| -> Command {
        let mut ssh = command("ssh");
        for option in [
            "BatchMode=yes",
            "ControlMaster=auto",
            "ControlPersist=60",
            "GlobalKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "LogLevel=ERROR",
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
        ] {
            ssh.args(["-o", option]);
        }
        ssh.args(["-F", "none", "-i", &path("key"), "-S", &master])
            .args(["-p", &ssh_at.port().to_string(), "-l", &user])
            .args(options)
            .arg("127.0.0.1");
        // What persists keeps the pipes of whoever made it.
        ssh.stderr(std::process::Stdio::null());
        ssh
    };
    eventually("the login is allowed", || async {
        let opened = ssh(&["-f", "-N"])
            .stdout(std::process::Stdio::null())
            .status();
        opened.await.unwrap().success()
    })
    .await;
    let done = output(ssh(&["-tt"]).arg("stty -opost; printf 'x\"y'; exit 3")).await;
    assert_eq!(done.stdout, b"x\"y");
    assert_eq!(done.status.code(), Some(3));
    let refused = output(&mut ssh(&["-W", "127.0.0.1:1"])).await;
    assert!(!refused.status.success());
    output(&mut ssh(&["-O", "exit"])).await;

    let mut records: Vec<Value> = Vec::new();
    while records.last().is_none_or(|last| last["kind"] != "ssh") {
        let line = daemon.line("\"target\":\"access\"").await;
        records.push(serde_json::from_str(&line).unwrap());
    }
    let session = records[0]["session"].as_str().unwrap().to_owned();
    let records: Vec<Value> = records.iter().map(|line| fixed(line, &session)).collect();
    let terminal = json!({
        "kind": "ssh-channel", "container": "c1", "channel": 1, "type": "session", "to": "-",
        "request": "exec", "command": "stty -opost; printf 'x\"y'; exit 3", "terminal": true,
        "recorded": true, "bytes_in": 0, "bytes_out": 3, "exit": "3", "note": "-",
    });
    let refused = json!({
        "kind": "ssh-channel", "container": "c1", "channel": 0, "type": "direct-tcpip",
        "to": "127.0.0.1:1", "request": "-", "command": "-", "terminal": false,
        "recorded": false, "bytes_in": 0, "bytes_out": 0, "exit": "-", "note": "connect_failed",
    });
    let whole = json!({
        "kind": "ssh", "user": user, "container": "c1", "owner": 7, "unix_user": unix_user(),
        "key_id": 5, "fingerprint": fingerprint, "route": "container",
        "upstream": at.to_string(), "channels": 1,
        "opened": "session exec stty -opost; printf 'x\"y'; exit 3 -> 3; \
                   direct-tcpip 127.0.0.1:1 refused: connect_failed",
        "bytes_in": 0, "bytes_out": 3, "note": "-",
    });
    assert_eq!(records, [terminal, refused, whole]);
}
