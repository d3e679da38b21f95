//! What a client asks of a session, on its way to the container.

use russh::{Pty, Sig};

/// A session request on its way to the container.
#[derive(Clone, Debug)]
pub(crate) enum Request {
    /// Make the client's agent reachable.
    Agent,
    /// Set a variable.
    Env(String, String),
    /// Run a command.
    Exec(Vec<u8>),
    /// Allocate a terminal.
    Pty {
        /// Value of TERM.
        term: String,
        /// Columns, rows, width and height in pixels.
        size: [u32; 4],
        /// Terminal modes.
        modes: Vec<(Pty, u32)>,
    },
    /// Run the login shell.
    Shell,
    /// Signal the process.
    Signal(Sig),
    /// Run a subsystem.
    Subsystem(String),
    /// The terminal has another size.
    WindowChange([u32; 4]),
    /// Make the client's display reachable.
    X11 {
        /// For one connection only.
        single: bool,
        /// Name of the authentication protocol.
        protocol: String,
        /// Its cookie, in hexadecimal.
        cookie: String,
        /// The screen.
        screen: u32,
    },
}

impl Request {
    /// What it holds, in bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Env(name, value) => name.len() + value.len(),
            Self::Exec(command) => command.len(),
            Self::Pty { term, modes, .. } => term.len() + modes.len() * 8,
            Self::Agent | Self::Shell | Self::WindowChange(_) => 0,
            Self::Signal(Sig::Custom(name)) | Self::Subsystem(name) => name.len(),
            Self::Signal(_) => 0,
            Self::X11 {
                protocol, cookie, ..
            } => protocol.len() + cookie.len(),
        }
    }

    /// Whether it may overtake data that waits: what it concerns runs already, and a stalled
    /// upload must not keep Ctrl-C or a resize from arriving.
    pub(crate) fn overtakes_data(&self) -> bool {
        matches!(self, Self::Signal(_) | Self::WindowChange(_))
    }
}
