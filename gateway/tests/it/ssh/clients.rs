//! Other clients than OpenSSH's own, and programs that run over `ssh`.

use std::path::Path;

use tokio::process::Command;

use super::rig::{Rig, command, noise, output, stdout};
use crate::support::{program, python};

/// Runs a script with a library: a line for everything that it found to be as it should.
pub(super) async fn run_library(script: &str, library: &str, least: usize) {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let known = std::fs::read_to_string(rig.path("known_hosts")).unwrap();
    let host_key = known.split_once(' ').unwrap().1.trim();
    let port = rig.address.port().to_string();
    let user = rig.login("c1");
    let (key, folder) = (rig.at("owner"), rig.at("c1"));
    let args = [library, "127.0.0.1", &port, &user, &key, host_key, &folder];
    let said = python::run(script, &args).await;
    assert!(said.lines().count() >= least, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paramiko_finds_nothing_missing() {
    run_library("ssh/clients.py", "paramiko", 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn asyncssh_finds_nothing_missing() {
    run_library("ssh/clients.py", "asyncssh", 10).await;
}

/// `ssh` as other programs want it: one line for a shell.
fn remote_shell(rig: &Rig) -> String {
    let port = rig.address.port().to_string();
    let mut words = vec![program("ssh", "").display().to_string()];
    words.extend(rig.options("owner"));
    words.extend(["-p".into(), port]);
    words.join(" ")
}

fn git(rig: &Rig, args: &[&str]) -> Command {
    let mut git = command("git");
    git.args(["-c", "user.name=t", "-c", "user.email=t@example.com"])
        .args(["-c", "init.defaultBranch=main"])
        .args(args)
        .env("GIT_SSH_COMMAND", remote_shell(rig))
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", rig.folder.path());
    git
}

/// C4: the end of what a client sends was not passed on: git, rsync and tar hung.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn git_clones_and_pushes() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let bare = rig.at("c1/bare.git");
    let (one, two) = (rig.at("one"), rig.at("two"));
    stdout(&mut git(&rig, &["init", "-q", "--bare", &bare])).await;
    stdout(&mut git(&rig, &["init", "-q", &one])).await;
    std::fs::write(Path::new(&one).join("big"), noise(5 << 20)).unwrap();
    stdout(&mut git(&rig, &["-C", &one, "add", "big"])).await;
    stdout(&mut git(&rig, &["-C", &one, "commit", "-qm", "first"])).await;
    // The port is ssh's own.
    let url = format!("{}@127.0.0.1:{bare}", rig.login("c1"));
    stdout(&mut git(&rig, &["-C", &one, "push", "-q", &url, "main"])).await;
    stdout(&mut git(&rig, &["clone", "-q", "-b", "main", &url, &two])).await;
    assert!(std::fs::read(Path::new(&two).join("big")).unwrap() == noise(5 << 20));
    std::fs::write(Path::new(&two).join("small"), "x").unwrap();
    stdout(&mut git(&rig, &["-C", &two, "add", "small"])).await;
    stdout(&mut git(&rig, &["-C", &two, "commit", "-qm", "second"])).await;
    stdout(&mut git(&rig, &["-C", &two, "push", "-q"])).await;
    stdout(&mut git(&rig, &["-C", &one, "pull", "-q", &url, "main"])).await;
    assert!(Path::new(&one).join("small").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rsync_goes_both_ways_with_checksums() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let from = rig.path("from");
    std::fs::create_dir_all(from.join("deep/er")).unwrap();
    for n in 0..200_u8 {
        let name = from.join(format!("deep/er/{n}"));
        std::fs::write(name, vec![n; usize::from(n) * 50]).unwrap();
    }
    std::fs::write(from.join("big"), noise(6 << 20)).unwrap();
    let there = format!("{}@127.0.0.1:{}/", rig.login("c1"), rig.at("c1/there"));
    let rsync = |from: &str, to: &str| {
        let mut rsync = command("rsync");
        let path = program("rsync", "");
        rsync
            .args(["-a", "--checksum", "--itemize-changes", "--delete"])
            .args(["-e", &remote_shell(&rig)])
            .arg(format!("--rsync-path={}", path.display()))
            .args([from, to]);
        rsync
    };
    let (from, back) = (
        format!("{}/", rig.at("from")),
        format!("{}/", rig.at("back")),
    );
    stdout(&mut rsync(&from, &there)).await;
    assert_eq!(stdout(&mut rsync(&from, &there)).await, "", "all is there");
    // A part of the large file only: the algorithm goes back and forth.
    let mut big = noise(6 << 20);
    big[3 << 20..(3 << 20) + 100].fill(0);
    std::fs::write(rig.path("from/big"), &big).unwrap();
    let changed = stdout(&mut rsync(&from, &there)).await;
    assert_eq!(changed.lines().count(), 1, "{changed}");
    stdout(&mut rsync(&there, &back)).await;
    assert!(std::fs::read(rig.path("back/big")).unwrap() == big);
    let same = output(command("diff").args(["-r", &from, &back])).await;
    assert!(same.status.success());
}
