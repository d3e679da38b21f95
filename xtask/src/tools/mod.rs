//! The programs that tests and the tour need: found on the machine, else fetched.
//!
//! Data in: `PATH`, the usual `sbin` folders, what an earlier run unpacked under
//! `data/dev/tools`. Data out: an absolute path per program, and the environment in which
//! everything that looks them up by name finds them too.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, anyhow};

use crate::child;
use crate::workspace;

mod apt;
mod python;

/// A program and the Debian package that has it. Servers first: their packages bring clients.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Program {
    /// The OpenSSH server, for containers of the local runtime and for tests.
    Sshd,
    /// The NATS server with JetStream.
    NatsServer,
    /// The OpenSSH client.
    Ssh,
    /// Its file transfer client.
    Sftp,
    /// Makes keys.
    SshKeygen,
    /// The HTTP client.
    Curl,
    /// The HTTP/2 client of nghttp2.
    Nghttp,
    /// Its HTTP/2 server.
    Nghttpd,
    /// Runs clients and servers from PyPI ([`python`]).
    Python,
    /// Fetches and sends over `ssh`.
    Git,
    /// Copies over `ssh`.
    Rsync,
    /// PuTTY's client of SSH without a window.
    Plink,
    /// Its file transfer client.
    Psftp,
    /// Turns keys into its format.
    Puttygen,
    /// Dropbear's client of SSH.
    Dbclient,
    /// Turns keys into its format.
    Dropbearconvert,
    /// A client of SFTP with the SSH library of Go.
    Rclone,
    /// Slow attackers.
    Slowhttptest,
    /// Judges TLS servers.
    Testssl,
    /// Another TLS library's client.
    Openssl,
    /// Makes the files of a PostgreSQL server.
    Initdb,
    /// The PostgreSQL server.
    Postgres,
}

impl Program {
    /// What the product's own commands need.
    const PRODUCT: [Self; 6] = [
        Self::Sshd,
        Self::NatsServer,
        Self::Ssh,
        Self::Sftp,
        Self::SshKeygen,
        Self::Curl,
    ];

    /// What the tests need besides.
    const TESTS: [Self; 16] = [
        Self::Nghttp,
        Self::Nghttpd,
        Self::Python,
        Self::Git,
        Self::Rsync,
        Self::Plink,
        Self::Psftp,
        Self::Puttygen,
        Self::Dbclient,
        Self::Dropbearconvert,
        Self::Rclone,
        Self::Slowhttptest,
        Self::Testssl,
        Self::Openssl,
        Self::Initdb,
        Self::Postgres,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Sshd => "sshd",
            Self::NatsServer => "nats-server",
            Self::Ssh => "ssh",
            Self::Sftp => "sftp",
            Self::SshKeygen => "ssh-keygen",
            Self::Curl => "curl",
            Self::Nghttp => "nghttp",
            Self::Nghttpd => "nghttpd",
            Self::Python => "python3",
            Self::Git => "git",
            Self::Rsync => "rsync",
            Self::Plink => "plink",
            Self::Psftp => "psftp",
            Self::Puttygen => "puttygen",
            Self::Dbclient => "dbclient",
            Self::Dropbearconvert => "dropbearconvert",
            Self::Rclone => "rclone",
            Self::Slowhttptest => "slowhttptest",
            Self::Testssl => "testssl",
            Self::Openssl => "openssl",
            Self::Initdb => "initdb",
            Self::Postgres => "postgres",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Sshd => "openssh-server",
            Self::NatsServer => "nats-server",
            Self::Ssh | Self::Sftp | Self::SshKeygen => "openssh-client",
            Self::Curl => "curl",
            Self::Nghttp => "nghttp2-client",
            Self::Nghttpd => "nghttp2-server",
            Self::Python => "python3",
            Self::Git => "git",
            Self::Rsync => "rsync",
            Self::Plink | Self::Psftp | Self::Puttygen => "putty-tools",
            Self::Dbclient | Self::Dropbearconvert => "dropbear-bin",
            Self::Rclone => "rclone",
            Self::Slowhttptest => "slowhttptest",
            Self::Testssl => "testssl.sh",
            Self::Openssl => "openssl",
            // Whichever version the distribution has.
            Self::Initdb | Self::Postgres => "postgresql",
        }
    }
}

/// Every program, with its path.
pub(crate) struct Tools {
    paths: BTreeMap<Program, PathBuf>,
    /// Where the packages from PyPI are, if they were asked for.
    python_packages: Option<PathBuf>,
}

impl Tools {
    /// Finds or fetches every program that the product's commands need. Says what it fetches;
    /// silent about what is there.
    pub(crate) fn ensure() -> Result<Self> {
        Self::find_or_fetch(&Program::PRODUCT)
    }

    /// Those and what the tests need: more clients and servers, and packages from PyPI.
    pub(crate) fn ensure_for_tests() -> Result<Self> {
        let mut tools = Self::find_or_fetch(&[&Program::PRODUCT[..], &Program::TESTS].concat())?;
        let packages = python::ensure(tools.path(Program::Python)?, &workspace::tools_dir())?;
        tools.python_packages = Some(packages);
        Ok(tools)
    }

    fn find_or_fetch(programs: &[Program]) -> Result<Self> {
        let tools = workspace::tools_dir();
        let mut paths = BTreeMap::new();
        for &program in programs {
            let path = match find(program, &tools)? {
                Some(path) => path,
                None => fetch(program, &tools)?,
            };
            paths.insert(program, path);
        }
        prepare_for_root()?;
        Ok(Self {
            paths,
            python_packages: None,
        })
    }

    /// The path of a program.
    pub(crate) fn path(&self, program: Program) -> Result<&Path> {
        let path = self.paths.get(&program).map(PathBuf::as_path);
        path.with_context(|| format!("{} was not looked for", program.name()))
    }

    /// A program as a command typed in a shell names it: by its path where PATH has it not.
    pub(crate) fn as_typed(&self, program: Program) -> Result<String> {
        let path = self.path(program)?;
        let search = std::env::var_os("PATH").unwrap_or_default();
        let found = std::env::split_paths(&search).any(|folder| Some(&*folder) == path.parent());
        Ok(if found {
            program.name().to_owned()
        } else {
            path.display().to_string()
        })
    }

    /// The helper that an unpacked sshd of OpenSSH 9.8 or later does not find by itself.
    pub(crate) fn sshd_session(&self) -> Option<PathBuf> {
        let root = workspace::tools_dir().join(Program::Sshd.package());
        let unpacked = self.paths.get(&Program::Sshd)?.starts_with(&root);
        let session = root.join("usr/lib/openssh/sshd-session");
        (unpacked && session.exists()).then_some(session)
    }

    /// Tells a child process where the programs are: the variables that our tests and services
    /// read, and a `PATH` that ends with the folders of all of them.
    pub(crate) fn set_environment(&self, command: &mut Command) -> Result<()> {
        command.env("EDD_NATS_SERVER", self.path(Program::NatsServer)?);
        command.env("EDD_SSHD", self.path(Program::Sshd)?);
        if let Some(folder) = self.paths.get(&Program::Postgres).and_then(|p| p.parent()) {
            command.env("EDD_POSTGRES_BIN", folder);
        }
        command.env("PATH", self.search_path()?);
        if let Some(packages) = &self.python_packages {
            command.env("EDD_PYTHON_PACKAGES", packages);
        }
        Ok(())
    }

    fn search_path(&self) -> Result<OsString> {
        let mut folders: Vec<PathBuf> = search_folders().collect();
        let used = self.paths.values().filter_map(|path| path.parent());
        // What a fetched program calls was unpacked beside it.
        let root = workspace::tools_dir().join(Program::Testssl.package());
        let beside = root.join("usr/bin");
        for folder in used.chain(beside.is_dir().then_some(&*beside)) {
            if !folders.iter().any(|known| known == folder) {
                folders.push(folder.to_path_buf());
            }
        }
        std::env::join_paths(folders).context("a folder of PATH has a colon in its name")
    }
}

/// Where programs are looked for: PATH, then the folders an ordinary user's PATH lacks.
fn search_folders() -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .collect();
    folders.into_iter()
}

/// True for a regular file that someone may execute.
fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Where Debian keeps the programs of PostgreSQL, by version, under `root`.
fn postgres_folders(root: &Path) -> Vec<PathBuf> {
    let versions = std::fs::read_dir(root.join("usr/lib/postgresql"));
    let versions = versions.into_iter().flatten().flatten();
    versions.map(|version| version.path().join("bin")).collect()
}

/// The program on the machine, or unpacked by an earlier run.
fn find(program: Program, tools: &Path) -> Result<Option<PathBuf>> {
    // Both in one folder: those beside the server first.
    let installed = postgres_folders(Path::new("/"))
        .into_iter()
        .chain(search_folders())
        .map(|folder| folder.join(program.name()))
        .find(|path| is_executable(path));
    if installed.is_some() {
        return Ok(installed);
    }
    if program == Program::Sshd && !can_use_unpacked_sshd()? {
        return Ok(None);
    }
    find_unpacked(program, tools)
}

/// The program in a package that an earlier step unpacked; through its wrapper when it needs
/// libraries that were unpacked beside it.
fn find_unpacked(program: Program, tools: &Path) -> Result<Option<PathBuf>> {
    for package in [program.package(), Program::Sshd.package()] {
        let root = tools.join(package);
        let usual = ["usr/bin", "usr/sbin"].map(|folder| root.join(folder));
        for folder in postgres_folders(&root).into_iter().chain(usual) {
            let path = folder.join(program.name());
            if is_executable(&path) {
                return apt::wrapped(&root, &path, program.name()).map(Some);
            }
        }
    }
    Ok(None)
}

fn fetch(program: Program, tools: &Path) -> Result<PathBuf> {
    let package = program.package();
    let fetched = if program == Program::Sshd && !can_use_unpacked_sshd()? {
        apt::install(package)
    } else {
        apt::unpack(package, tools)
    };
    fetched.map_err(|error| {
        // A stop is a stop, not a broken download.
        if error.is::<child::Interrupted>() {
            return error;
        }
        anyhow!(
            "{} is missing and could not be fetched ({error:#}): \
             install the package {package} and run this again",
            program.name()
        )
    })?;
    find(program, tools)?.with_context(|| {
        format!(
            "the package {package} holds no {}: install {0} by hand",
            program.name()
        )
    })
}

/// An sshd run by root insists on the system user `sshd`, which only the package's own set-up
/// makes; an ordinary user's sshd does not care.
fn can_use_unpacked_sshd() -> Result<bool> {
    if !rustix::process::geteuid().is_root() {
        return Ok(true);
    }
    let passwd = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    Ok(passwd.lines().any(|line| line.starts_with("sshd:")))
}

/// An sshd run by root insists on its empty folder, which a boot would have made.
fn prepare_for_root() -> Result<()> {
    if rustix::process::geteuid().is_root() {
        std::fs::create_dir_all("/run/sshd").context("cannot make /run/sshd, which sshd needs")?;
    }
    Ok(())
}

/// A program of a Debian package that only benchmarks need: found on the machine, else unpacked.
pub(crate) fn unpacked(name: &str, package: &str) -> Result<PathBuf> {
    let tools = workspace::tools_dir();
    let root = tools.join(package);
    let find = || -> Result<Option<PathBuf>> {
        let installed = search_folders()
            .map(|folder| folder.join(name))
            .find(|path| is_executable(path));
        if installed.is_some() {
            return Ok(installed);
        }
        let there = ["usr/bin", "usr/sbin"]
            .map(|folder| root.join(folder).join(name))
            .into_iter()
            .find(|path| is_executable(path));
        there
            .map(|path| apt::wrapped(&root, &path, name))
            .transpose()
    };
    if let Some(path) = find()? {
        return Ok(path);
    }
    apt::unpack(package, &tools)?;
    find()?.with_context(|| format!("the package {package} holds no {name}"))
}
