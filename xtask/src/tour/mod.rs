//! `cargo xtask up --check`: the tour, walked with real clients on a stack of its own.
//!
//! Each step is a function that fails with what was expected and seen; it is printed with its
//! time. The first failure ends the tour and shows the ends of the daemons' logs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::child;
use crate::report::{Parts, seconds};
use crate::tools::Tools;
use crate::up::Options;
use crate::up::plan::Plan;
use crate::up::rest::{Container, User};
use crate::up::stack::{Binaries, Lock, Stack};
use crate::workspace;

mod changes;
mod clients;
mod containers;
mod ends;
mod statics;

use clients::{Curl, Ssh};

/// A file that marks a data folder as one that a tour may wipe.
const MARK: &str = "made-by-up-check";

/// What the steps share.
struct Tour {
    stack: Stack,
    binaries: Binaries,
    tools: Tools,
    curl: Curl,
    /// From the step that registers him on.
    user: Option<Tourist>,
    /// From the step that makes it on.
    guest: Option<Guest>,
}

/// The tour's user.
struct Tourist {
    user: User,
    password: String,
    /// His SSH key.
    key: PathBuf,
}

/// His container.
struct Guest {
    container: Container,
    ssh: Ssh,
    /// The dynamic port that leads to its echo.
    raw_port: u16,
}

impl Tour {
    fn tourist(&self) -> Result<&Tourist> {
        self.user.as_ref().context("no user was registered yet")
    }

    fn guest(&self) -> Result<&Guest> {
        self.guest.as_ref().context("no container was made yet")
    }
}

type Step = (&'static str, fn(&mut Tour) -> Result<String>);

/// The tour in order. What a step returns is printed behind its time.
const STEPS: [Step; 23] = [
    ("static route over HTTPS, HTTP/1.1", statics::http1),
    ("static route over HTTPS, HTTP/2", statics::http2),
    (
        "the routes of routes.yaml, one with its prefix removed",
        statics::committed_routes,
    ),
    ("308 from the HTTP port", statics::redirect),
    ("unknown host: 404", statics::unknown_host),
    (
        "register a user through the gateway, log in, add a key",
        containers::register,
    ),
    (
        "create a container by REST: its URL answers",
        containers::create,
    ),
    (
        "switch SSH on: refused before, let in after",
        containers::switch_ssh_on,
    ),
    ("WebSocket echo", containers::web_socket),
    ("a server-sent event", containers::server_sent_event),
    (
        "ssh runs a command and returns its exit code",
        containers::ssh,
    ),
    ("sftp put and get", containers::sftp),
    ("a port of the range reaches it raw", containers::raw_port),
    (
        "edit routes.yaml: the new route is there",
        changes::new_route,
    ),
    (
        "break routes.yaml: the error is shown, the old routes stay",
        changes::broken_routes,
    ),
    (
        "stop nats-server: everything serves, changes wait",
        changes::without_nats,
    ),
    ("start nats-server: nothing was lost", changes::nats_is_back),
    (
        "stop the container: 404, port closed, live SSH session ended",
        ends::stop_container,
    ),
    ("start it again", ends::start_again),
    (
        "delete the user: everything of his is gone",
        ends::delete_user,
    ),
    (
        "every event was acknowledged, none is a dead letter",
        ends::no_dead_letters,
    ),
    (
        "SIGTERM drains the gateway: what is under way ends well",
        ends::drain_gateway,
    ),
    ("SIGTERM ends the services", ends::stop_services),
];

/// Walks the tour on a data folder that is wiped first.
pub(crate) fn run(options: Options) -> Result<()> {
    let data = options
        .data
        .unwrap_or_else(|| workspace::root().join("data/check"));
    let data = crate::up::absolute(data)?;
    check_wipeable(&data)?;
    let mut parts = Parts::new("up --check");
    let tools = parts.run("programs", Tools::ensure)?;
    let binaries = parts.run("build (minutes the first time)", || {
        Binaries::build(&options.profile)
    })?;
    let lock = wipe(&data)?;
    let stack = parts.run("start nats-server, auth, compute, gateway", || {
        Stack::start(Plan::scratch(data)?, lock, &binaries, &tools)
    })?;
    let curl = Curl::new(&stack.plan, &tools)?;
    let mut tour = Tour {
        stack,
        binaries,
        tools,
        curl,
        user: None,
        guest: None,
    };
    println!("== the tour");
    let started = Instant::now();
    for (number, (name, step)) in STEPS.iter().enumerate() {
        let step_started = Instant::now();
        match step(&mut tour) {
            Ok(note) => {
                let note = if note.is_empty() {
                    note
                } else {
                    format!(": {note}")
                };
                let took = seconds(step_started.elapsed());
                println!("{:>4} ok   {took:>8}   {name}{note}", number + 1);
            }
            Err(error) if error.is::<child::Interrupted>() => return Err(error),
            Err(error) => {
                println!(
                    "{:>4} FAIL {:>8}   {name}",
                    number + 1,
                    seconds(step_started.elapsed())
                );
                println!("            {error:#}\n");
                print!("{}", tour.stack.tails());
                bail!("step {} of the tour failed ({name}): {error:#}", number + 1);
            }
        }
    }
    println!("== the tour: ok, {}\n", seconds(started.elapsed()));
    parts.finish();
    Ok(())
}

/// Refuses a folder that holds something that no tour made.
fn check_wipeable(data: &Path) -> Result<()> {
    let entries = fs::read_dir(data).map(Iterator::count).unwrap_or(0);
    if entries > 0 && !data.join(MARK).exists() {
        bail!(
            "{} is not empty and was not made by `up --check`, which would wipe it: \
             choose another folder with --data",
            data.display()
        );
    }
    Ok(())
}

/// Empties the folder, unless another tour walks in it.
pub(crate) fn wipe(data: &Path) -> Result<Lock> {
    let lock = Lock::take(data)?;
    fs::write(data.join(MARK), "").context("cannot write to the data folder")?;
    empty(data)?;
    Ok(lock)
}

/// Removes what lies in a folder whose lock is held.
pub(crate) fn empty(data: &Path) -> Result<()> {
    for entry in fs::read_dir(data)
        .context("cannot list the data folder")?
        .flatten()
    {
        let path = entry.path();
        if [MARK, "lock"].iter().any(|kept| entry.file_name() == *kept) {
            continue;
        }
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}
