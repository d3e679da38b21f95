//! What the tests share: a gateway, a bus, conditions with deadlines.

#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

pub(crate) mod ask;
mod bus;
pub(crate) mod client;
pub(crate) mod containers;
pub(crate) mod curl;
pub(crate) mod daemon;
mod gateway;
mod origin;
pub(crate) mod process;
pub(crate) mod python;
mod table;
pub(crate) mod tls;

use std::future::Future;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub(crate) use bus::Bus;
pub(crate) use curl::Curled;
pub(crate) use gateway::{Gateway, Options, free_port, replace_file};
pub(crate) use origin::{Origin, read_head};
pub(crate) use table::Table;

/// How long a test waits for anything: far longer than it takes on a slow and busy machine, and
/// shorter than the gateway's own limits, so that it is not one of them that ends the wait.
pub(crate) const DEADLINE: Duration = Duration::from_secs(45);

/// How soon connections end whose reason is gone: the contract's.
pub(crate) const REVOCATION: Duration = Duration::from_secs(1);

/// What happens at once, on a slow and busy machine; nothing that is waited for with a limit comes
/// as soon.
pub(crate) const SOON: Duration = Duration::from_secs(4);

/// Asks again and again until it is so; fails the test after [`DEADLINE`].
pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let begun = Instant::now();
    loop {
        let looked = Instant::now();
        if is_so().await {
            return;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "not within {DEADLINE:?}: {what}"
        );
        // A look that costs much takes no more than half of the machine.
        let pause = looked.elapsed().max(Duration::from_millis(2));
        tokio::time::sleep(pause).await;
    }
}

/// A program on PATH or where servers live; the test fails if it is missing.
pub(crate) fn program(name: &str, variable: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run `cargo xtask test`, which fetches it"))
}
