//! The daemon `edd-compute`; everything is in the library, so that tests start
//! it in their own process.

use std::process::ExitCode;

fn main() -> ExitCode {
    edd_daemon::cli::run(edd_compute::run)
}
