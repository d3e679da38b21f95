//! The client's direction: read at once, queued, written to the container in order.

use std::sync::atomic::Ordering;

use russh::{ChannelMsg, ChannelReadHalf};

use super::{Bridge, ClientEnd, Kind};
use crate::ssh::answers::Question;
use crate::ssh::request::Request;
use crate::ssh::uplink::{Excess, Item};

impl Bridge<'_> {
    /// Takes what the client sends, at once: the connection's loop waits for this.
    pub(super) async fn read_client(&self, from: &mut ChannelReadHalf) -> ClientEnd {
        loop {
            let Some(message) = from.wait().await else {
                return ClientEnd::Gone;
            };
            let queued = match message {
                ChannelMsg::Data { data } => {
                    self.uplink.push_data(None, data);
                    Ok(())
                }
                ChannelMsg::ExtendedData { data, ext } => {
                    self.uplink.push_data(Some(ext), data);
                    Ok(())
                }
                ChannelMsg::Eof => {
                    self.uplink.push_eof();
                    Ok(())
                }
                ChannelMsg::Close => return ClientEnd::Closed,
                other => self.queue_request(other),
            };
            if queued.is_err() {
                return ClientEnd::Excess;
            }
        }
    }

    fn queue_request(&self, message: ChannelMsg) -> Result<(), Excess> {
        // A forward has no requests.
        if self.kind != Kind::Session {
            return Ok(());
        }
        let request = match message {
            ChannelMsg::RequestPty {
                term,
                col_width,
                row_height,
                pix_width,
                pix_height,
                terminal_modes,
                ..
            } => {
                self.has_terminal.store(true, Ordering::Relaxed);
                Request::Pty {
                    term,
                    size: [col_width, row_height, pix_width, pix_height],
                    modes: terminal_modes,
                }
            }
            ChannelMsg::SetEnv {
                variable_name,
                variable_value,
                ..
            } => Request::Env(variable_name, variable_value),
            ChannelMsg::RequestShell { .. } => Request::Shell,
            ChannelMsg::Exec { command, .. } => Request::Exec(command),
            ChannelMsg::RequestSubsystem { name, .. } => Request::Subsystem(name),
            ChannelMsg::Signal { signal } => Request::Signal(signal),
            ChannelMsg::WindowChange {
                col_width,
                row_height,
                pix_width,
                pix_height,
            } => Request::WindowChange([col_width, row_height, pix_width, pix_height]),
            ChannelMsg::AgentForward { .. } => Request::Agent,
            ChannelMsg::RequestX11 {
                single_connection,
                x11_authentication_protocol,
                x11_authentication_cookie,
                x11_screen_number,
                ..
            } => Request::X11 {
                single: single_connection,
                protocol: x11_authentication_protocol,
                cookie: x11_authentication_cookie,
                screen: x11_screen_number,
            },
            // The rest concerns russh alone.
            _ => return Ok(()),
        };
        self.uplink.push_request(request)
    }

    /// Writes the queue to the container, up to its end; ends early when the container is gone,
    /// which `read_container` tells.
    pub(super) async fn write_queue(&self) {
        loop {
            let sent = match self.uplink.next().await {
                Item::Data(code, data) => {
                    let len = data.len();
                    let sent = match code {
                        None => self.up.data_bytes(data).await,
                        Some(code) => self.up.extended_data_bytes(code, data).await,
                    };
                    self.uplink.delivered(len);
                    sent
                }
                Item::Request(request) => {
                    let sent = self.send_request(request).await;
                    self.uplink.request_sent();
                    sent
                }
                Item::End => return,
                // Requests may follow.
                Item::Eof => self.up.eof().await,
            };
            if sent.is_err() {
                return;
            }
        }
    }

    pub(super) async fn write_urgent(&self) {
        loop {
            let request = self.uplink.next_urgent().await;
            if self.send_request(request).await.is_err() {
                return;
            }
        }
    }

    /// A reply is wanted where the client's reply is the container's.
    async fn send_request(&self, request: Request) -> Result<(), russh::Error> {
        match request {
            Request::Agent => {
                self.grants.allow_agent(self.connection);
                let reply = self.answers.ask(Question::Other);
                self.up.agent_forward(reply).await
            }
            Request::Env(name, value) => {
                let reply = self.answers.ask(Question::Other);
                self.up.set_env(reply, name, value).await
            }
            Request::Exec(command) => {
                let reply = self.answers.ask(Question::Run);
                self.up.exec(reply, command).await
            }
            Request::Pty { term, size, modes } => {
                let [cols, rows, width, height] = size;
                let reply = self.answers.ask(Question::Terminal);
                self.up
                    .request_pty(reply, &term, cols, rows, width, height, &modes)
                    .await
            }
            Request::Shell => {
                let reply = self.answers.ask(Question::Run);
                self.up.request_shell(reply).await
            }
            Request::Signal(signal) => self.up.signal(signal).await,
            Request::Subsystem(name) => {
                let reply = self.answers.ask(Question::Run);
                self.up.request_subsystem(reply, name).await
            }
            Request::WindowChange([cols, rows, width, height]) => {
                self.up.window_change(cols, rows, width, height).await
            }
            Request::X11 {
                single,
                protocol,
                cookie,
                screen,
            } => {
                self.grants.allow_x11(self.connection, single);
                let reply = self.answers.ask(Question::Other);
                self.up
                    .request_x11(reply, single, protocol, cookie, screen)
                    .await
            }
        }
    }
}
