//! What russh asks about one container: is this its key, may it open a channel.
//!
//! Called from the loop of the connection to the container, so nothing here
//! waits for the client. Channels that the client has not asked for are
//! refused: a container that opens them is hostile or broken.

use std::sync::Arc;

use edd_route::ContainerId;
use russh::client::{self, ChannelOpenHandle, Msg, Session};
use russh::keys::PublicKeyOrCertificate;
use russh::keys::ssh_key::public::KeyData;
use russh::{Channel, ChannelId};
use tokio_util::sync::DropGuard;
use tracing::debug;

use super::grants::{Grants, Inbound};
use super::hostkeys::{HostKeyError, HostKeys};
use super::inbound;
use super::upstream::DialError;
use crate::shared::Shared;

/// Our side of the protocol with a container.
pub(crate) struct ContainerHandler {
    pub(crate) shared: Arc<Shared>,
    pub(crate) host_keys: Arc<HostKeys>,
    pub(crate) id: ContainerId,
    pub(crate) start: u64,
    pub(crate) announced: bool,
    pub(crate) expected: Option<KeyData>,
    pub(crate) grants: Arc<Grants>,
    /// Dropped with the connection, which is thereby told.
    pub(crate) _ended: DropGuard,
}

impl ContainerHandler {
    /// Carries the channel to the client if it has asked for such; a reply that is dropped is a
    /// refusal.
    fn opens(&self, channel: Channel<Msg>, what: Inbound, reply: ChannelOpenHandle) {
        match self.grants.admit(&what) {
            Some((client, live)) => inbound::spawn(client, live, what, channel, reply),
            None => {
                debug!(container = %self.id, channel = what.kind(),
                    "a channel that nobody asked for is refused");
            }
        }
    }
}

impl client::Handler for ContainerHandler {
    type Error = DialError;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, DialError> {
        let shown = shown.public_key();
        match &self.expected {
            Some(expected) if shown.key_data() == expected => Ok(true),
            Some(_) if self.announced => Err(HostKeyError::NotAnnounced.into()),
            Some(_) => Err(HostKeyError::Changed.into()),
            None => {
                let table = self.shared.table();
                self.host_keys
                    .pin(&self.id, self.start, shown.key_data(), &table)?;
                Ok(true)
            }
        }
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _max_packet_size: u32,
        _window_size: u32,
        _session: &mut Session,
    ) -> Result<(), DialError> {
        self.grants.backlog.own.opened(id.number());
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), DialError> {
        let own = &self.grants.backlog.own;
        own.arrived(channel.number(), data.len());
        Ok(())
    }

    async fn extended_data(
        &mut self,
        channel: ChannelId,
        _code: u32,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), DialError> {
        let own = &self.grants.backlog.own;
        own.arrived(channel.number(), data.len());
        Ok(())
    }

    // russh accepts what is asked here by default.

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        channel: Channel<Msg>,
        connected_address: &str,
        connected_port: u32,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), DialError> {
        let what = Inbound::Port {
            address: connected_address.to_owned(),
            port: connected_port,
            from: (originator_address.to_owned(), originator_port),
        };
        self.opens(channel, what, reply);
        Ok(())
    }

    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        socket_path: &str,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), DialError> {
        let path = socket_path.to_owned();
        self.opens(channel, Inbound::Socket { path }, reply);
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), DialError> {
        self.opens(channel, Inbound::Agent, reply);
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        channel: Channel<Msg>,
        originator_address: &str,
        originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), DialError> {
        let from = (originator_address.to_owned(), originator_port);
        self.opens(channel, Inbound::X11 { from }, reply);
        Ok(())
    }

    // No client can ask for these.

    async fn server_channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), DialError> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _channel: Channel<Msg>,
        _host_to_connect: &str,
        _port_to_connect: u32,
        _originator_address: &str,
        _originator_port: u32,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), DialError> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _channel: Channel<Msg>,
        _socket_path: &str,
        _reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), DialError> {
        Ok(())
    }
}
