//! `routes`, `containers` and `log`: the table in force, as it was, and how it came about.

use clap::Args;
use edd_daemon::cli::Exit;
use serde_json::Value;

use super::client;

/// Flags of `routes` and `containers`.
#[derive(Args, Debug)]
pub(super) struct TableArgs {
    /// As it was: a revision, a time (2026-01-31T12:00:00Z) or a while ago (10m)
    #[arg(long, value_name = "WHEN")]
    at: Option<String>,
    #[command(flatten)]
    ask: AskArgs,
}

/// Flags of `log`.
#[derive(Args, Debug)]
pub(super) struct LogArgs {
    /// Container or host
    name: String,
    /// The newest so many changes
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u16).range(1..=1000))]
    limit: u16,
    #[command(flatten)]
    ask: AskArgs,
}

/// Whom to ask, and how to print.
#[derive(Args, Debug)]
struct AskArgs {
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

/// `routes`.
pub(super) fn routes(args: &TableArgs) -> Result<(), Exit> {
    table(args, "routes", |route| {
        let strip = if route["strip_prefix"] == true {
            " (prefix stripped)"
        } else {
            ""
        };
        format!(
            "{}{} -> {}{strip}  [{}]",
            text(&route["host"]),
            text(&route["path"]),
            text(&route["target"]),
            text(&route["origin"])
        )
    })
}

/// `containers`.
pub(super) fn containers(args: &TableArgs) -> Result<(), Exit> {
    table(args, "containers", |container| {
        let rules = container["rules"].as_array().into_iter().flatten();
        let rules: Vec<_> = rules
            .map(|rule| format!("{}->{}", rule["port"], rule["target_port"]))
            .collect();
        let on = |name: &str, key: &str| match container[key] == true {
            true => format!(" {name}"),
            false => String::new(),
        };
        format!(
            "{}  user {}  {}{}{}  {}",
            text(&container["host"]),
            container["owner"],
            container["address"].as_str().unwrap_or("stopped"),
            on("ssh", "ssh_enabled"),
            on("https", "https_enabled"),
            rules.join(" ")
        )
    })
}

/// `log`.
pub(super) fn log(args: &LogArgs) -> Result<(), Exit> {
    let name = client::encode(&args.name);
    let path = format!("/api/v1/log?name={name}&limit={}", args.limit);
    let answer = ask(&args.ask, &path)?;
    if args.ask.json {
        return print_json(&answer);
    }
    let entries = answer["entries"].as_array().map_or(&[][..], Vec::as_slice);
    if entries.is_empty() {
        println!("nothing is known of {}", args.name);
    }
    for entry in entries {
        let event = &entry["event"];
        let position = || format!("{}:{}", text(&event["stream"]), event["sequence"]);
        let (subject, source) = (text(&event["subject"]), text(&event["source"]));
        let from = match text(&entry["origin"]) {
            "event" => {
                let id = text(&event["event_id"]);
                format!("{subject} {} {id} by {source}", position())
            }
            "snapshot" => {
                format!("{subject}, snapshot up to {} by {source}", position())
            }
            "last-good-table" => "into a new database".to_owned(),
            "stream-made-anew" => "the stream was made anew".to_owned(),
            _ => "routes.yaml".to_owned(),
        };
        println!(
            "{}  revision {}  {}  [{from}]",
            text(&entry["at"]),
            entry["revision"],
            text(&entry["change"])
        );
    }
    Ok(())
}

fn table(args: &TableArgs, what: &str, line: impl Fn(&Value) -> String) -> Result<(), Exit> {
    let at = args.at.as_deref().map(client::encode);
    let path = match at {
        Some(at) => format!("/api/v1/{what}?at={at}"),
        None => format!("/api/v1/{what}"),
    };
    let answer = ask(&args.ask, &path)?;
    if args.ask.json {
        return print_json(&answer);
    }
    println!("revision {}", answer["revision"]);
    for entry in answer[what].as_array().into_iter().flatten() {
        println!("{}", line(entry));
    }
    Ok(())
}

fn ask(args: &AskArgs, path: &str) -> Result<Value, Exit> {
    let body = client::get(&args.admin_addr, path)?;
    serde_json::from_slice(&body).map_err(|error| Exit::Failure(error.into()))
}

fn print_json(answer: &Value) -> Result<(), Exit> {
    let text = serde_json::to_string_pretty(answer).map_err(|e| Exit::Failure(e.into()))?;
    println!("{text}");
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
