//! The flags of `cargo xtask bench`.

use std::path::PathBuf;

use super::peers::Kind;
use super::rows::{ROWS, Row};

/// A flag that there is not, or a value that it cannot have.
#[derive(Debug)]
pub(crate) struct BadOption(String);

impl BadOption {
    /// Says what is wrong.
    pub(super) fn new(what: String) -> Self {
        Self(what)
    }
}

impl std::fmt::Display for BadOption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "bench: {}", self.0)
    }
}

impl std::error::Error for BadOption {}

/// What the command line asks for.
pub(super) enum Wanted {
    /// The names of rows and peers.
    List,
    /// A run.
    Run(Options),
}

/// A run.
#[derive(Clone, Debug)]
pub(super) struct Options {
    /// The rows, in their order.
    pub(super) rows: Vec<&'static Row>,
    /// The proxies beside the gateway.
    pub(super) peers: Vec<Kind>,
    /// Gateways built elsewhere, each with a name; none: this tree, built with the release profile.
    pub(super) gateways: Vec<(String, PathBuf)>,
    /// An `edd-bench` built elsewhere; none: this tree's, built.
    pub(super) tool: Option<PathBuf>,
    /// How often each proxy is measured per row.
    pub(super) rounds: usize,
    /// The window of each measurement.
    pub(super) window_ms: u64,
    /// The load before it.
    pub(super) warm_up_ms: u64,
    /// Whether the result is written to `bench/results`.
    pub(super) write: bool,
    /// Shown with the result: what was different this time.
    pub(super) note: Option<String>,
}

/// Reads the flags.
pub(super) fn parse(flags: &[&str]) -> Result<Wanted, BadOption> {
    let mut options = Options {
        rows: Vec::new(),
        peers: Vec::new(),
        gateways: Vec::new(),
        tool: None,
        rounds: 3,
        window_ms: 2000,
        warm_up_ms: 600,
        write: true,
        note: None,
    };
    let (mut peers_named, mut window_named, mut rounds_named) = (false, None, None);
    let mut rest = flags.iter().copied();
    while let Some(flag) = rest.next() {
        let (flag, inline) = match flag.split_once('=') {
            Some((flag, value)) => (flag, Some(value)),
            None => (flag, None),
        };
        let mut value = || {
            inline
                .or_else(|| rest.next())
                .ok_or_else(|| BadOption(format!("{flag} wants a value")))
        };
        match flag {
            "--list" => return Ok(Wanted::List),
            "--row" => {
                for name in value()?.split(',') {
                    let row = ROWS.iter().find(|row| row.name == name);
                    let row = row.ok_or_else(|| BadOption(format!("no row {name} (--list)")))?;
                    options.rows.push(row);
                }
            }
            "--peer" => {
                peers_named = true;
                for name in value()?.split(',').filter(|name| *name != "none") {
                    let peer = Kind::PEERS.into_iter().find(|peer| peer.name() == name);
                    let peer = peer.ok_or_else(|| BadOption(format!("no peer {name} (--list)")))?;
                    options.peers.push(peer);
                }
            }
            "--gateway" => {
                let given = value()?;
                let (name, path) = given.split_once(':').unwrap_or(("gateway", given));
                options
                    .gateways
                    .push((name.to_owned(), PathBuf::from(path)));
            }
            "--tool" => options.tool = Some(PathBuf::from(value()?)),
            "--rounds" => rounds_named = Some(number(flag, value()?)?),
            "--seconds" => window_named = Some(seconds(flag, value()?)?),
            "--quick" => {
                options.rounds = 1;
                options.window_ms = 1200;
                options.warm_up_ms = 400;
            }
            "--no-write" => options.write = false,
            "--note" => options.note = Some(value()?.to_owned()),
            _ => return Err(BadOption(format!("no flag {flag}"))),
        }
    }
    options.rounds = rounds_named.unwrap_or(options.rounds);
    options.window_ms = window_named.unwrap_or(options.window_ms);
    if options.rows.is_empty() {
        options.rows = ROWS.iter().collect();
    }
    if !peers_named {
        options.peers = Kind::PEERS.to_vec();
    }
    Ok(Wanted::Run(options))
}

fn number(flag: &str, text: &str) -> Result<usize, BadOption> {
    match text.parse() {
        Ok(number @ 1..=100) => Ok(number),
        _ => Err(BadOption(format!("{flag} {text}: wanted 1 to 100"))),
    }
}

fn seconds(flag: &str, text: &str) -> Result<u64, BadOption> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.2..=60.0).contains(&seconds) => Ok((seconds * 1000.0) as u64),
        _ => Err(BadOption(format!("{flag} {text}: wanted 0.2 to 60"))),
    }
}

/// Prints the names.
pub(super) fn list() {
    println!("rows:");
    for row in &ROWS {
        println!("  {:<20} {}", row.name, row.title);
    }
    println!("peers:");
    for peer in Kind::PEERS {
        println!("  {:<20} {}", peer.name(), peer.what());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(flags: &[&str]) -> Options {
        match parse(flags) {
            Ok(Wanted::Run(options)) => options,
            Ok(Wanted::List) => panic!("a list"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn without_flags_everything_is_measured() {
        let options = run(&[]);
        assert_eq!(options.rows.len(), ROWS.len());
        assert_eq!(options.peers, Kind::PEERS);
        assert!(options.gateways.is_empty() && options.rounds == 3 && options.write);
    }

    #[test]
    fn names_pick_rows_peers_and_builds() {
        let options = run(&[
            "--row",
            "h1-tls,h1-plain",
            "--peer=nginx",
            "--gateway",
            "/a",
            "--gateway",
            "old:/b",
            "--quick",
            "--rounds",
            "2",
        ]);
        let names: Vec<&str> = options.rows.iter().map(|row| row.name).collect();
        assert_eq!(names, ["h1-tls", "h1-plain"]);
        assert_eq!(options.peers, [Kind::Nginx]);
        assert_eq!(
            options.gateways[0],
            ("gateway".to_owned(), PathBuf::from("/a"))
        );
        assert_eq!(options.gateways[1], ("old".to_owned(), PathBuf::from("/b")));
        assert_eq!((options.rounds, options.window_ms), (2, 1200));
        assert!(run(&["--peer", "none"]).peers.is_empty());
    }

    #[test]
    fn what_there_is_not_is_refused() {
        for flags in [
            ["--row", "h9"],
            ["--peer", "apache"],
            ["--rounds", "0"],
            ["--fast", "1"],
        ] {
            assert!(parse(&flags).is_err(), "{flags:?}");
        }
        assert!(parse(&["--row"]).is_err());
    }
}
