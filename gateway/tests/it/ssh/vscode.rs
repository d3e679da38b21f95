//! VS Code's Remote - SSH: the connections that the extension makes, from a script of ours. Its
//! server can only be had from its maker while it installs, so a small one stands in for it.

use super::rig::Rig;
use crate::support::{program, python};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_vs_code_does_over_ssh_works_and_comes_back_after_a_loss() {
    let rig = Rig::start().await;
    let _c = rig.container("c1").await;
    let mut args = vec![rig.at("c1"), program("ssh", "").display().to_string()];
    args.extend(rig.options("owner"));
    let port = rig.address.port().to_string();
    let (quiet, user) = ("LogLevel=ERROR", rig.login("c1"));
    let words = ["-o", quiet, "-p", &port, "-l", &user, "127.0.0.1"];
    args.extend(words.map(str::to_owned));
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let said = python::run("ssh/vscode.py", &args).await;
    assert_eq!(said.lines().count(), 6, "{said}");
}
