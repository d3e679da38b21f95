//! Sessions: commands, streams, terminals, files, many at once.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use russh::keys::PrivateKeyWithHashAlg;
use russh::keys::PublicKeyOrCertificate;
use russh::{ChannelMsg, ChannelOpenFailure, Pty, Sig, client};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::fake::{Fake, Vice};
use super::rig::{Rig, command, exit_code, free_address, noise, output, stdout, unix_user, within};
use crate::support::{DEADLINE, eventually};

/// C5: standard error was never passed on, and unread it stopped the channel.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_has_its_streams_and_its_exit_code() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let output = output(rig.ssh("c1").arg("echo out; echo err >&2; exit 3")).await;
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "err\n");
    assert!(
        rig.metrics()
            .contains("ssh_auth_total{result=\"accepted\"} 1")
    );
}

/// OpenSSH waits for the server's close after a command; nobody else does it for us.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_command_is_told_at_once() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    let mut quickest = Duration::MAX;
    for _ in 0..5 {
        let begun = Instant::now();
        let output = output(rig.ssh_over("c1").arg("true").stdin(Stdio::null())).await;
        assert_eq!(output.status.code(), Some(0));
        quickest = quickest.min(begun.elapsed());
    }
    assert!(quickest < Duration::from_millis(900), "{quickest:?}");
}

/// C8: a name without a dot was taken for a user, so the advertised form could not log in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_id_alone_logs_in_as_root() {
    if unix_user() != "root" {
        return;
    }
    let rig = Rig::start().await;
    let _c = rig.container("my-app").await;
    let who = stdout(rig.ssh_as("my-app", "owner", &[]).arg("id -un")).await;
    assert_eq!(who, "root\n");
}

/// OpenSSH closes as soon as it has both ends of data; an exit status behind them was lost in
/// one of six runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_exit_codes_arrive() {
    let rig = Arc::new(Rig::start().await);
    let _c = rig.container("c1").await;
    let _master = rig.master("c1").await;
    std::fs::write(rig.path("input"), noise(256 << 10)).unwrap();
    let mut runs = JoinSet::new();
    let mut ended = Vec::new();
    for run in 0..50 {
        let rig = Arc::clone(&rig);
        runs.spawn(async move {
            let code = [0, 3, 255][run % 3];
            let input = std::fs::File::open(rig.path("input")).unwrap();
            let mut ssh = rig.ssh_over("c1");
            ssh.arg(format!("cksum >/dev/null; exit {code}"))
                .stdin(input);
            let output = output(&mut ssh).await;
            (code, output.status.code())
        });
        if run >= 5 {
            ended.push(runs.join_next().await.unwrap().unwrap());
        }
    }
    ended.extend(runs.join_all().await);
    assert_eq!(ended.len(), 50);
    let wrong: Vec<_> = ended
        .iter()
        .filter(|(wanted, got)| Some(*wanted) != *got)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// C4: the end of a client's input was not passed on, so `cat x | ssh host 'cat > y'` hung.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_in_comes_out_and_the_end_of_input_arrives() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let data = noise(3 << 20);
    std::fs::write(rig.path("input"), &data).unwrap();
    let input = std::fs::File::open(rig.path("input")).unwrap();
    let output = output(rig.ssh("c1").arg("cat; echo end >&2").stdin(input)).await;
    assert!(output.status.success());
    assert!(output.stdout == data, "{} bytes", output.stdout.len());
    assert_eq!(String::from_utf8_lossy(&output.stderr), "end\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shell_takes_its_commands_from_the_input() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut ssh = rig
        .ssh("c1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = ssh.stdin.take().unwrap();
    input.write_all(b"echo $((6 * 7)); exit 5\n").await.unwrap();
    let mut text = String::new();
    let mut pipe = ssh.stdout.take().unwrap();
    within(DEADLINE, "output", pipe.read_to_string(&mut text))
        .await
        .unwrap();
    assert!(text.contains("42"), "{text:?}");
    assert_eq!(exit_code(&mut ssh).await, Some(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn variables_and_a_forced_terminal_pass() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let options = ["-tt", "-o", "SetEnv=EDD_COLOUR=green"];
    let mut ssh = rig.ssh_as(&rig.login("c1"), "owner", &options);
    let text = stdout(ssh.arg("echo $EDD_COLOUR; tty")).await;
    assert!(text.starts_with("green\r\n/dev/pts/"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_both_ways_by_sftp_and_scp() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let data = noise(1 << 20);
    std::fs::write(rig.path("a"), &data).unwrap();
    let there = rig.at("there");
    let batch = format!("put {} {there}\nget {there} {}\n", rig.at("a"), rig.at("b"));
    std::fs::write(rig.path("batch"), batch).unwrap();
    let port = rig.address.port().to_string();
    let target = format!("{}@127.0.0.1", rig.login("c1"));
    let mut sftp = command("sftp");
    sftp.args(rig.options("owner"))
        .args(["-P", &port, "-b", &rig.at("batch"), &target]);
    stdout(&mut sftp).await;
    assert!(std::fs::read(rig.path("b")).unwrap() == data);

    let mut scp = command("scp");
    scp.args(rig.options("owner"))
        .args(["-P", &port, &format!("{target}:{there}"), &rig.at("c")]);
    stdout(&mut scp).await;
    assert!(std::fs::read(rig.path("c")).unwrap() == data);

    let gone = format!("get {}\n", rig.at("nowhere"));
    std::fs::write(rig.path("batch"), gone).unwrap();
    let mut sftp = command("sftp");
    sftp.args(rig.options("owner"))
        .args(["-P", &port, "-b", &rig.at("batch"), &target]);
    assert_eq!(output(&mut sftp).await.status.code(), Some(1));
}

/// C2: one channel was served at a time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_sessions_share_a_connection() {
    let rig = Arc::new(Rig::start().await);
    // OpenSSH's own default: from ten log-ins at once on it drops some.
    let c1 = rig.sshd("c1", &["MaxStartups=10:30:100"]).await;
    rig.put("c1", c1.address, Some(&c1.host_key), |_| {});
    let _master = rig.master("c1").await;
    let mut sessions = JoinSet::new();
    for n in 0..20 {
        let rig = Arc::clone(&rig);
        sessions.spawn(async move {
            let run = format!("sleep 0.5; echo {n}");
            assert_eq!(stdout(rig.ssh_over("c1").arg(run)).await, format!("{n}\n"));
        });
    }
    sessions.join_all().await;
    assert!(rig.metrics().contains("ssh_sessions 1\n"));
    assert!(
        rig.metrics()
            .contains("ssh_auth_total{result=\"accepted\"} 1")
    );
}

/// As a browser has them through `-D`. The container is none of OpenSSH, which would be as many
/// processes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_has_hundreds_of_channels_at_once() {
    const CHANNELS: usize = 120;
    let tune = |config: &mut edd_gateway::config::Config| config.max_upstream_connections = 1000;
    let rig = Rig::start_tuned(edd_gateway::ssh::Limits::default(), &[], tune).await;
    let fake = Fake::start(rig.target(free_address()), Vice::None).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let client = Arc::new(strict_client(&rig, "c1").await);
    let mut opening = JoinSet::new();
    for _ in 0..CHANNELS {
        let client = Arc::clone(&client);
        opening.spawn(async move { client.channel_open_session().await.unwrap() });
    }
    let mut channels = within(4 * DEADLINE, "all of them", opening.join_all()).await;
    // All of them still work.
    for channel in &mut channels {
        channel.exec(true, "work").await.unwrap();
        assert!(matches!(next(channel).await, ChannelMsg::Success));
    }
    assert_eq!(channels.len(), CHANNELS);
    assert!(rig.shared.gate.upstreams() >= CHANNELS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_local_forward_carries_connections_and_their_half_close() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = echo.local_addr().unwrap();
    // Speaks first, echoes until the end of data, then says goodbye.
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = echo.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                write.write_all(b"hello ").await.unwrap();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
                write.write_all(b" bye").await.unwrap();
            });
        }
    });
    let local = rig.path("forward.sock");
    let forward = format!("{}:127.0.0.1:{}", local.display(), target.port());
    let dead = rig.path("dead.sock");
    let to_nobody = format!("{}:127.0.0.1:1", dead.display());
    let options = ["-N", "-L", &forward, "-L", &to_nobody];
    let mut ssh = rig
        .ssh_as(&rig.login("c1"), "owner", &options)
        .spawn()
        .unwrap();
    eventually("the forward listens", || async { dead.exists() }).await;

    let mut refused = tokio::net::UnixStream::connect(&dead).await.unwrap();
    let mut nothing = Vec::new();
    within(DEADLINE, "a refusal", refused.read_to_end(&mut nothing))
        .await
        .unwrap();
    assert!(nothing.is_empty());

    let mut connections = JoinSet::new();
    for n in 0..5_u8 {
        let local = local.clone();
        connections.spawn(async move {
            let mut socket = tokio::net::UnixStream::connect(local).await.unwrap();
            let data = noise(100_000 + usize::from(n));
            let mut back = Vec::new();
            let (mut read, mut write) = socket.split();
            let send = async {
                write.write_all(&data).await.unwrap();
                write.shutdown().await.unwrap();
            };
            let both = async { tokio::join!(send, read.read_to_end(&mut back)) };
            within(DEADLINE, "an echo", both).await.1.unwrap();
            let wanted = [b"hello ", &data[..], b" bye"].concat();
            assert!(back == wanted, "{} of {}", back.len(), wanted.len());
        });
    }
    connections.join_all().await;
    ssh.kill().await.unwrap();
}

/// A client that trusts any host key and waits for every answer.
pub(super) struct Trusting(pub(crate) Arc<Mutex<Option<String>>>);

impl client::Handler for Trusting {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _key: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn disconnected(
        &mut self,
        reason: client::DisconnectReason<russh::Error>,
    ) -> Result<(), russh::Error> {
        if let client::DisconnectReason::ReceivedDisconnect(info) = reason {
            *self.0.lock().unwrap() = Some(info.message);
        }
        Ok(())
    }
}

pub(super) async fn strict_client(rig: &Rig, id: &str) -> client::Handle<Trusting> {
    let socket = TcpStream::connect(rig.address).await.unwrap();
    let mut client = client::connect_stream(Arc::default(), socket, Trusting(Arc::default()))
        .await
        .unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(rig.key()), None);
    let login = client.authenticate_publickey(rig.login(id), key).await;
    assert!(login.unwrap().success());
    client
}

pub(super) async fn next(channel: &mut russh::Channel<client::Msg>) -> ChannelMsg {
    loop {
        let message = within(DEADLINE, "a message", channel.wait()).await;
        match message.expect("not the end") {
            ChannelMsg::WindowAdjusted { .. } => {}
            message => return message,
        }
    }
}

/// How a channel ends.
async fn until_closed(channel: &mut russh::Channel<client::Msg>) -> Vec<String> {
    let mut seen = Vec::new();
    loop {
        match next(channel).await {
            ChannelMsg::ExitSignal { signal_name, .. } => {
                seen.push(format!("signal {signal_name:?}"));
            }
            ChannelMsg::ExitStatus { exit_status } => seen.push(format!("status {exit_status}")),
            ChannelMsg::Eof => seen.push("eof".to_owned()),
            ChannelMsg::Close => return seen,
            other => panic!("{other:?}"),
        }
    }
}

/// Data until `text` is among it.
async fn until_data(channel: &mut russh::Channel<client::Msg>, text: &str) {
    let mut seen = String::new();
    while !seen.contains(text) {
        match next(channel).await {
            ChannelMsg::Data { data } => seen.push_str(&String::from_utf8_lossy(&data)),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_wanted_reply_comes_in_order_and_the_window_size_follows() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel
        .request_pty(true, "xterm", 80, 24, 0, 0, &[])
        .await
        .unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    channel.set_env(true, "EDD_A", "b").await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    channel.request_shell(true).await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    channel.data_bytes("stty size\n").await.unwrap();
    until_data(&mut channel, "24 80").await;
    channel.window_change(132, 43, 0, 0).await.unwrap();
    channel.data_bytes("stty size; exit 4\n").await.unwrap();
    until_data(&mut channel, "43 132").await;
    let status = loop {
        if let ChannelMsg::ExitStatus { exit_status } = next(&mut channel).await {
            break exit_status;
        }
    };
    assert_eq!(status, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_by_a_signal_is_told_before_the_end_of_data() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "kill -TERM $$").await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    assert_eq!(until_closed(&mut channel).await, ["signal TERM", "eof"]);
}

/// OpenSSH's sshd passes no signals on to root's sessions, so this container is another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_reach_the_container() {
    let rig = Rig::start().await;
    let mut fake = Fake::start(rig.target(free_address()), Vice::None).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "sleep").await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    until_data(&mut channel, "started").await;
    channel.signal(Sig::USR1).await.unwrap();
    assert_eq!(until_closed(&mut channel).await, ["signal USR1", "eof"]);
    for wanted in [
        &format!("login {}", unix_user()),
        "exec sleep",
        "signal USR1",
    ] {
        assert_eq!(fake.seen.recv().await.as_deref(), Some(wanted));
    }
}

/// A client that has asked for nothing, or for something else, gets nothing of a hostile container.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_opens_only_what_the_client_has_asked_for() {
    let rig = Rig::start().await;
    let mut fake = Fake::start(rig.target(free_address()), Vice::OpensChannels).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let client = strict_client(&rig, "c1").await;
    let mut opened = async || loop {
        let seen = within(DEADLINE, "an answer", fake.seen.recv())
            .await
            .unwrap();
        if let Some(opened) = seen.strip_prefix("opened ") {
            return opened.to_owned();
        }
    };
    let channel = client.channel_open_session().await.unwrap();
    assert_eq!(opened().await, "000000 000000");
    // Nor what is carried back by another connection to the container.
    channel.agent_forward(true).await.unwrap();
    channel.exec(true, "agent").await.unwrap();
    assert_eq!(opened().await, "001000 001000");
    let channel = client.channel_open_session().await.unwrap();
    assert_eq!(opened().await, "000000 000000");
    let cookie = "00112233445566778899aabbccddeeff";
    let ask = channel.request_x11(true, true, "MIT-MAGIC-COOKIE-1", cookie, 0);
    ask.await.unwrap();
    channel.exec(true, "one window").await.unwrap();
    assert_eq!(opened().await, "000100 000000");
    let channel = client.channel_open_session().await.unwrap();
    assert_eq!(opened().await, "000000 000000");
    let ask = channel.request_x11(true, false, "MIT-MAGIC-COOKIE-1", cookie, 0);
    ask.await.unwrap();
    channel.exec(true, "windows").await.unwrap();
    assert_eq!(opened().await, "000100 000100");
}

/// C6: with the exit status everything was closed at once, and the last output lost. sshd itself
/// tells it early when a terminal's last output is still to be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_status_comes_behind_all_output() {
    let rig = Rig::start().await;
    let fake = Fake::start(rig.target(free_address()), Vice::ExitsEarly).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "x").await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    until_data(&mut channel, "last words").await;
    assert_eq!(until_closed(&mut channel).await, ["status 5", "eof"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_exit_status_does_not_wait_for_what_runs_on_in_the_background() {
    let rig = Rig::start().await;
    let fake = Fake::start(rig.target(free_address()), Vice::StaysOpen).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "x").await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    let status = next(&mut channel).await;
    assert!(
        matches!(status, ChannelMsg::ExitStatus { exit_status: 5 }),
        "{status:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminal_modes_reach_the_container() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    let modes = [(Pty::VINTR, 7), (Pty::ECHO, 0), (Pty::OPOST, 0)];
    let ask = channel.request_pty(true, "dumb", 80, 24, 640, 480, &modes);
    ask.await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    channel.exec(true, "stty -a; echo $TERM.").await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Success));
    let mut seen = String::new();
    while !seen.contains("dumb.") {
        if let ChannelMsg::Data { data } = next(&mut channel).await {
            seen.push_str(&String::from_utf8_lossy(&data));
        }
    }
    for wanted in ["intr = ^G", " -echo ", "-opost"] {
        assert!(seen.contains(wanted), "{seen}");
    }
}

/// C7: `keepalive@openssh.com` was refused and clients that rely on it gave up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keepalives_of_both_sides_are_answered() {
    let rig = Rig::start().await;
    // Unanswered, either ends it after four seconds.
    let options = ["ClientAliveInterval=1", "ClientAliveCountMax=3"];
    let c1 = rig.sshd("c1", &options).await;
    rig.put("c1", c1.address, Some(&c1.host_key), |_| {});
    let options = ["-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=3"];
    let mut ssh = rig.ssh_as(&rig.login("c1"), "owner", &options);
    assert_eq!(
        stdout(ssh.arg("sleep 8; echo still here")).await,
        "still here\n"
    );
}

/// What the container says about a channel that it does not open is what the client hears.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_of_channels_have_the_containers_reason() {
    let rig = Rig::start().await;
    let c1 = rig.sshd("c1", &["PermitOpen=127.0.0.1:1"]).await;
    rig.put("c1", c1.address, Some(&c1.host_key), |_| {});
    let client = strict_client(&rig, "c1").await;
    for (port, wanted) in [
        (1, ChannelOpenFailure::ConnectFailed),
        (2, ChannelOpenFailure::AdministrativelyProhibited),
    ] {
        let open = client.channel_open_direct_tcpip("127.0.0.1", port, "127.0.0.1", 9);
        match within(DEADLINE, "an answer", open).await {
            Err(russh::Error::ChannelOpenFailure(reason)) => assert_eq!(reason, wanted),
            other => panic!("{port}: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_subsystem_is_refused_by_the_container() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.request_subsystem(true, "no-such").await.unwrap();
    assert!(matches!(next(&mut channel).await, ChannelMsg::Failure));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rekey_in_the_middle_loses_nothing() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let data = noise(6 << 20);
    std::fs::write(rig.path("input"), &data).unwrap();
    let input = std::fs::File::open(rig.path("input")).unwrap();
    let options = ["-o", "RekeyLimit=1M"];
    let mut ssh = rig.ssh_as(&rig.login("c1"), "owner", &options);
    let output = output(ssh.arg("cat").stdin(input)).await;
    assert!(output.status.success());
    assert!(output.stdout == data, "{} bytes", output.stdout.len());
}

/// Neither side of the container's connection stays when the client is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_vanishes_takes_its_container_connections_along() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut ssh = rig
        .ssh("c1")
        .args(["-tt", "sleep 60"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let upstreams = || {
        rig.metrics()
            .contains("upstream_connections{state=\"active\"} 1")
    };
    eventually("a session", || async { upstreams() }).await;
    ssh.kill().await.unwrap();
    let none = || {
        let text = rig.metrics();
        text.contains("ssh_sessions 0") && text.contains("{state=\"active\"} 0")
    };
    eventually("no session", || async { none() }).await;
    assert_eq!(rig.connections(), 0);
}
