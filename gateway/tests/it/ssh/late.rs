//! A client that answers too late whether it opens what the container wants opened.

use std::sync::Arc;
use std::time::Duration;

use edd_gateway::ssh::Limits;
use russh::keys::{PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{ChannelMsg, client};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::rig::{Rig, within};
use super::session::next;
use crate::support::DEADLINE;

/// A client that thinks for too long about its agent.
struct Slow(mpsc::Sender<russh::Channel<client::Msg>>);

impl client::Handler for Slow {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        _shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        Ok(true)
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: russh::Channel<client::Msg>,
        reply: client::ChannelOpenHandle,
        _session: &mut client::Session,
    ) -> Result<(), russh::Error> {
        let opened = self.0.clone();
        tokio::spawn(async move {
            // Twice what is waited for.
            tokio::time::sleep(Duration::from_secs(4)).await;
            reply.accept().await;
            let _ = opened.send(channel).await;
        });
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_channel_that_is_opened_too_late_is_closed() {
    let limits = Limits {
        open: Duration::from_secs(2),
        ..Limits::default()
    };
    let rig = Rig::start_with(limits, &[]).await;
    let _c1 = rig.container("c1").await;
    let socket = TcpStream::connect(rig.address).await.unwrap();
    let (told, mut opened) = mpsc::channel(1);
    let mut client = client::connect_stream(Arc::default(), socket, Slow(told))
        .await
        .unwrap();
    let key = PrivateKeyWithHashAlg::new(Arc::new(rig.key()), None);
    let login = client.authenticate_publickey(rig.login("c1"), key).await;
    assert!(login.unwrap().success());
    let session = client.channel_open_session().await.unwrap();
    session.agent_forward(true).await.unwrap();
    session.exec(true, "ssh-add -l; sleep 60").await.unwrap();
    let mut late = within(DEADLINE, "the agent's channel", opened.recv())
        .await
        .unwrap();
    while !matches!(next(&mut late).await, ChannelMsg::Close) {}
}
