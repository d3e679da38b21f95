//! The real clients of the tour: curl, ssh and sftp, each with deadlines of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::child;
use crate::tools::{Program, Tools};
use crate::up::plan::Plan;
use crate::up::stack::loopback;

/// No client of the tour needs longer.
const DEADLINE: Duration = Duration::from_secs(20);

/// What curl got.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) status: u16,
    /// `1.1` or `2`.
    pub(crate) version: String,
    /// The header section of the last answer.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Page {
    /// The value of a header.
    pub(crate) fn header(&self, wanted: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value.trim())
    }

    /// An error unless the status is this one.
    pub(crate) fn expect(self, status: u16) -> Result<Self> {
        if self.status != status {
            bail!(
                "expected {status}, saw {}: {}",
                self.status,
                self.body.trim()
            );
        }
        Ok(self)
    }
}

/// curl, trusting the development CA, with every name on 127.0.0.1.
pub(crate) struct Curl {
    program: PathBuf,
    ca: PathBuf,
    https: u16,
    http: u16,
}

impl Curl {
    /// For the gateway of this plan.
    pub(crate) fn new(plan: &Plan, tools: &Tools) -> Result<Self> {
        Ok(Self {
            program: tools.path(Program::Curl)?.to_path_buf(),
            ca: plan.ca(),
            https: plan.ports.https,
            http: plan.ports.http,
        })
    }

    fn command(&self, host: &str, port: u16) -> Command {
        let mut curl = Command::new(&self.program);
        // No configuration and no proxy of the user's has a say.
        curl.args([
            "-q",
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "10",
        ]);
        curl.arg("--cacert").arg(&self.ca);
        curl.args(["--resolve", &format!("{host}:{port}:127.0.0.1")]);
        curl
    }

    fn page(&self, mut curl: Command, url: &str) -> Result<Page> {
        curl.args([
            "--include",
            "--write-out",
            "\n%{http_code} %{http_version}",
            url,
        ]);
        let output = child::try_output(&mut curl, "curl", Some(DEADLINE))?;
        if !output.status.success() {
            bail!(
                "curl {url}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (answer, summary) = said.rsplit_once('\n').context("curl said nothing")?;
        let (status, version) = summary.split_once(' ').context("curl gave no status")?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
        Ok(Page {
            status: status.parse().context("curl gave no status")?,
            version: version.to_owned(),
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    /// `GET https://host/path` with more of curl's options.
    pub(crate) fn https(&self, host: &str, path: &str, options: &[&str]) -> Result<Page> {
        let mut curl = self.command(host, self.https);
        curl.args(options);
        self.page(curl, &format!("https://{host}:{}{path}", self.https))
    }

    /// Asks for a host that has no name in the certificate yet: over a connection to `localhost`.
    /// (The certificate's `*.localhost` would do, but curl takes no wildcard below a single label.)
    pub(crate) fn unnamed(&self, host: &str, path: &str) -> Result<Page> {
        self.https("localhost", path, &["--header", &format!("Host: {host}")])
    }

    /// `GET http://host/path`.
    pub(crate) fn http(&self, host: &str, path: &str) -> Result<Page> {
        let curl = self.command(host, self.http);
        self.page(curl, &format!("http://{host}:{}{path}", self.http))
    }

    /// Asks again and again until the status is the wanted one.
    pub(crate) fn https_until(&self, host: &str, path: &str, status: u16) -> Result<Page> {
        until(&format!("https://{host}{path} answering {status}"), || {
            self.https(host, path, &[])?.expect(status)
        })
    }

    /// The first line of a stream that begins with `start`.
    pub(crate) fn stream_line(&self, host: &str, path: &str, start: &str) -> Result<String> {
        self.stream(host, path)?
            .wait_for_line(|line| line.starts_with(start))
    }

    /// An answer read line by line, while it comes.
    pub(crate) fn stream(&self, host: &str, path: &str) -> Result<Live> {
        let mut curl = self.command(host, self.https);
        curl.args(["--no-buffer", "-H", "Accept: text/event-stream, */*"]);
        curl.arg(format!("https://{host}:{}{path}", self.https));
        Live::start(curl, "curl")
    }
}

/// ssh and sftp as one user into one container.
pub(crate) struct Ssh {
    ssh: PathBuf,
    sftp: PathBuf,
    key: PathBuf,
    known_hosts: PathBuf,
    port: u16,
    name: String,
}

impl Ssh {
    /// For the gateway of this plan, logging in as `name` with the key at `key`.
    pub(crate) fn new(plan: &Plan, tools: &Tools, key: &Path, name: String) -> Result<Self> {
        Ok(Self {
            ssh: tools.path(Program::Ssh)?.to_path_buf(),
            sftp: tools.path(Program::Sftp)?.to_path_buf(),
            key: key.to_path_buf(),
            known_hosts: plan.data.join("known_hosts"),
            port: plan.ports.ssh,
            name,
        })
    }

    fn options(&self, command: &mut Command) {
        let known_hosts = format!("UserKnownHostsFile={}", self.known_hosts.display());
        // No configuration, agent or question of the user's has a say.
        command.args(["-F", "none", "-i"]).arg(&self.key);
        for option in [
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "IdentityAgent=none",
            "StrictHostKeyChecking=accept-new",
            "GlobalKnownHostsFile=none",
            "LogLevel=ERROR",
            "ConnectTimeout=10",
            &known_hosts,
        ] {
            command.args(["-o", option]);
        }
    }

    fn command(&self, remote: &str) -> Command {
        let mut ssh = Command::new(&self.ssh);
        self.options(&mut ssh);
        ssh.args([
            "-p",
            &self.port.to_string(),
            &format!("{}@127.0.0.1", self.name),
            remote,
        ]);
        ssh
    }

    /// Runs a command; its exit code and what it wrote.
    pub(crate) fn run(&self, remote: &str) -> Result<(i32, String, String)> {
        let output = child::try_output(&mut self.command(remote), "ssh", Some(DEADLINE))?;
        let code = output.status.code().context("ssh was killed")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((code, text(&output.stdout), text(&output.stderr)))
    }

    /// A session that stays: returns when the far side has said that it is there.
    pub(crate) fn session(&self) -> Result<Live> {
        let mut live = Live::start(self.command("echo here; exec sleep 600"), "ssh")?;
        live.wait_for_line(|line| line.trim() == "here")?;
        Ok(live)
    }

    /// Puts a file there and gets it back under another name.
    pub(crate) fn round_trip(&self, from: &Path, there: &Path, back: &Path) -> Result<()> {
        let mut sftp = Command::new(&self.sftp);
        self.options(&mut sftp);
        sftp.args(["-S"]).arg(&self.ssh);
        sftp.args([
            "-P",
            &self.port.to_string(),
            "-b",
            "-",
            &format!("{}@127.0.0.1", self.name),
        ]);
        sftp.stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut sftp = child::spawn(&mut sftp, "sftp")?;
        let mut stdin = sftp.stdin.take().context("sftp has no stdin")?;
        let [from, there, back] = [from, there, back].map(Path::display);
        write!(
            stdin,
            "put \"{from}\" \"{there}\"\nget \"{there}\" \"{back}\"\n"
        )
        .context("cannot tell sftp what to do")?;
        drop(stdin);
        let output = child::finish(sftp, "sftp", DEADLINE)?;
        if !output.status.success() {
            bail!("sftp: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }
}

/// A client that runs on while the tour does other things. Dropped, it is ended.
pub(crate) struct Live {
    what: &'static str,
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Live {
    /// Starts it; its lines are collected as they come.
    pub(crate) fn start(mut command: Command, what: &'static str) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = child::spawn(&mut command, what)?;
        let stdout = child.stdout.take().context("no stdout")?;
        let (sender, lines) = std::sync::mpsc::sync_channel(1024);
        std::thread::spawn(move || {
            let lines = BufReader::<ChildStdout>::new(stdout).lines();
            for line in lines.map_while(std::io::Result::ok) {
                // Nobody reads on: the client is on its way out.
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { what, child, lines })
    }

    /// The next line that fits.
    pub(crate) fn wait_for_line(&mut self, fits: impl Fn(&str) -> bool) -> Result<String> {
        let started = Instant::now();
        while started.elapsed() < DEADLINE {
            child::check_interrupted()?;
            match self.lines.recv_timeout(child::POLL) {
                Ok(line) if fits(&line) => return Ok(line),
                Ok(_) | Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    let said = self.complaint();
                    bail!("{} ended: {said}", self.what)
                }
            }
        }
        bail!(
            "{} did not say what was expected within {DEADLINE:?}",
            self.what
        )
    }

    /// An error if it has ended by now.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait().context("cannot wait for a client")? {
            let said = self.complaint();
            bail!("{} ended too early with {status}: {said}", self.what);
        }
        Ok(())
    }

    /// Waits for its own end, for at most `limit`; how long that took.
    pub(crate) fn wait_for_end(&mut self, limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        while self
            .child
            .try_wait()
            .context("cannot wait for a client")?
            .is_none()
        {
            if started.elapsed() > limit {
                bail!("{} still runs after {limit:?}", self.what);
            }
            child::pause(Duration::from_millis(1))?;
        }
        Ok(started.elapsed())
    }

    /// Waits for its own end, which must be a good one.
    pub(crate) fn wait_for_success(&mut self) -> Result<()> {
        self.wait_for_end(DEADLINE)?;
        let status = self.child.wait().context("cannot wait for a client")?;
        if !status.success() {
            let said = self.complaint();
            bail!("{} ended with {status}: {said}", self.what);
        }
        Ok(())
    }

    fn complaint(&mut self) -> String {
        let _ = self.child.kill();
        let mut said = String::new();
        if let Some(stderr) = self.child.stderr.take() {
            // What it managed to say is all there is.
            let _ = std::io::Read::read_to_string(&mut BufReader::new(stderr), &mut said);
        }
        said.trim().to_owned()
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects to a port, says a line, and gives what comes back: an error when it is closed.
pub(crate) fn raw_echo(port: u16, line: &str) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&loopback(port), DEADLINE)
        .with_context(|| format!("cannot connect to port {port}"))?;
    stream.set_read_timeout(Some(DEADLINE))?;
    writeln!(stream, "{line}").context("cannot send")?;
    let mut back = String::new();
    BufReader::new(stream)
        .read_line(&mut back)
        .context("cannot receive")?;
    if back.trim_end() != line {
        bail!("expected {line:?} back, saw {back:?}");
    }
    Ok(())
}

/// Tries again until it works; the last failure past the deadline.
pub(crate) fn until<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if error.is::<child::Interrupted>() => return Err(error),
            Err(error) if started.elapsed() > DEADLINE => {
                return Err(error.context(format!("no {what} within {DEADLINE:?}")));
            }
            Err(_) => child::pause(child::POLL)?,
        }
    }
}
