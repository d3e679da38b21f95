//! Clients and servers from PyPI that tests run the gateway against.
//!
//! They lie in a folder of their own under `data/dev/tools`, which tests put into `PYTHONPATH`:
//! no virtual environment, nothing of the system's Python is touched. Binary wheels only, so no
//! compiler runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::apt;
use crate::child;

/// What the tests import, and what that needs, at versions that are known to work.
const PACKAGES: [&str; 25] = [
    "ansible-core==2.19.14",
    "asyncssh==2.24.1",
    "bcrypt==5.0.0",
    "cffi==2.1.1",
    "cryptography==50.0.2",
    "grpcio==1.85.1",
    "h11==0.16.0",
    "h2==4.4.1",
    "hpack==4.2.0",
    "hyperframe==6.1.0",
    "invoke==3.0.3",
    "jinja2==3.1.6",
    "markupsafe==3.0.4",
    "packaging==26.3",
    "paramiko==5.1.0",
    "pycparser==3.12",
    "pynacl==1.6.2",
    "pyyaml==6.0.3",
    "resolvelib==1.2.1",
    "ssh-audit==3.9.0",
    "ssh-python==1.2.0.post1",
    "ssh2-python==1.2.0.post1",
    "typing-extensions==4.15.0",
    "websockets==17.4",
    "wsproto==1.3.2",
];

/// The folder with the packages, fetched if this Python has none or others.
pub(super) fn ensure(python: &Path, tools: &Path) -> Result<PathBuf> {
    let place = tools.join("python-packages");
    let stamp = place.join("installed");
    let wanted = format!("{}{}\n", version(python)?, PACKAGES.join("\n"));
    if fs::read_to_string(&stamp).is_ok_and(|there| there == wanted) {
        return Ok(place);
    }
    println!("fetching {} packages from PyPI", PACKAGES.len());
    let temporary = tools.join("python-packages.installing");
    apt::remove_folder(&temporary)?;
    fs::create_dir_all(&temporary)
        .with_context(|| format!("cannot make {}", temporary.display()))?;
    let mut install = pip(python, tools)?;
    install
        .args(["install", "--quiet", "--no-input", "--no-deps"])
        .args(["--only-binary", ":all:", "--disable-pip-version-check"])
        .args(["--no-warn-script-location", "--target"])
        .arg(&temporary)
        .args(PACKAGES);
    let installed = child::try_output(&mut install, "pip install", None)?;
    if !installed.status.success() {
        let said = String::from_utf8_lossy(&installed.stderr);
        bail!(
            "the Python packages of the tests could not be fetched from PyPI: {}",
            said.lines().last().unwrap_or("pip failed without a word")
        );
    }
    fs::write(temporary.join("installed"), wanted).context("cannot write into the new folder")?;
    apt::remove_folder(&place)?;
    fs::rename(&temporary, &place).with_context(|| format!("cannot make {}", place.display()))?;
    Ok(place)
}

/// Binary wheels fit one version of Python.
fn version(python: &Path) -> Result<String> {
    let output = child::output(Command::new(python).arg("--version"), "python3 --version")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// pip: Python's own, or Debian's wheel of it run as it is.
fn pip(python: &Path, tools: &Path) -> Result<Command> {
    let mut command = Command::new(python);
    let own = child::try_output(
        Command::new(python).args(["-m", "pip", "--version"]),
        "pip --version",
        None,
    )?;
    if own.status.success() {
        command.args(["-m", "pip"]);
        return Ok(command);
    }
    let unpacked = tools.join(WHEEL_PACKAGE);
    let folders =
        [Path::new("/usr"), &unpacked.join("usr")].map(|root| root.join("share/python-wheels"));
    let find = || folders.iter().find_map(|folder| wheel_of_pip(folder));
    let wheel = match find() {
        Some(wheel) => wheel,
        None => {
            apt::unpack(WHEEL_PACKAGE, tools)?;
            find().with_context(|| format!("the package {WHEEL_PACKAGE} holds no pip"))?
        }
    };
    // A wheel is a zip file, and Python runs the module inside it.
    command.arg(wheel.join("pip"));
    Ok(command)
}

fn wheel_of_pip(folder: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?;
    entries.flatten().map(|entry| entry.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("pip-") && name.ends_with(".whl")
    })
}

const WHEEL_PACKAGE: &str = "python3-pip-whl";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_wheel_of_pip_among_others() {
        let folder = std::env::temp_dir().join(format!("edd-xtask-wheels-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        assert_eq!(wheel_of_pip(&folder), None);
        fs::write(folder.join("setuptools-66-py3-none-any.whl"), "").expect("written");
        let pip = folder.join("pip-23.0.1-py3-none-any.whl");
        fs::write(&pip, "").expect("written");
        assert_eq!(wheel_of_pip(&folder), Some(pip));
        fs::remove_dir_all(&folder).expect("removed");
    }
}
