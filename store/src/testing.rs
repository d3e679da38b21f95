//! A real PostgreSQL for tests, on a free port of 127.0.0.1, its files in a
//! temporary folder, ended with the process that started it.
//!
//! Behind the cargo feature `testing`; tests of all crates use this one. The
//! programs are those in the folder `EDD_POSTGRES_BIN`, else in `PATH` or
//! `/usr/lib/postgresql/*/bin`. Everything here panics with a line that says what
//! to do, as tests want it.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a fixture fails its test by panicking"
)]

use std::io::Write as _;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs};

use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::url::DatabaseUrl;
use crate::{Database, query, query_dynamic};

/// How long a server may take to come up.
const START_TIMEOUT: Duration = Duration::from_secs(90);
const POLL: Duration = Duration::from_millis(20);

/// Who runs the server when the tests run as root, which PostgreSQL refuses.
const NOBODY: u32 = 65534;

/// Runs the server until this process closes the pipe, by ending in whatever way;
/// unless it was told something before, the files go as well.
const UNTIL_CLOSED: &str = r#"folder=$1; shift; "$@" & server=$!; read -r keep
kill -QUIT "$server"; wait "$server"; [ -n "$keep" ] || rm -rf "$folder""#;

/// A PostgreSQL server; dropped, it is killed and its files are removed.
#[derive(Debug)]
pub struct Postgres {
    folder: TempDir,
    server: Option<Child>,
    port: u16,
}

impl Postgres {
    /// The server that all tests of this process share; it ends with the process.
    ///
    /// # Panics
    /// As [`Postgres::start`].
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Postgres> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a server with no database in it.
    ///
    /// # Panics
    /// When the programs are missing or it does not come up.
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("edd-postgres-")
            .tempdir()
            .expect("a temporary folder for PostgreSQL");
        if is_root() {
            chown(folder.path(), Some(NOBODY), Some(NOBODY)).expect("to give the folder away");
        }
        let initialised = command("initdb", folder.path())
            .args([
                "--auth=trust",
                "--username=edd",
                "--no-sync",
                "--encoding=UTF8",
            ])
            .args(["--locale=C", "--pgdata"])
            .arg(folder.path().join("data"))
            .output()
            .expect("initdb runs: `cargo xtask test` fetches PostgreSQL");
        let said = String::from_utf8_lossy(&initialised.stderr);
        assert!(initialised.status.success(), "initdb: {said}");
        let mut server = Self {
            folder,
            server: None,
            port: 0,
        };
        server.resume().await;
        server
    }

    /// Starts the stopped server again on the same port and files.
    ///
    /// # Panics
    /// When it is running, or does not come up.
    pub async fn resume(&mut self) {
        assert!(self.server.is_none(), "PostgreSQL is running already");
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if self.port == 0 {
                self.port = port_to_keep();
            }
            self.server = Some(self.spawn());
            match self.wait(deadline).await {
                Ok(()) => return,
                // Somebody else took the port in between.
                Err(log) if log.contains("Address already in use") => {
                    self.stop();
                    self.port = 0;
                }
                Err(log) => panic!("PostgreSQL does not come up:\n{log}"),
            }
        }
    }

    /// Kills the server (no clean end) and keeps its files and port for [`Postgres::resume`].
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            if let Some(mut pipe) = server.stdin.take() {
                // Fails only for a process that is gone already.
                let _ = pipe.write_all(b"keep\n");
            }
            // Fails only for a process that is gone already.
            let _ = server.wait();
        }
    }

    /// Stops all its processes where they are, connections open, until
    /// [`Postgres::thaw`].
    ///
    /// # Panics
    /// When it is not running.
    pub fn freeze(&self) {
        self.signal("STOP");
    }

    /// Lets it go on where it was.
    ///
    /// # Panics
    /// When it is not running.
    pub fn thaw(&self) {
        self.signal("CONT");
    }

    /// To the server and the process of each connection.
    fn signal(&self, signal: &str) {
        let file = self.folder.path().join("data/postmaster.pid");
        let text = fs::read_to_string(file).expect("it runs");
        let server = text.lines().next().expect("its process id");
        let mut kill = Command::new("kill");
        kill.arg(format!("-{signal}")).arg(server);
        let processes = fs::read_dir("/proc").expect("/proc").flatten();
        let parent = format!("PPid:\t{server}\n");
        for process in processes {
            let status = fs::read_to_string(process.path().join("status"));
            if status.is_ok_and(|status| status.contains(&parent)) {
                kill.arg(process.file_name());
            }
        }
        // One that has just ended is none to stop.
        let _ = kill.status().expect("kill runs");
    }

    /// A new database of this server, empty.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn database(&self) -> DatabaseUrl {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.named(&name).await
    }

    /// The database of this name, made when absent.
    async fn named(&self, name: &str) -> DatabaseUrl {
        let server = Database::open(&self.url("postgres"))
            .await
            .expect("PostgreSQL answers");
        let exists: bool = query("SELECT EXISTS (SELECT 1 FROM pg_database WHERE datname = $1)")
            .bind(name)
            .value(&server)
            .await
            .expect("a list of databases");
        if !exists {
            query_dynamic(format!("CREATE DATABASE \"{name}\""))
                .run(&server)
                .await
                .expect("a new database");
        }
        server.close().await;
        self.url(name)
    }

    /// The URL of a database of this server.
    ///
    /// # Panics
    /// When `name` is no name.
    pub fn url(&self, name: &str) -> DatabaseUrl {
        format!("postgres://edd@127.0.0.1:{}/{name}", self.port)
            .parse()
            .expect("a URL of our making")
    }

    fn spawn(&self) -> Child {
        let log = fs::File::create(self.log()).expect("a log file");
        let mut server = command("sh", self.folder.path());
        server
            .args(["-c", UNTIL_CLOSED, "sh"])
            .arg(self.folder.path())
            .arg(program("postgres"))
            .arg("-D")
            .arg(self.folder.path().join("data"))
            .args(["-p", &self.port.to_string(), "-h", "127.0.0.1", "-k", ""])
            .args(["-c", "fsync=off", "-c", "max_connections=300"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        server.spawn().expect("sh runs")
    }

    /// Waits until it answers; else what its log says.
    async fn wait(&mut self, deadline: Instant) -> Result<(), String> {
        loop {
            if let Ok(database) = Database::open(&self.url("postgres")).await {
                database.close().await;
                return Ok(());
            }
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            if log.contains("FATAL:  could not create") || Instant::now() > deadline {
                return Err(log);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A program of PostgreSQL or the system, as a user that may run it.
fn command(name: &str, folder: &Path) -> Command {
    let mut command = Command::new(program(name));
    command.current_dir(folder).env("TZ", "UTC");
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn program(name: &str) -> PathBuf {
    if let Some(folder) = env::var_os("EDD_POSTGRES_BIN").filter(|_| name != "sh") {
        return PathBuf::from(folder).join(name);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
    let installed = installed
        .flatten()
        .map(|version| version.path().join("bin"));
    env::split_paths(&path)
        .chain(installed)
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
        .unwrap_or_else(|| panic!("{name} is missing: run `cargo xtask test`, which fetches it"))
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0)
}

/// A port of 127.0.0.1 that is free now and that the system gives to nobody who asks for any, nor
/// to a connection: a server that is stopped finds it free again.
///
/// # Panics
/// When none is free.
#[must_use]
pub fn port_to_keep() -> u16 {
    // Below those that Linux gives away, above those of the gateway's tests.
    const FIRST: u16 = 30_000;
    const COUNT: u16 = 2_700;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at once begin at different places.
    let begin = std::process::id().wrapping_mul(97);
    (0..COUNT)
        .map(|_| {
            let step = u32::from(NEXT.fetch_add(1, Ordering::Relaxed));
            let place = begin.wrapping_add(step) % u32::from(COUNT);
            FIRST + u16::try_from(place).expect("below the count")
        })
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("a free port")
}

/// The database of a test: a file in `folder`, or with `EDD_TEST_ENGINE=postgres`
/// one of the shared server that is named after the folder. So the same tests run
/// against both.
///
/// # Panics
/// As [`Postgres::start`]; for an engine that there is not.
pub async fn database_of(folder: &Path) -> DatabaseUrl {
    match env::var("EDD_TEST_ENGINE").as_deref() {
        Err(_) | Ok("sqlite") => DatabaseUrl::Sqlite(folder.join("test.db")),
        Ok("postgres") => {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
            let name: String = name.chars().map(letter).collect();
            Postgres::shared().await.named(&format!("of_{name}")).await
        }
        Ok(other) => panic!("EDD_TEST_ENGINE={other}: sqlite or postgres"),
    }
}
