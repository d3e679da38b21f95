//! `dlq`: the dead letters, by way of the running gateway or of NATS itself.

mod desk;

use clap::{Args, Subcommand};
use edd_daemon::cli::Exit;
use edd_events::dead_letter::Filter;
use serde_json::{Value, json};

use desk::{ClientArgs, Desk};

/// Most letters of one `replay` or `drop`.
const SELECTED_MAX: usize = 100_000;

/// Flags of `dlq`.
#[derive(Args, Debug)]
pub(super) struct DlqArgs {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Events that nobody could use, oldest first
    List {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// One dead letter: its headers and its message
    Show {
        /// As `list` names it
        #[arg(value_name = "STREAM:SEQ")]
        letter: String,
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Publish the events again; what nobody can use still becomes a new letter
    Replay(Selection),
    /// Remove the letters for good
    Drop(Selection),
}

#[derive(Args, Debug)]
struct FilterArgs {
    /// Letters of this stream only
    #[arg(long, value_name = "STREAM")]
    stream: Option<String>,
    /// Events on these subjects only: compute.container.*.started, compute.>
    #[arg(long, value_name = "FILTER")]
    subject: Option<String>,
    /// Letters with this text in their reason only
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args, Debug)]
struct Selection {
    /// These letters
    #[arg(value_name = "STREAM:SEQ", conflicts_with_all = ["all", "stream", "subject", "reason"])]
    letters: Vec<String>,
    /// All there are now
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    client: ClientArgs,
}

impl FilterArgs {
    fn filter(&self) -> Filter {
        Filter {
            stream: self.stream.clone(),
            subject: self.subject.clone(),
            reason: self.reason.clone(),
        }
    }
}

pub(super) fn run(args: &DlqArgs) -> Result<(), Exit> {
    match &args.action {
        Action::List { filter, client } => list(filter, client),
        Action::Show { letter, client } => show(letter, client),
        Action::Replay(selection) => each(selection, Desk::replay, |letter, answer| {
            let event = answer["event"].as_str().unwrap_or_default();
            format!("{letter} replayed as {event}")
        }),
        Action::Drop(selection) => each(selection, Desk::discard, |letter, _| {
            format!("{letter} dropped")
        }),
    }
}

/// Hands over all letters that are wanted, page by page.
fn pages(
    filter: &FilterArgs,
    desk: &Desk,
    mut take: impl FnMut(Value) -> Result<(), Exit>,
) -> Result<(), Exit> {
    let filter = filter.filter();
    let mut after: Option<String> = None;
    loop {
        let page = desk.page(&filter, after.as_deref())?;
        for letter in page.letters {
            take(letter)?;
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(()),
        }
    }
}

fn list(filter: &FilterArgs, client: &ClientArgs) -> Result<(), Exit> {
    let mut all = Vec::new();
    let mut count = 0_usize;
    pages(filter, &Desk::open(client)?, |letter| {
        count += 1;
        if client.json {
            all.push(letter);
            return Ok(());
        }
        let text = |key: &str| letter[key].as_str().unwrap_or_default().to_owned();
        println!(
            "{:<14} {} {} x{} {}: {}",
            text("letter"),
            text("time"),
            text("subject"),
            letter["deliveries"],
            text("consumer"),
            text("reason"),
        );
        Ok(())
    })?;
    if client.json {
        print_json(&Value::Array(all))
    } else {
        match count {
            1 => println!("1 dead letter"),
            _ => println!("{count} dead letters"),
        }
        Ok(())
    }
}

fn show(letter: &str, client: &ClientArgs) -> Result<(), Exit> {
    let shown = Desk::open(client)?.show(letter)?;
    if client.json {
        return print_json(&shown);
    }
    println!("{letter}");
    for (name, values) in shown["headers"].as_object().into_iter().flatten() {
        for value in values.as_array().into_iter().flatten() {
            println!("  {name}: {}", value.as_str().unwrap_or_default());
        }
    }
    if shown["message"].is_null() {
        let hex = shown["payload_hex"].as_str().unwrap_or_default();
        println!("payload ({} bytes): {hex}", shown["size"]);
        Ok(())
    } else {
        print_json(&shown["message"])
    }
}

/// Does the same to all that are selected; one that fails holds up no other.
fn each(
    selection: &Selection,
    act: impl Fn(&Desk, &str) -> Result<Value, Exit>,
    say: impl Fn(&str, &Value) -> String,
) -> Result<(), Exit> {
    let client = &selection.client;
    let desk = Desk::open(client)?;
    let letters = selected(selection, &desk)?;
    let mut answers = Vec::new();
    let mut failures = 0_usize;
    for letter in &letters {
        match act(&desk, letter) {
            Ok(answer) => {
                if client.json {
                    answers.push(json!({"letter": letter, "event": answer["event"]}));
                } else {
                    println!("{}", say(letter, &answer));
                }
            }
            Err(Exit::Failure(error)) => {
                failures += 1;
                eprintln!("{letter}: {error:#}");
            }
            Err(usage) => return Err(usage),
        }
    }
    if client.json {
        print_json(&Value::Array(answers))?;
    }
    if failures > 0 {
        let error = anyhow::anyhow!("{failures} of {} dead letters failed", letters.len());
        return Err(Exit::Failure(error));
    }
    if letters.is_empty() && !client.json {
        println!("no dead letters");
    }
    Ok(())
}

/// Those that are there now: what a replay makes of them is not among them.
fn selected(selection: &Selection, desk: &Desk) -> Result<Vec<String>, Exit> {
    let filter = &selection.filter;
    let filters = [&filter.stream, &filter.subject, &filter.reason];
    if !selection.letters.is_empty() {
        return Ok(selection.letters.clone());
    }
    if !selection.all && filters.iter().all(|filter| filter.is_none()) {
        let problem = "say STREAM:SEQ, --all, --stream, --subject or --reason";
        return Err(Exit::Usage(vec![problem.to_owned()]));
    }
    let mut letters = Vec::new();
    pages(filter, desk, |letter| {
        if letters.len() >= SELECTED_MAX {
            let error = anyhow::anyhow!("more than {SELECTED_MAX} dead letters: select fewer");
            return Err(Exit::Failure(error));
        }
        letters.extend(letter["letter"].as_str().map(str::to_owned));
        Ok(())
    })?;
    Ok(letters)
}

fn print_json(value: &Value) -> Result<(), Exit> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Exit::Failure(e.into()))?;
    println!("{text}");
    Ok(())
}
