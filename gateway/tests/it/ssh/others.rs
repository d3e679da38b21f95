//! Clients of SSH that share no code with OpenSSH: PuTTY's, Dropbear's, Go's (in rclone), and the
//! libraries libssh2 and libssh. PuTTY, libssh2 and Go wait for each answer before they go on.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::process::{Output, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use super::clients::run_library;
use super::rig::{Rig, command, exit_code, noise, output, stdout, within};
use crate::support::{DEADLINE, eventually, free_port};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libssh2_finds_nothing_missing() {
    run_library("ssh/libraries.py", "libssh2", 8).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libssh_finds_nothing_missing() {
    run_library("ssh/libraries.py", "libssh", 8).await;
}

/// Says `hello`, echoes to the end of data, says ` bye`, for everyone.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                write.write_all(b"hello ").await?;
                tokio::io::copy(&mut read, &mut write).await?;
                write.write_all(b" bye").await
            });
        }
    });
    address
}

/// Three talks at once with an [`echo`] behind this port.
async fn talk(port: u16) {
    eventually("the forward listens", || async {
        TcpStream::connect(("127.0.0.1", port)).await.is_ok()
    })
    .await;
    let one = async |len: usize| {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (mut read, mut write) = socket.split();
        let data = noise(len);
        let send = async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut back = Vec::new();
        tokio::join!(send, read.read_to_end(&mut back)).1.unwrap();
        assert!(back == [b"hello ", &data[..], b" bye"].concat(), "{port}");
    };
    let all = async { tokio::join!(one(10), one(1 << 20), one(300_000)) };
    within(DEADLINE, "echoes", all).await;
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What every client does with commands: streams apart, their end, the exit status.
async fn runs_commands(client: impl Fn() -> Command) {
    let mut run = client();
    let done: Output = output(run.arg("echo out; echo err >&2; exit 3")).await;
    assert_eq!(done.status.code(), Some(3), "{}", text(&done.stderr));
    assert_eq!(text(&done.stdout), "out\n");
    assert!(text(&done.stderr).ends_with("err\n"));

    let data = noise(2 << 20);
    let mut run = client();
    run.arg("cat; echo end; exit 5");
    let mut child = run
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let sent = data.clone();
    let sending = tokio::spawn(async move { input.write_all(&sent).await });
    let mut back = Vec::new();
    let mut out = child.stdout.take().unwrap();
    let read = out.read_to_end(&mut back);
    within(DEADLINE, "the output", read).await.unwrap();
    assert!(back == [&data[..], b"end\n"].concat(), "{}", back.len());
    sending.await.unwrap().unwrap();
    assert_eq!(exit_code(&mut child).await, Some(5));
}

/// The fingerprint that PuTTY compares the gateway's key with.
fn fingerprint(rig: &Rig) -> String {
    let known = std::fs::read_to_string(rig.path("known_hosts")).unwrap();
    let line = known.split_once(' ').unwrap().1;
    let key = russh::keys::PublicKey::from_openssh(line.trim()).unwrap();
    key.fingerprint(Default::default()).to_string()
}

/// A program of PuTTY's with the owner's key.
fn putty(rig: &Rig, name: &str, options: &[&str]) -> Command {
    let mut putty = command(name);
    putty
        .env("HOME", rig.folder.path())
        .args(["-batch", "-noagent", "-hostkey", &fingerprint(rig)])
        .args(["-P", &rig.address.port().to_string()])
        .args(["-i", &rig.at("owner.ppk")])
        .args(options)
        .arg(format!("{}@127.0.0.1", rig.login("c1")));
    putty
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn putty_finds_nothing_missing() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    std::fs::write(rig.path("no-passphrase"), "").unwrap();
    let mut convert = command("puttygen");
    convert
        .args([
            &rig.at("owner"),
            "-O",
            "private",
            "-o",
            &rig.at("owner.ppk"),
        ])
        .args(["--new-passphrase", &rig.at("no-passphrase")]);
    stdout(&mut convert).await;
    let plink = |options: &[&str]| putty(&rig, "plink", options);

    runs_commands(|| plink(&[])).await;
    // A signal's exit status is PuTTY's own.
    let killed = output(plink(&[]).arg("kill -TERM $$")).await;
    assert_eq!(killed.status.code(), Some(128));
    let done = output(plink(&["-t"]).arg("stty size; echo $TERM; exit 4")).await;
    assert_eq!(text(&done.stdout), "24 80\r\nxterm\r\n");
    assert_eq!(done.status.code(), Some(4));
    let refused = output(plink(&["-s"]).arg("no-such-subsystem")).await;
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("refused"));

    let big = noise(3 << 20);
    std::fs::write(rig.path("big"), &big).unwrap();
    let batch = format!(
        "put {} {}\nget {1} {}\n",
        rig.at("big"),
        rig.at("c1/big"),
        rig.at("back")
    );
    std::fs::write(rig.path("batch"), batch).unwrap();
    stdout(&mut putty(&rig, "psftp", &["-b", &rig.at("batch")])).await;
    assert!(std::fs::read(rig.path("back")).unwrap() == big);

    let target = echo().await;
    let [local, remote] = [free_port(), free_port()];
    let here = format!("127.0.0.1:{local}:{target}");
    let there = format!("127.0.0.1:{remote}:{target}");
    let mut forwards = plink(&["-N", "-L", &here, "-R", &there]).spawn().unwrap();
    talk(remote).await;
    talk(local).await;
    forwards.kill().await.unwrap();
    let pipe = output(&mut plink(&["-nc", &target.to_string()])).await;
    assert_eq!(text(&pipe.stdout), "hello  bye");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropbear_finds_nothing_missing() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut convert = command("dropbearconvert");
    convert.args(["openssh", "dropbear"]);
    stdout(convert.args([rig.at("owner"), rig.at("owner.dropbear")])).await;
    // It knows hosts without their ports.
    let known = std::fs::read_to_string(rig.path("known_hosts")).unwrap();
    let known = format!("127.0.0.1 {}", known.split_once(' ').unwrap().1);
    std::fs::create_dir_all(rig.path(".ssh")).unwrap();
    std::fs::write(rig.path(".ssh/known_hosts"), known).unwrap();
    let dbclient = |options: &[&str]| {
        let mut dbclient = command("dbclient");
        dbclient
            .env("HOME", rig.folder.path())
            .args(["-p", &rig.address.port().to_string()])
            .args(["-i", &rig.at("owner.dropbear")])
            .args(options)
            .arg(format!("{}@127.0.0.1", rig.login("c1")));
        dbclient
    };

    runs_commands(|| dbclient(&[])).await;
    // Its keepalives are requests that want an answer.
    let waited = stdout(dbclient(&["-K", "1"]).arg("sleep 2; echo here")).await;
    assert_eq!(waited, "here\n");

    let target = echo().await;
    let [local, remote] = [free_port(), free_port()];
    let here = format!("127.0.0.1:{local}:{target}");
    let there = format!("127.0.0.1:{remote}:{target}");
    let mut forwards = dbclient(&["-N", "-L", &here, "-R", &there])
        .spawn()
        .unwrap();
    talk(remote).await;
    talk(local).await;
    forwards.kill().await.unwrap();
    let pipe = output(&mut dbclient(&["-B", &target.to_string()])).await;
    assert_eq!(text(&pipe.stdout), "hello  bye");
}

/// rclone's own SFTP and `exec` of checksums, several at once over several connections.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_library_of_go_copies_a_tree_and_compares_checksums() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut config = String::from("[gateway]\ntype = sftp\nhost = 127.0.0.1\n");
    let port = rig.address.port();
    writeln!(config, "port = {port}\nuser = {}", rig.login("c1")).unwrap();
    writeln!(config, "key_file = {}", rig.at("owner")).unwrap();
    writeln!(config, "known_hosts_file = {}", rig.at("known_hosts")).unwrap();
    config += "shell_type = unix\nmd5sum_command = md5sum\nsha1sum_command = sha1sum\n";
    std::fs::write(rig.path("rclone.conf"), config).unwrap();
    std::fs::create_dir_all(rig.path("tree/deep")).unwrap();
    for n in 0..8_usize {
        let name = rig.path(&format!("tree/deep/{n}"));
        std::fs::write(name, &noise(700_000)[n..]).unwrap();
    }
    let there = format!("gateway:{}", rig.at("c1/tree"));
    let (tree, back) = (rig.at("tree"), rig.at("back"));
    let rclone = |args: [&str; 3]| {
        let mut rclone = command("rclone");
        rclone
            .env("HOME", rig.folder.path())
            .args(["--config", &rig.at("rclone.conf"), "--checksum"])
            .args(args);
        rclone
    };
    stdout(&mut rclone(["copy", &tree, &there])).await;
    let checked = output(&mut rclone(["check", &tree, &there])).await;
    let said = text(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    assert!(said.contains("8 matching files"), "{said}");
    assert!(!said.contains("could not be checked"), "{said}");
    stdout(&mut rclone(["copy", &there, &back])).await;
    let same = output(command("diff").args(["-r", &tree, &back])).await;
    assert!(same.status.success(), "{}", text(&same.stdout));
}
