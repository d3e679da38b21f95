//! Fetching Debian packages, with and without root.
//!
//! Without: apt with lists, cache and locks of its own under `data/dev/tools/apt` downloads the
//! package and those of its dependencies that the machine lacks (apt checks signatures and sums,
//! and renames only complete files into place), `dpkg -x` unpacks them into a temporary folder,
//! which is renamed when all of it is there. Nothing of the system is touched.
//!
//! With, for the one server that cannot live outside the system: `apt-get install` under a
//! `policy-rc.d` that denies starts. The file that was there before is kept aside and put back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, bail};

use crate::child;

/// Downloads and unpacks a package and what it lacks into `<tools>/<package>`.
pub(super) fn unpack(package: &str, tools: &Path) -> Result<()> {
    println!(
        "fetching {package} (unpacked under {}, nothing is installed)",
        tools.display()
    );
    let apt = Apt::new(tools)?;
    let update_failed = apt.update()?;
    let archives = apt.download(package).map_err(|error| match update_failed {
        Some(said) if !error.is::<child::Interrupted>() => {
            error.context(format!("the package lists could not be fetched: {said}"))
        }
        _ => error,
    })?;
    let temporary = tools.join(format!("{package}.unpacking"));
    remove_folder(&temporary)?;
    fs::create_dir_all(&temporary)
        .with_context(|| format!("cannot make {}", temporary.display()))?;
    let unpacked = archives.iter().try_for_each(|archive| {
        println!(
            "  unpacking {}",
            archive.file_name().unwrap_or_default().to_string_lossy()
        );
        child::output(
            Command::new("dpkg").arg("-x").arg(archive).arg(&temporary),
            "dpkg -x",
        )
        .map(drop)
    });
    if let Err(error) = unpacked {
        // The half of it would look like the whole to the next run.
        let _ = remove_folder(&temporary);
        return Err(error);
    }
    let place = tools.join(package);
    remove_folder(&place)?;
    fs::rename(&temporary, &place).with_context(|| format!("cannot make {}", place.display()))?;
    apt.forget_archives()
}

pub(super) fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// The path to start an unpacked program by: itself, or a script that names the libraries
/// unpacked beside it first.
pub(super) fn wrapped(root: &Path, program: &Path, name: &str) -> Result<PathBuf> {
    let mut libraries = Vec::new();
    for folder in ["lib", "usr/lib"].map(|folder| root.join(folder)) {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        let triplets = entries.flatten().map(|entry| entry.path()).filter(|path| {
            // `usr/lib/x86_64-linux-gnu`, not `usr/lib/openssh`.
            path.is_dir() && path.to_string_lossy().contains("-linux-")
        });
        libraries.extend(triplets);
    }
    if libraries.is_empty() {
        return Ok(program.to_path_buf());
    }
    let libraries =
        std::env::join_paths(libraries).context("the repository's path has a colon in it")?;
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH={}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\n\
         export LD_LIBRARY_PATH\nexec {} \"$@\"\n",
        quoted(&libraries.to_string_lossy()),
        quoted(&program.to_string_lossy()),
    );
    let wrapper = root.join("run").join(name);
    if fs::read_to_string(&wrapper).is_ok_and(|there| there == script) {
        return Ok(wrapper);
    }
    fs::create_dir_all(root.join("run")).context("cannot make the folder of wrappers")?;
    write_executable(&wrapper, &script)?;
    Ok(wrapper)
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Writes a script beside its place and renames it, so that no half of it is ever there.
fn write_executable(path: &Path, script: &str) -> Result<()> {
    let temporary = path.with_extension("writing");
    let written = fs::write(&temporary, script)
        .and_then(|()| fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)))
        .and_then(|()| fs::rename(&temporary, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

/// apt with folders of its own.
struct Apt {
    lists: PathBuf,
    cache: PathBuf,
}

impl Apt {
    fn new(tools: &Path) -> Result<Self> {
        let apt = Self {
            lists: tools.join("apt/lists"),
            cache: tools.join("apt/cache"),
        };
        for folder in [apt.lists.join("partial"), apt.archives().join("partial")] {
            fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        Ok(apt)
    }

    fn archives(&self) -> PathBuf {
        self.cache.join("archives")
    }

    fn command(&self) -> Command {
        let mut command = Command::new("apt-get");
        command
            .arg("-q")
            .arg("-o")
            .arg(format!("Dir::State::lists={}", self.lists.display()))
            .arg("-o")
            .arg(format!("Dir::Cache={}", self.cache.display()))
            .arg("-o")
            .arg(format!(
                "Dir::Cache::archives={}",
                self.archives().display()
            ))
            // The system's locks are not ours to take, and nothing of the system is changed.
            .args(["-o", "Debug::NoLocking=1"])
            // The folders are ours: apt's own user could not write to them.
            .args(["-o", "APT::Sandbox::User=root"])
            .args(["-o", "Acquire::Retries=2", "-o", "Acquire::Languages=none"])
            .env("LC_ALL", "C");
        command
    }

    /// Brings the lists up to date, once per run; what apt complained about. One unreachable
    /// source of several is no failure, if the package is in another.
    fn update(&self) -> Result<Option<String>> {
        static COMPLAINT: OnceLock<Option<String>> = OnceLock::new();
        if let Some(known) = COMPLAINT.get() {
            return Ok(known.clone());
        }
        println!("  apt-get update (lists of our own)");
        let mut update = self.command();
        update.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        let updated = child::try_output(&mut update, "apt-get update", None)?;
        let said = (!updated.status.success()).then(|| complaint(&updated.stderr));
        if let Some(said) = &said {
            println!("  apt-get update: {said}");
        }
        Ok(COMPLAINT.get_or_init(|| said).clone())
    }

    /// Downloads a package and those of its dependencies that are not installed.
    fn download(&self, package: &str) -> Result<Vec<PathBuf>> {
        let mut wanted = self.command();
        wanted.args([
            "--print-uris",
            "--yes",
            "--no-install-recommends",
            "--reinstall",
        ]);
        let wanted = child::try_output(wanted.args(["install", package]), "apt-get", None)?;
        if !wanted.status.success() {
            bail!("{}", complaint(&wanted.stderr));
        }
        let archives: Vec<PathBuf> = String::from_utf8_lossy(&wanted.stdout)
            .lines()
            .filter(|line| line.starts_with('\''))
            .filter_map(|line| line.split_whitespace().nth(1))
            .map(|name| self.archives().join(name))
            .collect();
        if archives.is_empty() {
            bail!("apt knows no file of the package {package}");
        }
        println!("  downloading {} package(s)", archives.len());
        let mut download = self.command();
        download.args([
            "--download-only",
            "--yes",
            "--no-install-recommends",
            "--reinstall",
        ]);
        let download = child::try_output(download.args(["install", package]), "apt-get", None)?;
        if !download.status.success() {
            bail!("{}", complaint(&download.stderr));
        }
        Ok(archives)
    }

    /// Unpacked archives are not needed again.
    fn forget_archives(&self) -> Result<()> {
        remove_folder(&self.archives())
    }
}

/// What apt complained about, on one line.
fn complaint(stderr: &[u8]) -> String {
    let stderr = String::from_utf8_lossy(stderr);
    let errors: Vec<&str> = stderr
        .lines()
        .filter(|line| line.starts_with("E:"))
        .collect();
    match errors.first() {
        Some(first) => (*first).to_owned(),
        None => stderr
            .lines()
            .next()
            .unwrap_or("apt-get failed without a word")
            .to_owned(),
    }
}

/// Installs a package into the system without starting anything of it. Needs root.
pub(super) fn install(package: &str) -> Result<()> {
    println!("installing {package} by apt-get (its services are not started)");
    let _policy = DenyStarts::new(Path::new("/usr/sbin/policy-rc.d"))?;
    let apt = |args: &[&str]| {
        child::try_output(
            Command::new("apt-get")
                .arg("-q")
                .args(["-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=2"])
                .args(args)
                .env("LC_ALL", "C")
                .env("DEBIAN_FRONTEND", "noninteractive"),
            "apt-get",
            None,
        )
    };
    let updated = apt(&["update"])?;
    if !updated.status.success() {
        println!("  apt-get update: {}", complaint(&updated.stderr));
    }
    let installed = apt(&["install", "--yes", "--no-install-recommends", package])?;
    if !installed.status.success() {
        bail!("{}", complaint(&installed.stderr));
    }
    Ok(())
}

/// While it lives, `policy-rc.d` denies every start of a service; dropped, the file that was
/// there before (or none) is back.
struct DenyStarts {
    policy: PathBuf,
    kept: PathBuf,
}

impl DenyStarts {
    fn new(policy: &Path) -> Result<Self> {
        let deny = Self {
            policy: policy.to_path_buf(),
            kept: policy.with_extension("d.kept-by-edd-xtask"),
        };
        // What a killed run left aside is the original.
        if fs::symlink_metadata(&deny.kept).is_err() && fs::symlink_metadata(policy).is_ok() {
            fs::rename(policy, &deny.kept)
                .with_context(|| format!("cannot put {} aside", policy.display()))?;
        }
        write_executable(policy, "#!/bin/sh\nexit 101\n")?;
        Ok(deny)
    }
}

impl Drop for DenyStarts {
    fn drop(&mut self) {
        let restored = if fs::symlink_metadata(&self.kept).is_ok() {
            fs::rename(&self.kept, &self.policy)
        } else {
            fs::remove_file(&self.policy)
        };
        if let Err(error) = restored {
            eprintln!(
                "xtask: cannot put {} back ({error}); the original, if there was one, is {}",
                self.policy.display(),
                self.kept.display()
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("edd-xtask-{name}-{}", std::process::id()));
        remove_folder(&folder).expect("clean start");
        fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    #[test]
    fn restores_an_existing_policy_exactly() {
        let folder = scratch("policy");
        let policy = folder.join("policy-rc.d");
        fs::write(&policy, "#!/bin/sh\nexit 42\n").expect("written");
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o711)).expect("mode");
        {
            let _deny = DenyStarts::new(&policy).expect("denies");
            let deny = fs::read_to_string(&policy).expect("ours is there");
            assert!(deny.contains("exit 101"), "{deny}");
        }
        assert_eq!(
            fs::read_to_string(&policy).expect("theirs"),
            "#!/bin/sh\nexit 42\n"
        );
        let mode = policy.metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o711);
        assert_eq!(fs::read_dir(&folder).expect("listed").count(), 1);
        remove_folder(&folder).expect("removed");
    }

    #[test]
    fn a_policy_kept_by_a_killed_run_is_the_one_that_comes_back() {
        let folder = scratch("policy-killed");
        let policy = folder.join("policy-rc.d");
        fs::write(&policy, "theirs").expect("written");
        std::mem::forget(DenyStarts::new(&policy).expect("denies"));
        drop(DenyStarts::new(&policy).expect("denies again"));
        assert_eq!(fs::read_to_string(&policy).expect("there"), "theirs");
        remove_folder(&folder).expect("removed");
    }

    #[test]
    fn leaves_no_policy_where_none_was() {
        let folder = scratch("no-policy");
        drop(DenyStarts::new(&folder.join("policy-rc.d")).expect("denies"));
        assert_eq!(fs::read_dir(&folder).expect("listed").count(), 0);
        remove_folder(&folder).expect("removed");
    }

    #[test]
    fn wraps_only_programs_with_libraries_beside_them() {
        let folder = scratch("wrap it's");
        let program = folder.join("usr/bin/thing");
        fs::create_dir_all(folder.join("usr/bin")).expect("a folder");
        write_executable(&program, "#!/bin/sh\necho \"$LD_LIBRARY_PATH $1\"\n").expect("written");
        assert_eq!(wrapped(&folder, &program, "thing").expect("found"), program);
        let libraries = folder.join("usr/lib/x86_64-linux-gnu");
        fs::create_dir_all(&libraries).expect("a folder");
        let wrapper = wrapped(&folder, &program, "thing").expect("found");
        assert_ne!(wrapper, program);
        let said = child::output(Command::new(&wrapper).arg("a b"), "the wrapper").expect("runs");
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(
            said.starts_with(&libraries.to_string_lossy().into_owned()),
            "{said}"
        );
        assert!(said.ends_with(" a b\n"), "{said}");
        remove_folder(&folder).expect("removed");
    }

    #[test]
    fn says_what_apt_said() {
        assert_eq!(
            complaint(b"W: x\nE: Unable to locate package y\n"),
            "E: Unable to locate package y"
        );
    }
}
