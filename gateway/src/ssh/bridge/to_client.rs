//! The container's direction: data, the ends of it, exit status, in the order that clients need.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use russh::{ChannelMsg, ChannelReadHalf, Sig};
use tokio::time::{Instant, timeout_at};

use super::{Bridge, ContainerEnd, Kind};
use crate::ssh::answers::{Heard, Question};
use crate::ssh::audit;
use crate::ssh::downlink::{Downlink, Piece};

/// How long an exit status waits for the end of the data. sshd tells it as soon as the process is
/// gone, which may be before the last output is read from its terminal; but with a process left in
/// the background the end of the data may never come.
const EXIT_HOLD: Duration = Duration::from_millis(500);

/// How the container's process ended.
#[derive(Clone, Debug)]
enum Exit {
    Signal {
        name: Sig,
        core_dumped: bool,
        message: String,
        language: String,
    },
    Status(u32),
}

/// What the client has been told so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Told {
    pub(super) eof: bool,
    /// The container's end of data, not passed on yet.
    eof_held: bool,
    /// Exit status or exit signal.
    pub(super) exit: bool,
    /// The container's, not passed on yet, and until when.
    exit_held: Option<(Exit, Instant)>,
}

impl Bridge<'_> {
    pub(super) async fn take_from_container(
        &self,
        from: &mut ChannelReadHalf,
        told: &mut Told,
    ) -> ContainerEnd {
        match self.kind {
            Kind::Forward | Kind::Session => self.read_container(from, told).await,
            Kind::Inbound => self.drain_container(from, told).await,
        }
    }

    /// [`Self::read_container`] for a channel that must not hold up the container's connection:
    /// everything is read at once and queued.
    async fn drain_container(&self, from: &mut ChannelReadHalf, told: &mut Told) -> ContainerEnd {
        let queue = Downlink::new(
            Arc::clone(&self.grants.backlog),
            Arc::clone(&self.connection.flow),
            self.uplink.holding().cloned(),
        );
        let reading = async {
            loop {
                let piece = match from.wait().await {
                    Some(ChannelMsg::Data { data }) => Piece::Data(data),
                    Some(ChannelMsg::Eof) => Piece::Eof,
                    Some(ChannelMsg::Close) => Piece::End(ContainerEnd::Closed),
                    None => Piece::End(ContainerEnd::Lost),
                    Some(_) => continue,
                };
                let last = matches!(piece, Piece::End(_));
                if queue.push(piece).is_err() {
                    return;
                }
                if last {
                    // The writer tells when it has come to it.
                    std::future::pending::<()>().await;
                }
            }
        };
        let writing = async {
            loop {
                match queue.next().await {
                    Piece::Data(data) => {
                        let len = data.len();
                        self.uplink.sent(&data);
                        let _ = self.down.data_bytes(data).await;
                        queue.taken(len);
                    }
                    Piece::End(end) => return end,
                    Piece::Eof => self.tell_eof(told).await,
                }
            }
        };
        tokio::select! {
            () = reading => ContainerEnd::Excess,
            end = writing => end,
        }
    }

    /// Writes what the container sends to the client, in order, as fast as the client takes it.
    ///
    /// The end of a session's data is held until the exit status: OpenSSH closes once it has
    /// both ends of data, and russh then drops an exit status that comes later. The exit status in
    /// turn waits for the end of the data, for a moment, so that it comes after all of it.
    async fn read_container(&self, from: &mut ChannelReadHalf, told: &mut Told) -> ContainerEnd {
        let id = self.down.id();
        let own = &self.grants.backlog.own;
        loop {
            let waiting = from.wait();
            let exit = told.exit_held.as_ref().map(|(_, until)| *until);
            let next = match exit.into_iter().chain(self.answers.doubt()).min() {
                None => waiting.await,
                Some(until) => match timeout_at(until, waiting).await {
                    Ok(next) => next,
                    Err(_) => {
                        if exit == Some(until) {
                            self.tell_exit(told).await;
                        } else if self.answers.settle() {
                            self.answer_run(false).await;
                        }
                        continue;
                    }
                },
            };
            let Some(message) = next else {
                return ContainerEnd::Lost;
            };
            // Errors mean that the client is gone, which `read_client` tells.
            match message {
                ChannelMsg::Data { data } => {
                    let len = data.len();
                    self.uplink.sent(&data);
                    let _ = self.down.data_bytes(data).await;
                    own.taken(len);
                }
                ChannelMsg::ExtendedData { data, ext } => {
                    let len = data.len();
                    self.uplink.sent(&data);
                    let _ = self.down.extended_data_bytes(ext, data).await;
                    own.taken(len);
                }
                ChannelMsg::Eof => {
                    self.tell_exit(told).await;
                    if self.kind == Kind::Session && !told.exit {
                        told.eof_held = true;
                    } else {
                        self.tell_eof(told).await;
                    }
                }
                ChannelMsg::ExitStatus { exit_status } => {
                    self.hear_exit(Exit::Status(exit_status), told).await;
                }
                ChannelMsg::ExitSignal {
                    signal_name,
                    core_dumped,
                    error_message,
                    lang_tag,
                } => {
                    let exit = Exit::Signal {
                        name: signal_name,
                        core_dumped,
                        message: error_message,
                        language: lang_tag,
                    };
                    self.hear_exit(exit, told).await;
                }
                answer @ (ChannelMsg::Failure | ChannelMsg::Success) => {
                    let accepted = matches!(answer, ChannelMsg::Success);
                    if self.hear_answer(accepted).await == Some(Heard::RunsNothing) {
                        return ContainerEnd::Idle;
                    }
                }
                ChannelMsg::XonXoff { client_can_do } => {
                    let _ = self.handle.xon_xoff_request(id, client_can_do).await;
                }
                ChannelMsg::Close => return ContainerEnd::Closed,
                _ => {}
            }
        }
    }

    /// The container has answered something; none: unasked.
    async fn hear_answer(&self, accepted: bool) -> Option<Heard> {
        let audit = self.uplink.audit();
        let heard = self.answers.hear(accepted)?;
        match heard {
            Heard::Of(Question::Run) => self.answer_run(accepted).await,
            Heard::Of(Question::Terminal) if !accepted => {
                self.has_terminal.store(false, Ordering::Relaxed);
                if let Some(audit) = audit {
                    audit.has_no_terminal();
                }
            }
            Heard::Of(Question::Other | Question::Terminal) => {}
            Heard::RunsNothing => {
                if let Some(audit) = audit {
                    audit.answered(false);
                }
            }
        }
        self.answers.tell(accepted);
        Some(heard)
    }

    /// The client is told whether what it wants to run does.
    async fn answer_run(&self, accepted: bool) {
        if let Some(audit) = self.uplink.audit() {
            audit.answered(accepted);
        }
        let id = self.id();
        let _ = match accepted {
            true => self.handle.channel_success(id).await,
            false => self.handle.channel_failure(id).await,
        };
    }

    /// The container has told how its process ended: passed on behind the end of the data.
    async fn hear_exit(&self, exit: Exit, told: &mut Told) {
        if let Some(audit) = self.uplink.audit() {
            match &exit {
                Exit::Signal { name, .. } => audit.exited(&audit::signal(name)),
                Exit::Status(status) => audit.exited(&status.to_string()),
            }
        }
        told.exit_held = Some((exit, Instant::now() + EXIT_HOLD));
        if told.eof_held {
            self.tell_exit(told).await;
            self.tell_eof(told).await;
        }
    }

    pub(super) async fn tell_exit(&self, told: &mut Told) {
        let Some((exit, _)) = told.exit_held.take() else {
            return;
        };
        told.exit = true;
        match exit {
            Exit::Signal {
                name,
                core_dumped,
                message,
                language,
            } => {
                let _ = self
                    .handle
                    .exit_signal_request(self.id(), name, core_dumped, message, language)
                    .await;
            }
            Exit::Status(status) => {
                let _ = self.down.exit_status(status).await;
            }
        }
    }

    pub(super) async fn tell_eof(&self, told: &mut Told) {
        told.eof = true;
        let _ = self.down.eof().await;
    }
}
