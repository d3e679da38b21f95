//! Ansible over its usual connection: OpenSSH with `ControlPersist`, one master per host.
//!
//! The user's name, which is the container's here, is told to `ssh` and not to Ansible: Ansible
//! takes `ansible_user` for a user of the container's when it looks for a home folder.

use std::os::unix::fs::PermissionsExt as _;

use tokio::process::Command;

use super::rig::{Rig, free_address, noise, output, within};
use crate::support::{DEADLINE, program, python};

const SCRIPT: &str = "#!/bin/sh\necho \"$1 $2\"\n";

/// `adhoc` or `playbook` with containers as hosts.
fn ansible(rig: &Rig, entry: &str, ids: &[&str]) -> Command {
    let mut inventory = String::from("[containers]\n");
    for id in ids {
        inventory += &format!("{id} login={}\n", rig.login(id));
    }
    inventory += &format!(
        "[containers:vars]\n\
         ansible_host=127.0.0.1\n\
         ansible_port={}\n\
         ansible_python_interpreter={{{{ ansible_playbook_python }}}}\n\
         ansible_ssh_executable={}\n\
         ansible_ssh_common_args={} -o User={{{{ login }}}} -o ControlPath={}/%C\n",
        rig.address.port(),
        program("ssh", "").display(),
        rig.options("owner").join(" "),
        rig.folder.path().display(),
    );
    std::fs::write(rig.path("inventory"), inventory).unwrap();
    std::fs::write(rig.path("ansible.cfg"), "").unwrap();
    let mut command = python::module("ansible", &[entry, "-i", &rig.at("inventory")]);
    command
        .env("HOME", rig.folder.path())
        .env("LC_ALL", "C.UTF-8")
        .env("ANSIBLE_CONFIG", rig.path("ansible.cfg"))
        .env("ANSIBLE_NOCOLOR", "1");
    command
}

/// How many clients have logged in so far.
fn logins(rig: &Rig) -> u64 {
    let text = rig.metrics();
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("ssh_auth_total{result=\"accepted\"} "));
    count.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ansible_plays_a_playbook_on_two_containers_with_pipelining_and_without() {
    let rig = Rig::start().await;
    let _c1 = rig.container("c1").await;
    let _c2 = rig.container("c2").await;
    let big = noise(3 << 20);
    std::fs::write(rig.path("big"), &big).unwrap();
    std::fs::write(rig.path("script.sh"), SCRIPT).unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(rig.path("script.sh"), mode).unwrap();
    let folder = format!("folder={}", rig.folder.path().display());
    let playbook = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/ssh/ansible.yml");

    let mut command = ansible(&rig, "playbook", &["c1", "c2"]);
    // Some sixty processes, one after the other: the slowest test of them all on a busy machine.
    let play = command.args(["-e", &folder, playbook]).output();
    let done = within(6 * DEADLINE, "the playbook", play).await.unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    let stderr = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}\n{stderr}");
    for host in ["c1", "c2"] {
        let begin = format!("{host} ");
        let recap = said.lines().find(|line| line.starts_with(&begin));
        let recap = recap.unwrap_or_else(|| panic!("{said}"));
        for wanted in ["ok=11 ", "unreachable=0", "failed=0", "ignored=0"] {
            assert!(recap.contains(wanted), "{said}");
        }
        let back = std::fs::read(rig.path(&format!("{host}/back"))).unwrap();
        assert!(back == big, "{host}: {} bytes", back.len());
    }
    // Each host's master was made once, and all the tasks went over it.
    assert_eq!(logins(&rig), 2, "{said}");
}

/// A container that is not reached is told as such, and nobody waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ansible_pings_and_tells_which_containers_it_does_not_reach() {
    let rig = Rig::start().await;
    let _c1 = rig.container("c1").await;
    rig.put("c2", free_address(), None, |_| {});
    rig.put("c3", free_address(), None, |spec| spec.running = None);
    let mut command = ansible(&rig, "adhoc", &["c1", "c2", "c3"]);
    let done = output(command.args(["--one-line", "all", "-m", "ping"])).await;
    let said = String::from_utf8_lossy(&done.stdout);
    assert_eq!(done.status.code(), Some(4), "{said}");
    let of = |host: &str| {
        let begin = format!("{host} | ");
        let line = said.lines().find_map(|line| line.strip_prefix(&begin));
        line.unwrap_or_else(|| panic!("{host}: {said}"))
    };
    assert!(of("c1").starts_with("SUCCESS"), "{said}");
    assert!(of("c1").contains("\"ping\": \"pong\""), "{said}");
    assert!(of("c2").starts_with("UNREACHABLE!"), "{said}");
    assert!(of("c3").starts_with("UNREACHABLE!"), "{said}");
    assert!(of("c3").contains("Permission denied"), "{said}");
}
