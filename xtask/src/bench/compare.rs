//! The comparison: everything started, every row measured in rounds, everything ended.
//!
//! All proxies run at once, pinned to the last core; one at a time has work. Origin, broker and
//! load are on the first. In a round each proxy is measured once, so that what changes on the
//! machine in the course of a run changes for all.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::options::Options;
use super::peers::{Kind, Ports, Program, Site};
use super::report::{Cell, Report, Sample};
use super::rows::{Judged, Row};
use crate::child;
use crate::daemon::Daemon;
use crate::tools::{Tools, unpacked};
use crate::up::plan::Plan;
use crate::up::stack::{self, Binaries, loopback};
use crate::workspace;

/// The container that leads to the origin, and its host.
const CONTAINER: &str = "bench";
const HOST: &str = "bench.compute.localhost";

/// How long a proxy may take until it answers, and until it has ended.
const READY_LIMIT: Duration = Duration::from_secs(20);
const STOP_GRACE: Duration = Duration::from_secs(10);

/// What a measurement may take beyond its load.
const SLACK: Duration = Duration::from_secs(40);

/// Memory changes little from round to round, and each takes a start.
const MEMORY_ROUNDS: usize = 2;

/// Runs the comparison, prints and writes its result.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut report = Report::new(options)?;
    let tools = Tools::ensure()?;
    let built = build(options)?;
    let mut subjects = Vec::new();
    for (name, path) in &built.gateways {
        subjects.push((Kind::Gateway, label(name), version_of_gateway(path)?));
    }
    for kind in &options.peers {
        let program = match kind {
            Kind::Floor => Ok(Program {
                path: built.bench.clone(),
                version: "read and write".to_owned(),
            }),
            kind => kind.prepare(),
        };
        match program {
            Ok(program) => subjects.push((*kind, kind.name(), program)),
            Err(error) if error.is::<child::Interrupted>() => return Err(error),
            Err(error) => report.left_out(kind.name(), &error),
        }
    }
    let h2load = unpacked("h2load", "nghttp2-client")?;

    let data = workspace::root().join("data/bench");
    let _lock = crate::tour::wipe(&data)?;
    let outcome = {
        let mut bench = Bench::start(
            options,
            &built.bench,
            &h2load,
            &data,
            &tools,
            built.gateways.len(),
        )?;
        bench.measure(subjects, &mut report)
    };
    if outcome.is_err() && !child::interrupted() {
        eprintln!("the logs are in {}", data.display());
    } else {
        crate::tour::empty(&data)?;
    }
    outcome?;
    report.finish()
}

/// A name that lives as long as the process: there are as few as command-line flags.
fn label(name: &str) -> &'static str {
    Box::leak(name.to_owned().into_boxed_str())
}

struct Built {
    bench: PathBuf,
    gateways: Vec<(String, PathBuf)>,
}

/// Builds the load tool, and the gateway unless one was given.
fn build(options: &Options) -> Result<Built> {
    let build = |profile: &str, package: &str| -> Result<PathBuf> {
        let built = Binaries::build_some(profile, &[package])?;
        Ok(built.path(package)?.to_path_buf())
    };
    let bench = match &options.tool {
        Some(tool) => tool.clone(),
        None => build(stack::PROFILE, "edd-bench")?,
    };
    let mut gateways = options.gateways.clone();
    if gateways.is_empty() {
        println!("building the gateway with the release profile (minutes, the first time)");
        gateways.push(("gateway".to_owned(), build("release", "edd-gateway")?));
    }
    Ok(Built { bench, gateways })
}

fn version_of_gateway(path: &Path) -> Result<Program> {
    let path = fs::canonicalize(path).with_context(|| format!("no {}", path.display()))?;
    let said = child::output(Command::new(&path).arg("--version"), "the gateway")?;
    let said = String::from_utf8_lossy(&said.stdout);
    let version = said.split_whitespace().nth(1).unwrap_or("?").to_owned();
    Ok(Program { path, version })
}

/// A proxy that runs.
struct Subject {
    kind: Kind,
    label: &'static str,
    program: Program,
    ports: Ports,
    site: Site,
    daemon: Daemon,
}

/// What all measurements share.
struct Bench<'o> {
    options: &'o Options,
    tool: PathBuf,
    h2load: PathBuf,
    site: Site,
    load_core: usize,
    counts: SocketAddr,
    origin: Daemon,
    /// One for each gateway: two on one broker would share the consumer and miss each other's
    /// events.
    brokers: Vec<Broker>,
}

/// A nats-server that has the container's events.
struct Broker {
    url: String,
    daemon: Daemon,
}

impl<'o> Bench<'o> {
    fn start(
        options: &'o Options,
        tool: &Path,
        h2load: &Path,
        data: &Path,
        tools: &Tools,
        gateways: usize,
    ) -> Result<Self> {
        let (load_core, core) = cores()?;
        let plan = Plan::scratch(data.to_path_buf())?;
        let certificate = data.join("certificate");
        for folder in [plan.logs(), certificate.clone(), plan.data.join("nats")] {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut make = Command::new(tool);
        make.arg("certificate").arg("--folder").arg(&certificate);
        child::output(make.args([HOST, "localhost"]), "edd-bench certificate")?;
        let mut free = Free::default();
        let address = SocketAddr::from((Ipv4Addr::new(127, 64, 0, 9), free.port()?));
        let counts = loopback(free.port()?);
        let mut origin = Daemon::start("origin", Path::new("taskset"), &plan.logs(), |command| {
            command.args(["-c", &load_core.to_string()]).arg(tool);
            command.arg("origin").arg(format!("--address={address}"));
            command.arg(format!("--counts={counts}"));
            Ok(())
        })?;
        origin.wait_until("answering", READY_LIMIT, || answers(address, HOST))?;
        let brokers = (0..gateways)
            .map(|number| {
                let mut plan = plan.clone();
                plan.data = data.join(format!("broker-{number}"));
                plan.ports.nats = free.port()?;
                fs::create_dir_all(plan.logs()).context("cannot make the broker's folder")?;
                let broker = Broker {
                    url: plan.nats_url(),
                    daemon: stack::start_nats(&plan, tools)?,
                };
                let mut publish = Command::new(tool);
                publish.args(["container", "--id", CONTAINER, "--nats-url", &broker.url]);
                publish
                    .arg(format!("--origin={address}"))
                    .args(["80", "443"]);
                child::output(&mut publish, "edd-bench container")?;
                Ok(broker)
            })
            .collect::<Result<Vec<_>>>()?;
        let site = Site {
            folder: data.to_path_buf(),
            certificate,
            host: HOST.to_owned(),
            origin: address.to_string(),
            nats_url: String::new(),
            core,
        };
        Ok(Self {
            options,
            tool: tool.to_path_buf(),
            h2load: h2load.to_path_buf(),
            site,
            load_core,
            counts,
            origin,
            brokers,
        })
    }

    fn measure(
        &mut self,
        wanted: Vec<(Kind, &'static str, Program)>,
        report: &mut Report,
    ) -> Result<()> {
        let mut free = Free::default();
        let mut brokers = self.brokers.iter();
        let mut subjects = Vec::new();
        for (kind, label, program) in wanted {
            let mut port = || free.port();
            let ports = Ports {
                plain: port()?,
                tls: port()?,
                more: [port()?, port()?, port()?],
            };
            let mut site = self.site.clone();
            if kind == Kind::Gateway
                && let Some(broker) = brokers.next()
            {
                site.nats_url.clone_from(&broker.url);
            }
            match ready(kind, label, &program, ports, &site) {
                Ok(daemon) => {
                    report.subject(kind, label, &program.version);
                    subjects.push(Subject {
                        kind,
                        label,
                        program,
                        ports,
                        site,
                        daemon,
                    });
                }
                Err(error) if error.is::<child::Interrupted>() || kind == Kind::Gateway => {
                    return Err(error);
                }
                Err(error) => report.left_out(label, &error),
            }
        }
        for row in self.options.rows.clone() {
            self.row(row, &mut subjects, report)?;
        }
        for subject in &mut subjects {
            // How a peer ends is its own business, as long as it does.
            if let Err(error) = subject.daemon.stop(STOP_GRACE) {
                eprintln!("xtask: {error:#}");
            }
        }
        self.origin.check_running()?;
        for broker in &mut self.brokers {
            broker.daemon.check_running()?;
        }
        Ok(())
    }

    fn row(&self, row: &'static Row, subjects: &mut [Subject], report: &mut Report) -> Result<()> {
        println!("\n{}: {}", row.name, row.title);
        let rounds = match row.judged {
            Judged::Memory => self.options.rounds.min(MEMORY_ROUNDS),
            _ => self.options.rounds,
        };
        let mut cells: Vec<Cell> = subjects.iter().map(|_| Cell::default()).collect();
        for _ in 0..rounds {
            for (subject, cell) in subjects.iter_mut().zip(&mut cells) {
                if cell.failed.is_some() || !subject.kind.takes_part(row) {
                    continue;
                }
                match self.once(row, subject) {
                    Ok(sample) => cell.samples.push(sample),
                    Err(error) if error.is::<child::Interrupted>() => return Err(error),
                    Err(error) => {
                        println!("  {}: {error:#}", subject.label);
                        cell.failed = Some(format!("{error:#}"));
                        // It gets another chance in the next row.
                        subject.restart()?;
                    }
                }
            }
        }
        let cells = subjects.iter().map(|subject| subject.label).zip(cells);
        report.row(row, cells.collect());
        Ok(())
    }

    fn once(&self, row: &Row, subject: &mut Subject) -> Result<Sample> {
        subject.daemon.check_running()?;
        if row.judged == Judged::Memory {
            // Memory that earlier rows have used and freed would hide what connections take.
            subject.restart()?;
        }
        let port = if row.tls {
            subject.ports.tls
        } else {
            subject.ports.plain
        };
        let options = self.options;
        let mut measure = Command::new("taskset");
        measure.args(["-c", &self.load_core.to_string()]);
        measure.arg(&self.tool).arg("measure");
        measure.arg(format!("--address={}", loopback(port)));
        measure.arg(format!("--host={HOST}"));
        measure.arg(format!("--pid={}", subject.daemon.pid()?));
        measure.arg(format!("--origin-counts={}", self.counts));
        measure.arg(format!("--origin-pid={}", self.origin.pid()?));
        measure.arg(format!("--warm-up-ms={}", options.warm_up_ms));
        measure.arg(format!("--window-ms={}", options.window_ms));
        if row.tls {
            let ca = self.site.certificate.join("ca.crt");
            measure.arg(format!("--ca={}", ca.display()));
        }
        measure.args(row.load);
        if row.load.first() == Some(&"h2") {
            measure.arg(format!("--h2load={}", self.h2load.display()));
        }
        measure.stdin(Stdio::null());
        measure.stdout(Stdio::piped()).stderr(Stdio::piped());
        let load = child::spawn(&mut measure, "edd-bench measure")?;
        let limit = Duration::from_millis(options.warm_up_ms + options.window_ms) + SLACK;
        let output = child::finish(load, "edd-bench measure", limit)?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            let error = error.trim().trim_start_matches("edd-bench: ");
            bail!(
                "{}",
                error.lines().next().unwrap_or("failed without a word")
            );
        }
        let measured: Value = serde_json::from_str(&said).context("edd-bench said no JSON")?;
        Sample::of(row.judged, &measured)
    }
}

impl Subject {
    fn restart(&mut self) -> Result<()> {
        // Killed or ended by itself: it is gone, which is all that is wanted of it.
        let _ = self.daemon.stop(STOP_GRACE);
        self.daemon = ready(self.kind, self.label, &self.program, self.ports, &self.site)
            .with_context(|| format!("{} does not come back", self.label))?;
        Ok(())
    }
}

/// Starts a proxy and waits until it answers what it should.
fn ready(
    kind: Kind,
    label: &'static str,
    program: &Program,
    ports: Ports,
    site: &Site,
) -> Result<Daemon> {
    let mut daemon = kind.start(label, program, ports, site)?;
    let plain = loopback(ports.plain);
    daemon.wait_until("answering", READY_LIMIT, || answers(plain, HOST))?;
    Ok(daemon)
}

/// True once a `GET /1k` is answered 200 with the origin's body.
fn answers(address: SocketAddr, host: &str) -> bool {
    let ask = || -> std::io::Result<bool> {
        let limit = Duration::from_secs(1);
        let mut stream = TcpStream::connect_timeout(&address, limit)?;
        stream.set_read_timeout(Some(limit))?;
        let request = format!("GET /1k HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = [0; 2048];
        let mut got = 0;
        // The whole answer is longer than its body.
        while got < 1024 {
            match stream.read(answer.get_mut(got..).unwrap_or_default())? {
                0 => break,
                more => got += more,
            }
        }
        Ok(got > 1024 && answer.starts_with(b"HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

/// The core of load and origin, and that of the proxies.
fn cores() -> Result<(usize, usize)> {
    let cores = std::thread::available_parallelism()
        .context("how many cores there are")?
        .get();
    if cores < 2 {
        bail!("one core: proxy and load need one each");
    }
    Ok((0, cores - 1))
}

/// Ports that are free now, none of them given twice.
#[derive(Default)]
struct Free {
    given: Vec<u16>,
}

impl Free {
    fn port(&mut self) -> Result<u16> {
        /// Below those that the kernel gives to clients, above those of `Plan`.
        const QUIET: std::ops::Range<u16> = 32_000..32_700;
        // Where the search begins differs from process to process.
        let length = QUIET.end - QUIET.start;
        let offset = u16::try_from(std::process::id() % u32::from(length))?;
        let port = QUIET
            .map(|port| QUIET.start + (port - QUIET.start + offset) % length)
            .filter(|port| !self.given.contains(port))
            .find(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok())
            .context("no free port between 32000 and 32700")?;
        self.given.push(port);
        Ok(port)
    }
}
