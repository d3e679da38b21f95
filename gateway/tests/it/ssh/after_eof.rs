//! What a client sends behind the end of its data still arrives, in order.

use std::sync::Arc;

use russh::keys::PrivateKeyWithHashAlg;

use super::fake::{Fake, Vice};
use super::limits::connect;
use super::rig::{Rig, free_address, within};
use crate::support::DEADLINE;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_behind_the_end_of_the_data_reach_the_container() {
    let rig = Rig::start().await;
    let mut fake = Fake::start(rig.target(free_address()), Vice::None).await;
    rig.put("c1", fake.address, Some(&fake.host_key), |_| {});
    let mut client = connect(&rig).await;
    let key = PrivateKeyWithHashAlg::new(Arc::new(rig.key()), None);
    let login = client.authenticate_publickey(rig.login("c1"), key);
    assert!(login.await.unwrap().success());
    let channel = client.channel_open_session().await.unwrap();
    channel.exec(true, "sleep").await.unwrap();
    channel.eof().await.unwrap();
    channel.set_env(true, "EDD_LATE", "yes").await.unwrap();
    channel.signal(russh::Sig::USR1).await.unwrap();
    let mut seen = Vec::new();
    within(DEADLINE, "all of it", async {
        while seen.last().is_none_or(|last| last != "signal USR1") {
            seen.push(fake.seen.recv().await.unwrap());
        }
    })
    .await;
    assert_eq!(
        seen[1..],
        ["exec sleep", "eof", "env EDD_LATE=yes", "signal USR1"]
    );
}
