//! What a client has forwarded ends with what let it in: connections of `-L` and `-R`, the listener
//! of `-R`, and the agent; those of others stay.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use edd_route::{ContainerId, UserId};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::{Child, ChildStdout};

use super::rig::{Rig, Sshd, command, exit_code, output, within};
use crate::support::{DEADLINE, REVOCATION, eventually, free_port};

/// A request for the agent's keys.
const IDENTITIES: [u8; 5] = [0, 0, 0, 1, 11];

async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

/// One client with a connection over each kind of forwarding.
struct Ways {
    ssh: Child,
    _shown: ChildStdout,
    local: TcpStream,
    remote: TcpStream,
    remote_at: SocketAddr,
    agent: UnixStream,
}

impl Ways {
    /// Of the owner `user` with the key file of that name, in a container `id` of his.
    async fn open(rig: &Rig, sshd: &Sshd, agent: &str, user: i64) -> Self {
        let (id, key) = (format!("c{user}"), format!("key{user}"));
        let fingerprint = rig.new_key(&key);
        rig.put_keys(UserId(user), &[(user, &fingerprint)]);
        enable(rig, sshd, user, true);
        let target = echo().await;
        let [here, there] =
            [free_port(), free_port()].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        let mut ssh = command("ssh");
        // The first of several is the one that counts.
        ssh.args(["-A", "-o", &format!("IdentityAgent={agent}")])
            .args(rig.options(&key))
            .args(["-o", "ExitOnForwardFailure=yes", "-o", "LogLevel=ERROR"])
            .args(["-L", &format!("{here}:{target}")])
            .args(["-R", &format!("{there}:{target}")])
            .args(["-p", &rig.address.port().to_string()])
            .args(["-l", &rig.login(&id), "127.0.0.1"]);
        let mut ssh = ssh
            .arg("echo $SSH_AUTH_SOCK; exec cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut shown = ssh.stdout.take().unwrap();
        let mut socket = String::new();
        let read = async {
            while !socket.ends_with('\n') {
                socket.push(char::from(shown.read_u8().await.unwrap()));
            }
        };
        within(DEADLINE, "the agent's socket", read).await;
        let mut ways = Self {
            ssh,
            _shown: shown,
            local: TcpStream::connect(here).await.unwrap(),
            remote: TcpStream::connect(there).await.unwrap(),
            remote_at: there,
            agent: UnixStream::connect(socket.trim()).await.unwrap(),
        };
        ways.work().await;
        ways
    }

    /// All of them pass data both ways.
    async fn work(&mut self) {
        echoes(&mut self.local).await;
        echoes(&mut self.remote).await;
        let ask = async {
            self.agent.write_all(&IDENTITIES).await.unwrap();
            let len = self.agent.read_u32().await.unwrap();
            let mut answer = vec![0; len as usize];
            self.agent.read_exact(&mut answer).await.unwrap();
            answer
        };
        assert_eq!(within(DEADLINE, "the agent", ask).await[0], 12);
        assert!(self.ssh.try_wait().unwrap().is_none());
    }

    /// All of them end, in time.
    async fn end(mut self, why: &str) {
        let begin = Instant::now();
        let took = || {
            let took = begin.elapsed();
            assert!(took < REVOCATION, "{why}: {took:?}");
        };
        ends(&mut self.agent, why).await;
        took();
        ends(&mut self.remote, why).await;
        took();
        ends(&mut self.local, why).await;
        took();
        eventually("the container listens no more", || async {
            TcpStream::connect(self.remote_at).await.is_err()
        })
        .await;
        took();
        assert_eq!(exit_code(&mut self.ssh).await, Some(255), "{why}");
        took();
    }
}

async fn echoes(socket: &mut TcpStream) {
    let mut back = [0; 4];
    let talk = async {
        socket.write_all(b"ping").await.unwrap();
        socket.read_exact(&mut back).await.unwrap();
    };
    within(DEADLINE, "an echo", talk).await;
    assert_eq!(&back, b"ping");
}

/// Nothing comes any more but the end, be it a reset.
async fn ends(socket: &mut (impl AsyncRead + AsyncWrite + Unpin), why: &str) {
    let mut rest = [0; 16];
    let read = within(DEADLINE, why, socket.read(&mut rest)).await;
    assert!(matches!(read, Ok(0) | Err(_)), "{why}: {read:?}");
}

fn enable(rig: &Rig, sshd: &Sshd, user: i64, ssh_enabled: bool) {
    let id = format!("c{user}");
    rig.put(&id, sshd.address, Some(&sshd.host_key), |spec| {
        spec.owner = UserId(user);
        spec.ssh_enabled = ssh_enabled;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_forwarded_ends_with_what_let_it_in_and_that_of_others_does_not() {
    let rig = Rig::start().await;
    let sshd = rig.sshd("all", &[]).await;
    let socket = rig.at("agent.sock");
    let mut agent = command("ssh-agent")
        .args(["-D", "-a", &socket])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually("an agent", || async { Path::new(&socket).exists() }).await;
    let mut add = command("ssh-add");
    add.env("SSH_AUTH_SOCK", &socket).arg(rig.path("owner"));
    assert!(output(&mut add).await.status.success());
    let open = |user| Ways::open(&rig, &sshd, &socket, user);
    let (key, container, flag, user, mut stays) =
        tokio::join!(open(11), open(12), open(13), open(14), open(15));

    rig.put_keys(UserId(11), &[]);
    key.end("key deleted").await;
    stays.work().await;

    let id = ContainerId::new("c12").unwrap();
    rig.change(|writer| writer.remove_container(&id));
    container.end("container deleted").await;
    stays.work().await;

    enable(&rig, &sshd, 13, false);
    flag.end("SSH off").await;
    stays.work().await;

    let id = ContainerId::new("c14").unwrap();
    rig.change(|writer| {
        writer.put_keys(UserId(14), Vec::new());
        writer.remove_container(&id);
    });
    user.end("user deleted").await;
    stays.work().await;
    assert_eq!(rig.connections(), 1);
    agent.kill().await.unwrap();
}
