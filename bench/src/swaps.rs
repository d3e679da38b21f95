//! `edd-bench swaps`: what clients notice of changed routes, changed certificates and a new
//! process.
//!
//! Starts a gateway of its own with two upstreams, puts a steady load on it over HTTP/1.1 and
//! HTTP/2, and changes things under it: routes.yaml (each time the measured route leads to the
//! other upstream), both certificate files, and at the end the whole process by `--take-over`.
//! Fails if a request failed, or if a change closed a connection or reset a stream.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use edd_bench::load::{Counts, Load, Plan, Protocol};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use crate::compare::certificate;

/// The host that is asked for.
const HOST: &str = "swaps.localhost";

/// Each step of the gateway is done within this or has failed.
const DEADLINE: Duration = Duration::from_secs(60);

/// Load before the first change and after the last.
const SETTLE: Duration = Duration::from_secs(2);

/// The arguments of `edd-bench swaps`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The gateway's binary
    #[arg(long)]
    gateway: PathBuf,
    /// Where it may write; emptied
    #[arg(long)]
    folder: PathBuf,
    /// Changes of routes.yaml
    #[arg(long, default_value_t = 1000)]
    routes: u32,
    /// Changes of the certificate
    #[arg(long, default_value_t = 20)]
    certificates: u32,
    /// Requests per second, on HTTP/1.1 and on HTTP/2 each
    #[arg(long, default_value_t = 2000)]
    per_second: u32,
    /// Connections of each
    #[arg(long, default_value_t = 20)]
    connections: u32,
}

/// Runs it; prints what was counted.
pub(crate) async fn run(args: Args) -> Result<()> {
    let site = Site::prepare(args.folder.clone()).await?;
    let mut old = site.start(&args.gateway, false)?;
    site.ready().await.context("the gateway is not ready")?;
    let plan = Plan {
        address: site.https,
        host: HOST.into(),
        path: "/".into(),
        connections: args.connections,
        per_second: args.per_second,
    };
    let both = [Protocol::Http1, Protocol::Http2];
    let loads = both.map(|protocol| (protocol, Load::start(&plan, protocol)));
    let began = Instant::now();
    sleep(SETTLE).await;

    let every = args.routes / args.certificates.max(1);
    let mut certificates = 0;
    for n in 1..=args.routes {
        site.swap_routes(n).await?;
        if every > 0 && n % every == 0 && certificates < args.certificates {
            certificates += 1;
            site.swap_certificate().await?;
        }
    }
    sleep(SETTLE).await;
    let swapped = loads.each_ref().map(|(_, load)| load.counts());
    println!(
        "{} route swaps and {certificates} certificate swaps in {:.1} s",
        args.routes,
        began.elapsed().as_secs_f64()
    );
    let mut bad = tell("swaps", &both, &swapped, false);

    let restart = Instant::now();
    let mut new = site.start(&args.gateway, true)?;
    let ended = timeout(DEADLINE, old.wait()).await;
    let ended = ended.context("the old process does not end")??;
    ensure!(ended.success(), "the old process ended with {ended}");
    println!(
        "taken over, and the old process ended by itself after {:.1} s",
        restart.elapsed().as_secs_f64()
    );
    sleep(SETTLE).await;
    let mut after = Vec::new();
    for ((_, load), before) in loads.into_iter().zip(&swapped) {
        after.push(load.stop().await.since(before));
    }
    bad |= tell("restart", &both, &after, true);
    println!("upstreams asked: {}", site.asked());
    stop(&mut new).await?;
    if bad {
        bail!("clients noticed something");
    }
    Ok(())
}

/// Prints the counts; whether anything is there that must not be. A restart ends connections.
fn tell(phase: &str, protocols: &[Protocol], counts: &[Counts], may_close: bool) -> bool {
    let mut bad = false;
    for (protocol, counts) in protocols.iter().zip(counts) {
        println!(
            "{phase:<8} {:<6} sent {:>7}  failed {}  closed {}  reset {}  again {}  p50 < {:?}  p99 < {:?}  p99.9 < {:?}",
            match protocol {
                Protocol::Http1 => "h1",
                Protocol::Http2 => "h2",
            },
            counts.sent,
            counts.failed,
            counts.closed,
            counts.reset,
            counts.refused,
            counts.took(500),
            counts.took(990),
            counts.took(999),
        );
        for failure in &counts.failures {
            println!("         {failure}");
        }
        let closed = counts.closed + counts.refused > 0 && !may_close;
        bad |= counts.failed > 0 || counts.reset > 0 || closed || counts.answered == 0;
    }
    bad
}

/// The files and addresses of the gateway, and its upstreams.
struct Site {
    folder: PathBuf,
    http: SocketAddr,
    https: SocketAddr,
    ssh: SocketAddr,
    admin: SocketAddr,
    port: u16,
    upstreams: [Upstream; 2],
}

impl Site {
    async fn prepare(folder: PathBuf) -> Result<Self> {
        match std::fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot empty {}", folder.display()));
            }
            _ => {}
        }
        std::fs::create_dir_all(folder.join("certs"))?;
        // Held until all are chosen, so that they differ.
        let free = || std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
        let free = [free()?, free()?, free()?, free()?, free()?];
        let [http, https, ssh, admin, port] = free.each_ref().map(|free| free.local_addr());
        let site = Self {
            folder,
            http: http?,
            https: https?,
            ssh: ssh?,
            admin: admin?,
            port: port?.port(),
            upstreams: [Upstream::start().await?, Upstream::start().await?],
        };
        site.write_routes(0)?;
        site.write_certificate()?;
        Ok(site)
    }

    /// Starts the gateway, or one that takes over from it.
    fn start(&self, binary: &Path, take_over: bool) -> Result<Child> {
        let path = |name: &str| self.folder.join(name);
        let log = std::fs::File::create(path(if take_over { "new.log" } else { "old.log" }))?;
        let mut command = Command::new(binary);
        command
            .arg("serve")
            .args([format!("--http-addr={}", self.http)])
            .args([format!("--https-addr={}", self.https)])
            .args([format!("--ssh-addr={}", self.ssh)])
            .args([format!("--admin-addr={}", self.admin)])
            .args([format!("--ports={}", self.port)])
            .args(["--ports-addr=127.0.0.1", "--platform-domain=localhost"])
            .arg(format!(
                "--database-url=sqlite://{}",
                path("gateway.db").display()
            ))
            .arg("--routes")
            .arg(path("routes.yaml"))
            .arg("--certs-dir")
            .arg(path("certs"))
            .arg("--state-dir")
            .arg(path("state"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        if take_over {
            command.arg("--take-over");
        }
        command
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))
    }

    async fn ready(&self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < DEADLINE {
            if let Ok((200, _)) = self.ask("/readyz").await {
                return Ok(());
            }
            sleep(Duration::from_millis(20)).await;
        }
        bail!(
            "not within {DEADLINE:?} (log: {})",
            self.folder.join("old.log").display()
        );
    }

    /// `GET` of the admin listener: status and body.
    async fn ask(&self, target: &str) -> Result<(u16, String)> {
        let asking = async {
            let mut stream = TcpStream::connect(self.admin).await?;
            let ask = format!("GET {target} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n");
            stream.write_all(ask.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            let status = answer.get(9..12).context("no status")?.parse()?;
            let body = answer.split_once("\r\n\r\n").context("no body")?.1;
            Ok((status, body.to_owned()))
        };
        timeout(DEADLINE, asking).await?
    }

    async fn revision(&self) -> Result<u64> {
        let (_, body) = self.ask("/api/v1/wait?revision=0").await?;
        let number = body.trim().strip_prefix("{\"revision\":");
        let number = number.and_then(|rest| rest.strip_suffix('}'));
        Ok(number.context("no revision")?.parse()?)
    }

    /// Changes the routes for the `n`th time and waits until that is in force.
    async fn swap_routes(&self, n: u32) -> Result<()> {
        let next = self.revision().await? + 1;
        self.write_routes(n)?;
        let wait = format!("/api/v1/wait?revision={next}&timeout=10s");
        let (status, _) = self.ask(&wait).await?;
        ensure!(status == 200, "routes swap {n} is not in force");
        Ok(())
    }

    fn write_routes(&self, n: u32) -> Result<()> {
        let [one, other] = self.upstreams.each_ref().map(|upstream| upstream.address);
        let target = if n.is_multiple_of(2) { one } else { other };
        let mut text = format!("routes:\n- host: {HOST}\n  target: {target}\n");
        for unrelated in 0..20 {
            writeln!(
                text,
                "- host: other{unrelated}.localhost\n  path: /v{n}\n  target: {one}"
            )?;
        }
        let beside = self.folder.join("routes.new");
        std::fs::write(&beside, text)?;
        Ok(std::fs::rename(beside, self.folder.join("routes.yaml"))?)
    }

    fn write_certificate(&self) -> Result<()> {
        certificate::run(certificate::Args {
            folder: self.folder.join("certs"),
            names: vec![HOST.into()],
        })
    }

    /// Changes certificate and key and waits until connections are made with them.
    async fn swap_certificate(&self) -> Result<()> {
        let before = self.serial().await?;
        self.write_certificate()?;
        let begun = Instant::now();
        while self.serial().await? == before {
            ensure!(
                begun.elapsed() < DEADLINE,
                "the new certificate is not served"
            );
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The leaf that is served.
    async fn serial(&self) -> Result<Vec<u8>> {
        let plan = Plan {
            address: self.https,
            host: HOST.into(),
            path: String::new(),
            connections: 1,
            per_second: 1,
        };
        edd_bench::load::leaf(&plan).await
    }

    fn asked(&self) -> String {
        let [one, other] = self.upstreams.each_ref().map(Upstream::asked);
        format!("{one} and {other}")
    }
}

/// SIGTERM, and the wait for its end.
async fn stop(gateway: &mut Child) -> Result<()> {
    let pid = gateway.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    kill_process(pid.context("it has ended")?, Signal::TERM)?;
    let ended = timeout(DEADLINE, gateway.wait()).await;
    let ended = ended.context("the new process does not end")??;
    ensure!(ended.success(), "the new process ended with {ended}");
    Ok(())
}

/// A small server that keeps its connections.
struct Upstream {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
}

impl Upstream {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let asked = Arc::<AtomicU64>::default();
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                tokio::spawn(answer(stream, Arc::clone(&count)));
            }
        });
        Ok(Self { address, asked })
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

async fn answer(mut stream: TcpStream, asked: Arc<AtomicU64>) {
    let mut bytes = Vec::with_capacity(4096);
    while stream.read_buf(&mut bytes).await.is_ok_and(|read| read > 0) {
        while let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            bytes.drain(..end + 4);
            asked.fetch_add(1, Ordering::Relaxed);
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhere\n";
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}
