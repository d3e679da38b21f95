//! `explain`: where would this go, and why?

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::Args;
use edd_daemon::cli::Exit;
use edd_route::explain::Explanation;
use edd_route::{RouteTable, Settings, TableWriter};

use super::{check, client};

/// Flags of `explain`.
#[derive(Args, Debug)]
pub(super) struct ExplainArgs {
    /// URL, or `ssh USER`, or `tcp PORT`
    #[arg(required = true, num_args = 1..=2, value_name = "WHAT")]
    what: Vec<String>,
    /// Ask this file instead of the running gateway
    #[arg(long, value_name = "FILE")]
    routes: Option<PathBuf>,
    /// Ask the table as it was: a revision, a time or a while ago (10m)
    #[arg(long, value_name = "WHEN", conflicts_with = "routes")]
    at: Option<String>,
    /// Containers are <id>.compute.<platform-domain> (with --routes)
    #[arg(
        long,
        env = "EDD_GATEWAY_PLATFORM_DOMAIN",
        default_value = "cloud.eddisonso.com",
        value_name = "DOMAIN"
    )]
    platform_domain: String,
    /// The running gateway
    #[arg(
        long,
        env = "EDD_GATEWAY_ADMIN_ADDR",
        default_value = "127.0.0.1:9090",
        value_name = "ADDR"
    )]
    admin_addr: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is asked.
enum Question<'q> {
    Ssh(&'q str),
    Tcp(u16),
    Url(&'q str),
}

pub(super) fn run(args: &ExplainArgs) -> Result<(), Exit> {
    let question = question(&args.what).map_err(|problem| Exit::Usage(vec![problem]))?;
    let answer = match &args.routes {
        Some(file) => {
            let routes = check::load(file, &args.platform_domain)?;
            let settings = Settings::new(&args.platform_domain, Vec::new());
            let mut writer = TableWriter::new(RouteTable::empty(settings));
            writer.set_statics(routes);
            explain(writer.table(), &question)?
        }
        None => {
            let (key, value) = match question {
                Question::Ssh(user) => ("ssh", user.to_owned()),
                Question::Tcp(port) => ("tcp", port.to_string()),
                Question::Url(url) => ("url", url.to_owned()),
            };
            let mut path = format!("/api/v1/explain?{key}={}", client::encode(&value));
            if let Some(at) = &args.at {
                path.push_str("&at=");
                path.push_str(&client::encode(at));
            }
            let body = client::get(&args.admin_addr, &path)?;
            serde_json::from_slice(&body).map_err(|error| Exit::Failure(error.into()))?
        }
    };
    print(&answer, args.json)
}

fn question(what: &[String]) -> Result<Question<'_>, String> {
    match what {
        [kind, user] if kind == "ssh" => Ok(Question::Ssh(user)),
        [kind, port] if kind == "tcp" => match port.parse() {
            Ok(port) => Ok(Question::Tcp(port)),
            Err(_) => Err(format!("{port:?} is not a port")),
        },
        [url] if url.contains("://") => Ok(Question::Url(url)),
        [url] => Err(format!(
            "{url:?} is not a URL; say https://HOST/PATH, ssh USER or tcp PORT"
        )),
        _ => Err("say a URL, ssh USER or tcp PORT".to_owned()),
    }
}

fn explain(table: &RouteTable, question: &Question<'_>) -> Result<Explanation, Exit> {
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    match question {
        Question::Ssh(user) => Ok(table.explain_ssh(user)),
        Question::Tcp(port) => Ok(table.explain_tcp(*port)),
        Question::Url(url) => table
            .explain_url(url, client, |_| false)
            .map_err(|error| Exit::Usage(vec![format!("{url}: {error}")])),
    }
}

fn print(answer: &Explanation, json: bool) -> Result<(), Exit> {
    if json {
        let text = serde_json::to_string_pretty(answer).map_err(|e| Exit::Failure(e.into()))?;
        println!("{text}");
        return Ok(());
    }
    println!("{}\n  {}", answer.question, answer.outcome);
    let rows = [
        ("rule", &answer.rule),
        ("from", &answer.origin),
        ("upstream", &answer.upstream),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            println!("  {name:9} {value}");
        }
    }
    for target in answer.targets.iter().filter(|_| answer.targets.len() > 1) {
        let state = target.state.as_deref().unwrap_or("state unknown");
        println!(
            "  {:9} {} (weight {}): {state}",
            "target", target.target, target.weight
        );
    }
    for shadow in &answer.shadows {
        println!("  {:9} {shadow}", "shadows");
    }
    println!("  {:9} {}", "revision", answer.revision);
    Ok(())
}
