//! The demo user with a key and a container, made through the real REST APIs, and kept for the
//! next run.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use super::plan::{Plan, write_whole};
use super::rest::{self, Container, GUEST_ECHO_PORT, GUEST_HTTP_PORT, User};
use super::stack::Stack;
use crate::child;
use crate::tools::{Program, Tools};

const USER: &str = "demo";
const CONTAINER: &str = "demo";

/// How long the container's URL may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(15);

/// What works now.
pub(crate) struct Demo {
    container: Container,
    password: String,
    raw_port: u16,
}

/// Makes what is missing: user, key, container, rules; then waits until its URL answers.
pub(crate) fn ensure(stack: &Stack, tools: &Tools) -> Result<Demo> {
    let plan = &stack.plan;
    let (auth, compute) = (stack.auth_api(), stack.compute_api());
    let password = password(&plan.data.join("demo-user.json"))?;
    let user = match User::log_in(&auth, &compute, USER, &password)? {
        Some(user) => user,
        None => User::register(&auth, &compute, USER, &password).with_context(|| {
            format!(
                "cannot register the demo user (removing {} starts afresh)",
                plan.data.display()
            )
        })?,
    };
    let public_key = rest::ensure_key_pair(&plan.data.join("id_ed25519"), tools)?;
    user.ensure_key("demo", &public_key)?;
    let container = match user.find_container(CONTAINER)? {
        Some(container) => container,
        None => user.create_container(CONTAINER)?,
    };
    container.wait_until_running()?;
    container.set_ssh(true)?;
    let raw_port = *plan.ports.range.start();
    container.ensure_rule(443, GUEST_HTTP_PORT)?;
    container.ensure_rule(raw_port, GUEST_ECHO_PORT)?;
    let demo = Demo {
        container,
        password,
        raw_port,
    };
    demo.wait_for_answer(plan, tools)?;
    Ok(demo)
}

impl Demo {
    fn url(&self, plan: &Plan) -> String {
        format!("https://{}:{}/", self.container.hostname, plan.ports.https)
    }

    fn wait_for_answer(&self, plan: &Plan, tools: &Tools) -> Result<()> {
        let started = Instant::now();
        loop {
            let mut curl = Command::new(tools.path(Program::Curl)?);
            curl.args([
                "-q",
                "--silent",
                "--show-error",
                "--fail",
                "--max-time",
                "5",
            ]);
            curl.args(["--noproxy", "*", "--cacert"])
                .arg(plan.ca())
                .arg(self.url(plan));
            let answer = child::try_output(&mut curl, "curl", None)?;
            if answer.status.success() {
                return Ok(());
            }
            if started.elapsed() > ANSWER_LIMIT {
                let said = String::from_utf8_lossy(&answer.stderr).into_owned();
                bail!("{} does not answer: {}", self.url(plan), said.trim());
            }
            child::pause(child::POLL)?;
        }
    }

    /// Prints what to try.
    pub(crate) fn print(&self, plan: &Plan, tools: &Tools) -> Result<()> {
        let [curl, ssh] = [
            tools.as_typed(Program::Curl)?,
            tools.as_typed(Program::Ssh)?,
        ];
        let https = plan.ports.https;
        let (data, ca) = (shown(&plan.data), shown(&plan.ca()));
        let name = rest::ssh_name(&self.container.id)?;
        println!("\nEverything runs. Try, in another terminal:\n");
        println!(
            "  a static route      {curl} --cacert {} https://localhost:{https}/",
            ca
        );
        println!(
            "  the demo container  {curl} --cacert {} {}",
            ca,
            self.url(plan)
        );
        println!(
            "  a shell in it       {ssh} -p {} -i {data}/id_ed25519 \
             -o UserKnownHostsFile={data}/known_hosts -o StrictHostKeyChecking=accept-new \
             {name}@localhost",
            plan.ports.ssh
        );
        println!("  its raw echo port   127.0.0.1:{}", self.raw_port);
        println!(
            "  change routes       {} (in force when saved)",
            shown(&plan.routes())
        );
        println!(
            "  REST                https://api.localhost:{https}/api (auth), /compute; \
             user {USER}, password {}",
            self.password
        );
        println!(
            "  admin, metrics      http://127.0.0.1:{}/metrics",
            plan.ports.admin
        );
        println!("  logs                {}\n", shown(&plan.logs()));
        println!("Ctrl-C stops all of it.");
        Ok(())
    }
}

/// A path as a command typed here would name it.
fn shown(path: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(here)
        .unwrap_or(path)
        .display()
        .to_string()
}

/// The demo user's password: made once, kept for the next run, readable by its owner alone.
fn password(path: &Path) -> Result<String> {
    if let Ok(text) = fs::read_to_string(path)
        && let Ok(kept) = serde_json::from_str::<Value>(&text)
        && let Some(password) = kept["password"].as_str()
    {
        return Ok(password.to_owned());
    }
    let password = random_hex()?;
    let kept = json!({"username": USER, "password": password});
    write_whole(path, format!("{kept:#}\n").as_bytes())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .with_context(|| format!("cannot protect {}", path.display()))?;
    Ok(password)
}

/// 64 random bits.
pub(crate) fn random_hex() -> Result<String> {
    let mut bytes = [0_u8; 8];
    fs::File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
