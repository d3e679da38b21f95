//! The REST APIs as `up` and the tour use them: users, keys, containers, rules.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::child;
use crate::http::Api;
use crate::tools::{Program, Tools};

/// How long a container may take to run.
const START_LIMIT: Duration = Duration::from_secs(20);

/// The port of a local container's web server: a page, a WebSocket echo, an event stream.
pub(crate) const GUEST_HTTP_PORT: u16 = 8080;

/// The port of its raw echo.
pub(crate) const GUEST_ECHO_PORT: u16 = 7000;

/// A logged-in user.
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) id: i64,
    pub(crate) auth: Api,
    pub(crate) compute: Api,
}

impl User {
    /// Logs in; `None` when there is no such user with this password.
    pub(crate) fn log_in(
        auth: &Api,
        compute: &Api,
        name: &str,
        password: &str,
    ) -> Result<Option<Self>> {
        let body = json!({"username": name, "password": password});
        let answer = auth.ask("POST", "/api/login", Some(&body))?;
        match answer.status {
            200..=299 => {}
            401 | 403 | 404 => return Ok(None),
            status => bail!(
                "POST /api/login answered {status}: {}",
                answer.text().trim()
            ),
        }
        let session = answer.json()?;
        let token = text(&session, "token")?;
        Ok(Some(Self {
            name: name.to_owned(),
            id: session["user_id"]
                .as_i64()
                .context("a session without a user_id")?,
            auth: auth.with_token(token),
            compute: compute.with_token(token),
        }))
    }

    /// Registers and logs in.
    pub(crate) fn register(auth: &Api, compute: &Api, name: &str, password: &str) -> Result<Self> {
        let body = json!({"username": name, "password": password});
        auth.call("POST", "/api/register", Some(&body))?;
        Self::log_in(auth, compute, name, password)?
            .context("the user that was just registered cannot log in")
    }

    /// Makes sure that a public key is among the user's keys.
    pub(crate) fn ensure_key(&self, name: &str, public_key: &str) -> Result<()> {
        let keys = self.compute.call("GET", "/compute/ssh-keys", None)?;
        let known = items(&keys, "ssh_keys").iter().any(|key| {
            let stored = key["public_key"].as_str().unwrap_or_default();
            same_key(stored, public_key)
        });
        if !known {
            let body = json!({"name": name, "public_key": public_key.trim()});
            self.compute
                .call("POST", "/compute/ssh-keys", Some(&body))?;
        }
        Ok(())
    }

    /// Creates a container; it is on its way to run.
    pub(crate) fn create_container(&self, name: &str) -> Result<Container> {
        let body = json!({"name": name});
        let made = self
            .compute
            .call("POST", "/compute/containers", Some(&body))?;
        Container::of(self.compute.clone(), &made)
    }

    /// The user's container of this name; started when it does not run.
    pub(crate) fn find_container(&self, name: &str) -> Result<Option<Container>> {
        let all = self.compute.call("GET", "/compute/containers", None)?;
        let Some(found) = items(&all, "containers")
            .iter()
            .find(|one| one["name"] == name)
        else {
            return Ok(None);
        };
        let container = Container::of(self.compute.clone(), found)?;
        if found["status"] != "running" {
            // Refused while it is starting already: what counts is that it comes to run.
            let path = format!("/compute/containers/{}/start", container.id);
            self.compute.ask("POST", &path, None)?;
        }
        Ok(Some(container))
    }
}

/// A container of a user.
pub(crate) struct Container {
    pub(crate) id: String,
    /// Its name in URLs.
    pub(crate) hostname: String,
    api: Api,
}

impl Container {
    fn of(api: Api, shown: &Value) -> Result<Self> {
        let [id, hostname] = [text(shown, "id")?, text(shown, "hostname")?].map(str::to_owned);
        Ok(Self { id, hostname, api })
    }

    /// Waits until it runs.
    pub(crate) fn wait_until_running(&self) -> Result<()> {
        let (id, path) = (&self.id, format!("/compute/containers/{}", self.id));
        let started = Instant::now();
        loop {
            let seen = self.api.call("GET", &path, None)?;
            if seen["status"] == "running" {
                return Ok(());
            }
            if seen["status"] == "failed" {
                bail!("container {id} failed to start: {seen}");
            }
            if started.elapsed() > START_LIMIT {
                bail!("container {id} does not run after {START_LIMIT:?}: {seen}");
            }
            child::pause(child::POLL)?;
        }
    }

    /// A request below the container's path, such as `POST stop`.
    pub(crate) fn call(&self, method: &str, below: &str, body: Option<Value>) -> Result<Value> {
        let path = format!("/compute/containers/{}/{below}", self.id);
        self.api.call(method, &path, body.as_ref())
    }

    /// Asks for a rule unless the container has it.
    pub(crate) fn ensure_rule(&self, port: u16, target_port: u16) -> Result<()> {
        let rules = self.call("GET", "ingress", None)?;
        let there = items(&rules, "ingress")
            .iter()
            .any(|rule| rule["port"] == port && rule["target_port"] == target_port);
        if !there {
            let rule = json!({"port": port, "target_port": target_port});
            self.call("POST", "ingress", Some(rule))?;
        }
        Ok(())
    }

    /// Switches SSH on or off.
    pub(crate) fn set_ssh(&self, enabled: bool) -> Result<()> {
        self.call("PUT", "ssh", Some(json!({"ssh_enabled": enabled})))
            .map(drop)
    }
}

/// A list, whether it is the answer itself or a member of it.
fn items<'a>(answer: &'a Value, member: &str) -> &'a [Value] {
    let list = answer.as_array().or_else(|| answer[member].as_array());
    list.map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, member: &str) -> Result<&'a str> {
    value[member]
        .as_str()
        .with_context(|| format!("no {member} in {value}"))
}

/// True for the same key, whatever the comments behind it.
fn same_key(one: &str, other: &str) -> bool {
    let key = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    };
    key(one).is_some() && key(one) == key(other)
}

/// Makes an ed25519 key pair if there is none; gives the public line.
pub(crate) fn ensure_key_pair(path: &Path, tools: &Tools) -> Result<String> {
    let public = PathBuf::from(format!("{}.pub", path.display()));
    if !public.exists() {
        let _ = fs::remove_file(path);
        let mut keygen = Command::new(tools.path(Program::SshKeygen)?);
        keygen
            .args([
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
                "-C",
                "edd-gateway demo",
                "-f",
            ])
            .arg(path);
        child::output(&mut keygen, "ssh-keygen")?;
    }
    fs::read_to_string(&public).with_context(|| format!("cannot read {}", public.display()))
}

/// The name to log in to a container by: its id, or behind the user's own name where sshd runs
/// without root and lets in only himself.
pub(crate) fn ssh_name(container: &str) -> Result<String> {
    if rustix::process::geteuid().is_root() {
        return Ok(container.to_owned());
    }
    let me = child::output(Command::new("id").arg("-un"), "id -un")?;
    Ok(format!(
        "{}.{container}",
        String::from_utf8_lossy(&me.stdout).trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_compared_without_their_comments() {
        assert!(same_key("ssh-ed25519 AAAA me@here", "ssh-ed25519 AAAA\n"));
        assert!(!same_key("ssh-ed25519 AAAA", "ssh-ed25519 BBBB"));
        assert!(!same_key("", ""));
    }

    #[test]
    fn lists_are_found_bare_or_named() {
        assert_eq!(items(&json!([1]), "x").len(), 1);
        assert_eq!(items(&json!({"x": [1, 2]}), "x").len(), 2);
        assert!(items(&json!({}), "x").is_empty());
    }
}
