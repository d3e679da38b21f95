//! What a container refuses to a session is refused to its client, in the order of asking.

use std::process::Stdio;
use std::time::{Duration, Instant};

use russh::ChannelMsg;
use tokio::net::TcpListener;

use super::fake::{Fake, Vice};
use super::rig::{Rig, free_address, output, within};
use super::session::{next, strict_client};
use crate::logs;
use crate::support::{DEADLINE, eventually};

async fn answer(channel: &mut russh::Channel<russh::client::Msg>) -> bool {
    match next(channel).await {
        ChannelMsg::Success => true,
        ChannelMsg::Failure => false,
        other => panic!("{other:?}"),
    }
}

/// The requests come in one go, as most clients send them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_container_refuses_is_refused_and_in_order() {
    let rig = Rig::start().await;
    let options = [
        "PermitTTY=no",
        "X11Forwarding=no",
        "AllowAgentForwarding=no",
    ];
    let strict = rig.sshd("c1", &options).await;
    rig.put("c1", strict.address, Some(&strict.host_key), |_| {});
    let _willing = rig.container("c2").await;
    for (id, willing) in [("c1", false), ("c2", true)] {
        let client = strict_client(&rig, id).await;
        let mut channel = client.channel_open_session().await.unwrap();
        channel.agent_forward(true).await.unwrap();
        channel
            .request_pty(true, "xterm", 80, 24, 0, 0, &[])
            .await
            .unwrap();
        channel.set_env(true, "EDD_A", "b").await.unwrap();
        channel.set_env(true, "OTHER", "c").await.unwrap();
        channel.exec(true, "printf '[%s]' $EDD_A").await.unwrap();
        let mut answers = Vec::new();
        for _ in 0..5 {
            answers.push(answer(&mut channel).await);
        }
        assert_eq!(answers, [willing, willing, true, false, true], "{id}");
        match next(&mut channel).await {
            ChannelMsg::Data { data } => assert_eq!(&data[..], b"[b]"),
            other => panic!("{other:?}"),
        }
    }
    // A display in vain.
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    let cookie = "00".repeat(16);
    channel
        .request_x11(true, false, "MIT-MAGIC-COOKIE-1", cookie, 0)
        .await
        .unwrap();
    channel.exec(true, "true").await.unwrap();
    assert!(!answer(&mut channel).await);
    assert!(answer(&mut channel).await);
}

/// A client that does not wait for the answer, and sends what has none: russh would forget that
/// one is wanted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_not_lost_to_a_window_that_changes_before_it() {
    let rig = Rig::start().await;
    let _c1 = rig.container("c1").await;
    for _ in 0..3 {
        // A session that was closed may take a moment to be gone.
        let client = strict_client(&rig, "c1").await;
        let mut channel = client.channel_open_session().await.unwrap();
        channel
            .request_pty(true, "xterm", 80, 24, 0, 0, &[])
            .await
            .unwrap();
        channel.exec(true, "stty size; cat").await.unwrap();
        for columns in 81..91 {
            channel.window_change(columns, 24, 0, 0).await.unwrap();
        }
        assert!(answer(&mut channel).await);
        assert!(answer(&mut channel).await);
        assert!(matches!(next(&mut channel).await, ChannelMsg::Data { .. }));
    }
}

/// OpenSSH says so to its user, and ends if he insists; the record has no terminal.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminal_that_the_container_does_not_make_is_none() {
    logs::watch();
    let rig = Rig::start().await;
    let id = "logged-no-tty";
    let sshd = rig.sshd(id, &["PermitTTY=no"]).await;
    rig.put(id, sshd.address, Some(&sshd.host_key), |_| {});
    let options = ["-tt", "-o", "LogLevel=INFO"];
    let mut ssh = rig.ssh_as(&rig.login(id), "owner", &options);
    let output = output(ssh.arg("tty; echo out").stdin(Stdio::null())).await;
    // As it does straight to such an sshd.
    assert_eq!(output.status.code(), Some(255));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("PTY allocation request failed"), "{told}");
    let of_channel = |line: &String| line.contains("ssh-channel");
    eventually("its line", || async {
        logs::lines(id).iter().any(of_channel)
    })
    .await;
    let lines = logs::lines(id);
    let line = lines.iter().find(|line| of_channel(line)).unwrap();
    assert!(line.contains(" terminal=false"), "{line}");
}

/// It is granted after a moment, which is all that others of the connection wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_leaves_requests_unanswered_stops_nobody() {
    let rig = Rig::start().await;
    let fake = Fake::start(rig.target(free_address()), Vice::None).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let client = strict_client(&rig, "c1").await;
    let mut silent = client.channel_open_session().await.unwrap();
    let mut other = client.channel_open_session().await.unwrap();
    silent
        .request_pty(true, "xterm", 80, 24, 0, 0, &[])
        .await
        .unwrap();
    other.exec(true, "other").await.unwrap();
    let limit = DEADLINE / 2 + Duration::from_secs(1);
    assert!(within(limit, "the other's", answer(&mut other)).await);
    assert!(within(limit, "its own", answer(&mut silent)).await);
    // Others that it leaves unanswered, and one that it does not.
    let cookie = "00".repeat(16);
    silent
        .request_x11(true, false, "MIT-MAGIC-COOKIE-1", cookie, 0)
        .await
        .unwrap();
    silent.set_env(true, "EDD_A", "b").await.unwrap();
    silent.exec(true, "silent").await.unwrap();
    for _ in 0..3 {
        assert!(answer(&mut silent).await);
    }
}

/// As twenty `ssh -tt` over one connection were: each of them kept all others waiting anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_answers_nothing_is_waited_for_once_per_connection() {
    const SESSIONS: u32 = 5;
    // What each of them would cost.
    const EACH: Duration = Duration::from_millis(500);
    let rig = Rig::start().await;
    let fake = Fake::start(rig.target(free_address()), Vice::None).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let client = strict_client(&rig, "c1").await;
    let mut other = client.channel_open_session().await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..SESSIONS {
        silent.push(client.channel_open_session().await.unwrap());
    }
    let begun = Instant::now();
    for channel in &silent {
        channel
            .request_pty(true, "xterm", 80, 24, 0, 0, &[])
            .await
            .unwrap();
    }
    other.exec(true, "other").await.unwrap();
    assert!(answer(&mut other).await);
    let took = begun.elapsed();
    assert!(took < EACH * SESSIONS, "{took:?}");
    for channel in &mut silent {
        assert!(answer(channel).await);
        channel.exec(true, "silent").await.unwrap();
        assert!(answer(channel).await);
    }
}

/// Its refusal is not that of the command, which comes behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_that_answers_late_still_runs_what_was_asked() {
    let rig = Rig::start().await;
    let fake = Fake::start(rig.target(free_address()), Vice::AnswersLate).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let client = strict_client(&rig, "c1").await;
    let mut channel = client.channel_open_session().await.unwrap();
    channel.set_env(true, "EDD_A", "b").await.unwrap();
    channel.exec(true, "command").await.unwrap();
    // Granted, since nobody knew better.
    assert!(answer(&mut channel).await);
    assert!(answer(&mut channel).await);
    match next(&mut channel).await {
        ChannelMsg::Data { data } => assert_eq!(&data[..], b"started\n"),
        other => panic!("{other:?}"),
    }
}

/// Its late answer was taken for that of the command, whose own then says the opposite.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_is_refused_behind_a_late_answer_ends() {
    let rig = Rig::start().await;
    let fake = Fake::start(rig.target(free_address()), Vice::RefusesLate).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let mut ssh = rig.ssh("c1");
    let output = output(
        ssh.args(["-o", "SetEnv=EDD_A=b", "true"])
            .stdin(Stdio::null()),
    )
    .await;
    assert_eq!(output.status.code(), Some(255));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("the container refuses to run that"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forward_has_no_terminal_and_runs_nothing() {
    let rig = Rig::start().await;
    let _c1 = rig.container("c1").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = strict_client(&rig, "c1").await;
    let mut forward = client
        .channel_open_direct_tcpip("127.0.0.1", port.into(), "127.0.0.1", 1)
        .await
        .unwrap();
    forward.exec(true, "true").await.unwrap();
    forward
        .request_pty(true, "xterm", 80, 24, 0, 0, &[])
        .await
        .unwrap();
    forward.request_shell(true).await.unwrap();
    forward.request_subsystem(true, "sftp").await.unwrap();
    forward.set_env(true, "EDD_A", "b").await.unwrap();
    forward.agent_forward(true).await.unwrap();
    for _ in 0..6 {
        assert!(!answer(&mut forward).await);
    }
}
