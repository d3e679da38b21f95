//! `edd-gateway`: see the library.

use std::process::ExitCode;

use edd_gateway::commands::Cli;

fn main() -> ExitCode {
    // The one provider of cryptography in this process. It is the first call,
    // so nothing can have set another.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    edd_daemon::cli::run(Cli::run)
}
