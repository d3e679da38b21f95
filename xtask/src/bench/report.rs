//! What a run has found: the table on the terminal, and the file in `bench/results/`.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::options::Options;
use super::peers::Kind;
use super::rows::{Judged, Row};
use crate::child;
use crate::up::plan::write_whole;
use crate::up::stack;
use crate::workspace;

/// A proxy that makes more connections to the origin than so many for 1,000 requests does not
/// keep them as it should, which is said.
const UNKEPT_PER_THOUSAND: f64 = 5.0;

/// Prints what a benchmark of its own, `cargo xtask bench NAME`, has said, and writes it with
/// what it means to `bench/results/`.
pub(super) fn measured(
    name: &str,
    began: &time_now::Started,
    args: &[&str],
    said: &[u8],
    about: &str,
) -> Result<()> {
    let said = String::from_utf8_lossy(said);
    print!("{said}");
    let text = format!(
        "# cargo xtask bench {name}\n\n\
         - Date: {}, commit {}, profile {}\n\
         - Machine: {}\n\
         - Arguments: {}\n\n\
         ```\n{said}```\n\n\
         {about}\n",
        began.text(),
        commit(),
        stack::PROFILE,
        machine(),
        match args {
            [] => "none".to_owned(),
            args => args.join(" "),
        },
    );
    let file = format!("{}-{name}.md", began.file_stamp());
    let file = workspace::root().join("bench/results").join(file);
    write_whole(&file, text.as_bytes())?;
    println!("written to {}", file.display());
    Ok(())
}

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// The figure that the row compares.
    judged: f64,
    /// What was done per second; 0 where nothing was.
    rate: f64,
    /// CPU time each in µs; 0 where it is not measured.
    cpu: f64,
    /// The 99th percentile of latency in µs; 0 where it is not measured.
    p99: f64,
    /// Connections made to the origin for each request; next to none while they are kept.
    unkept: f64,
    /// Cores that were busy with something else.
    elsewhere: f64,
}

impl Sample {
    /// Reads what `edd-bench measure` said.
    pub(super) fn of(judged: Judged, said: &Value) -> Result<Self> {
        let number = |name: &str| said[name].as_f64();
        if judged == Judged::Memory {
            let each = number("kib_per_connection").context("no memory in the measurement")?;
            return Ok(Self {
                judged: each,
                rate: 0.0,
                cpu: 0.0,
                p99: 0.0,
                unkept: 0.0,
                elsewhere: 0.0,
            });
        }
        let done = number("done").unwrap_or(0.0);
        if done < 1.0 {
            bail!("nothing was done in the window");
        }
        let cpu = number("cpu_us").context("no CPU time in the measurement")? / done;
        let p50 = number("p50_us").unwrap_or(0.0);
        Ok(Self {
            judged: if judged == Judged::Latency { p50 } else { cpu },
            rate: done / number("seconds").unwrap_or(f64::INFINITY),
            cpu,
            p99: number("p99_us").unwrap_or(0.0),
            unkept: number("origin_connections").unwrap_or(0.0)
                / number("origin_requests").unwrap_or(0.0).max(1.0),
            elsewhere: number("elsewhere_cores").unwrap_or(0.0),
        })
    }
}

/// One proxy in one row.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    /// A measurement of each round.
    pub(super) samples: Vec<Sample>,
    /// Why it could not be measured.
    pub(super) failed: Option<String>,
}

impl Cell {
    fn median(&self, of: impl Fn(&Sample) -> f64) -> Option<f64> {
        if self.failed.is_some() {
            return None;
        }
        let mut values: Vec<f64> = self.samples.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        match values.len() {
            0 => None,
            n if n % 2 == 1 => values.get(n / 2).copied(),
            n => Some((values.get(n / 2 - 1)? + values.get(n / 2)?) / 2.0),
        }
    }

    fn judged(&self) -> Option<f64> {
        self.median(|sample| sample.judged)
    }

    /// Between the smallest and the largest, in hundredths of the median.
    fn spread(&self) -> Option<f64> {
        let judged = || self.samples.iter().map(|sample| sample.judged);
        let (least, most) = (judged().reduce(f64::min)?, judged().reduce(f64::max)?);
        Some((most - least) / self.judged()? * 100.0)
    }
}

/// A proxy of the run.
struct Subject {
    kind: Kind,
    label: &'static str,
    version: String,
}

/// What a run has found so far.
pub(super) struct Report {
    command: String,
    options: Options,
    started: time_now::Started,
    subjects: Vec<Subject>,
    left_out: Vec<String>,
    rows: Vec<(&'static Row, Vec<(&'static str, Cell)>)>,
}

impl Report {
    pub(super) fn new(options: &Options) -> Result<Self> {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        Ok(Self {
            command: format!("cargo xtask {}", arguments.join(" ")),
            options: options.clone(),
            started: time_now::now()?,
            subjects: Vec::new(),
            left_out: Vec::new(),
            rows: Vec::new(),
        })
    }

    /// A proxy takes part.
    pub(super) fn subject(&mut self, kind: Kind, label: &'static str, version: &str) {
        println!("{label} {version}: ready");
        self.subjects.push(Subject {
            kind,
            label,
            version: version.to_owned(),
        });
    }

    /// A proxy does not take part.
    pub(super) fn left_out(&mut self, name: &str, error: &anyhow::Error) {
        println!("{name} is left out: {error:#}");
        self.left_out.push(format!("{name}: {error:#}"));
    }

    /// A row is done.
    pub(super) fn row(&mut self, row: &'static Row, cells: Vec<(&'static str, Cell)>) {
        let text = self.table(row, &cells);
        print!("{text}");
        self.rows.push((row, cells));
    }

    fn kind(&self, label: &str) -> Kind {
        let subject = self.subjects.iter().find(|subject| subject.label == label);
        subject.map_or(Kind::Gateway, |subject| subject.kind)
    }

    /// The best of the other proxies: its name and figure.
    fn best(&self, cells: &[(&'static str, Cell)]) -> Option<(&'static str, f64)> {
        cells
            .iter()
            .filter(|(label, _)| self.kind(label).is_peer())
            .filter_map(|(label, cell)| Some((*label, cell.judged()?)))
            .min_by(|(_, one), (_, other)| one.total_cmp(other))
    }

    fn floor(&self, cells: &[(&'static str, Cell)]) -> Option<f64> {
        let floor = cells
            .iter()
            .find(|(label, _)| self.kind(label) == Kind::Floor)?;
        floor.1.judged()
    }

    fn table(&self, row: &Row, cells: &[(&'static str, Cell)]) -> String {
        let (best, floor) = (self.best(cells), self.floor(cells));
        let mut text = String::new();
        let head = match row.judged {
            Judged::Cpu => "  CPU µs each       each/s",
            Judged::Memory => "    KiB each",
            Judged::Latency => "      p50 µs   p99 µs  CPU µs each",
        };
        let _ = writeln!(
            text,
            "{:<16}{head}   of best  {}spread",
            "",
            if floor.is_some() { "of floor  " } else { "" }
        );
        for (label, cell) in cells {
            let Some(judged) = cell.judged() else {
                if let Some(failed) = &cell.failed {
                    let _ = writeln!(text, "{label:<16}  failed: {failed}");
                }
                continue;
            };
            let _ = write!(text, "{label:<16}{judged:>13.1}");
            match row.judged {
                Judged::Cpu => {
                    let rate = cell.median(|sample| sample.rate).unwrap_or(0.0);
                    let _ = write!(text, "{rate:>13.0}");
                }
                Judged::Memory => {}
                Judged::Latency => {
                    let p99 = cell.median(|sample| sample.p99).unwrap_or(0.0);
                    let cpu = cell.median(|sample| sample.cpu).unwrap_or(0.0);
                    let _ = write!(text, "{p99:>9.0}{cpu:>13.1}");
                }
            }
            match best {
                Some((_, best)) => {
                    let _ = write!(text, "{:>10.2}", judged / best);
                }
                None => text.push_str("         -"),
            }
            if let Some(floor) = floor {
                let _ = write!(text, "{:>10.2}", judged / floor);
            }
            let _ = writeln!(text, "{:>7.0} %", cell.spread().unwrap_or(0.0));
        }
        for (label, cell) in cells {
            let unkept = cell.median(|sample| sample.unkept).unwrap_or(0.0) * 1000.0;
            if unkept > UNKEPT_PER_THOUSAND {
                let _ = writeln!(
                    text,
                    "{label}: {unkept:.0} connections to the origin per 1,000 requests"
                );
            }
        }
        text
    }

    /// Cores that were busy with something else: the mean of all measurements and the worst.
    fn noise(&self) -> (f64, f64) {
        let all = self
            .rows
            .iter()
            .flat_map(|(_, cells)| cells)
            .flat_map(|(_, cell)| &cell.samples)
            .map(|sample| sample.elsewhere);
        let (mut sum, mut count, mut worst) = (0.0, 0.0, 0.0_f64);
        for elsewhere in all {
            sum += elsewhere;
            count += 1.0;
            worst = worst.max(elsewhere);
        }
        (if count > 0.0 { sum / count } else { 0.0 }, worst)
    }

    /// The gateway's ratios beside their targets.
    fn summary(&self) -> String {
        let mut text = format!(
            "{:<20}{:>10}{:>22}{:>8}{:>8}{:>10}\n",
            "row", "gateway", "best peer", "ratio", "target", "of floor"
        );
        for (row, cells) in &self.rows {
            for (label, cell) in cells {
                if self.kind(label) != Kind::Gateway {
                    continue;
                }
                let name = match *label {
                    "gateway" => row.name.to_owned(),
                    label => format!("{} {label}", row.name),
                };
                let Some(judged) = cell.judged() else {
                    let why = cell.failed.as_deref().unwrap_or("not measured");
                    let _ = writeln!(text, "{name:<20}  failed: {why}");
                    continue;
                };
                let _ = write!(text, "{name:<20}{judged:>10.1}");
                match self.best(cells) {
                    Some((best, figure)) => {
                        let ratio = judged / figure;
                        let verdict = if ratio <= row.target { ' ' } else { '!' };
                        let best = format!("{best} {figure:.1}");
                        let _ = write!(text, "{best:>22}{ratio:>8.2}{:>7.2}{verdict}", row.target);
                    }
                    None => {
                        let _ = write!(text, "{:>22}{:>8}{:>7.2} ", "-", "-", row.target);
                    }
                }
                match self.floor(cells) {
                    Some(floor) => {
                        let _ = writeln!(text, "{:>10.2}", judged / floor);
                    }
                    None => text.push('\n'),
                }
            }
        }
        text.push_str("(! above the target)\n");
        text
    }

    /// Prints the summary and writes the file. An error if the gateway failed in a row.
    pub(super) fn finish(self) -> Result<()> {
        let summary = self.summary();
        println!("\n{summary}");
        let (mean, worst) = self.noise();
        println!("cores busy with something else: {mean:.2} on average, {worst:.2} at worst");
        if self.options.write {
            let path = workspace::root()
                .join("bench/results")
                .join(format!("{}-peers.md", self.started.file_stamp()));
            let text = self.file(&summary, mean, worst);
            write_whole(&path, text.as_bytes())?;
            println!("written: {}", path.display());
        }
        let failed: Vec<&str> = self
            .rows
            .iter()
            .filter(|(_, cells)| {
                cells
                    .iter()
                    .any(|(label, cell)| self.kind(label) == Kind::Gateway && cell.failed.is_some())
            })
            .map(|(row, _)| row.name)
            .collect();
        if !failed.is_empty() {
            bail!("the gateway failed in: {}", failed.join(", "));
        }
        Ok(())
    }

    fn file(&self, summary: &str, mean: f64, worst: f64) -> String {
        let options = &self.options;
        let mut text = String::from("# The gateway beside other proxies\n\n");
        let built = if options.gateways.is_empty() {
            "profile release"
        } else {
            "a binary built beforehand"
        };
        let _ = writeln!(
            text,
            "- Date: {}, commit {}, {built}",
            self.started.text(),
            commit()
        );
        let _ = writeln!(text, "- Machine: {}", machine());
        let _ = writeln!(
            text,
            "- Cores busy with something else meanwhile: {mean:.2} on average, {worst:.2} at worst"
        );
        let versions: Vec<String> = self
            .subjects
            .iter()
            .map(|subject| format!("{} {}", subject.label, subject.version))
            .collect();
        let _ = writeln!(text, "- Proxies: {}", versions.join(", "));
        for left_out in &self.left_out {
            let _ = writeln!(text, "- Left out: {left_out}");
        }
        let _ = writeln!(
            text,
            "- Rounds: {} interleaved, windows of {} s after {} s of load; medians, and the spread \
             between the smallest and the largest",
            options.rounds,
            options.window_ms as f64 / 1000.0,
            options.warm_up_ms as f64 / 1000.0
        );
        let _ = writeln!(text, "- Command: {}", self.command);
        if let Some(note) = &options.note {
            let _ = writeln!(text, "- {note}");
        }
        let _ = write!(text, "\n```\n{summary}```\n");
        for (row, cells) in &self.rows {
            let _ = write!(
                text,
                "\n## {}: {}\n\n```\n{}```\n",
                row.name,
                row.title,
                self.table(row, cells)
            );
        }
        text.push_str(
            "\nHow it is measured and what it does not say: [docs/benchmarks.md](../../docs/benchmarks.md).\n",
        );
        text
    }
}

/// What is measured.
pub(super) fn commit() -> String {
    let limit = Some(Duration::from_secs(10));
    let git = |arguments: &[&str]| {
        let mut git = Command::new("git");
        git.args(arguments).current_dir(workspace::root());
        let output = child::try_output(&mut git, "git", limit).ok()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        output.status.success().then_some(said)
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changed) if changed.is_empty() => commit,
        _ => format!("{commit} with changes"),
    }
}

/// Where it is measured.
pub(super) fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = read("/proc/cpuinfo");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let release = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    format!(
        "{cores} cores, {model}, Linux {}, load {} at the end",
        release.trim(),
        load.split(' ').next().unwrap_or("?")
    )
}

/// The date, without a crate for it.
pub(super) mod time_now {
    use std::time::{SystemTime, UNIX_EPOCH};

    use anyhow::{Context as _, Result};

    /// A moment, as year, month, day, hour and minute in UTC.
    pub(in crate::bench) struct Started([u64; 5]);

    /// Now.
    pub(in crate::bench) fn now() -> Result<Started> {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("a clock before 1970")?;
        Ok(at(since.as_secs()))
    }

    fn at(seconds: u64) -> Started {
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Howard Hinnant's civil_from_days, for days since 1970.
        let z = days + 719_468;
        let (era, doe) = (z / 146_097, z % 146_097);
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let day = doy - (153 * mp + 2) / 5 + 1;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        let year = yoe + era * 400 + u64::from(month <= 2);
        Started([year, month, day, rest / 3600, rest % 3600 / 60])
    }

    impl Started {
        /// `2026-11-21 10:20 UTC`
        pub(in crate::bench) fn text(&self) -> String {
            let [year, month, day, hour, minute] = self.0;
            format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02} UTC")
        }

        /// `2026-11-21-1020`
        pub(in crate::bench) fn file_stamp(&self) -> String {
            let [year, month, day, hour, minute] = self.0;
            format!("{year}-{month:02}-{day:02}-{hour:02}{minute:02}")
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn knows_the_calendar() {
            assert_eq!(at(0).text(), "1970-01-01 00:00 UTC");
            assert_eq!(at(951_827_696).text(), "2000-02-29 12:34 UTC");
            assert_eq!(at(1_795_256_400).file_stamp(), "2026-11-21-1020");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(values: &[f64]) -> Cell {
        let sample = |judged| Sample {
            judged,
            rate: 0.0,
            cpu: judged,
            p99: 0.0,
            unkept: 0.0,
            elsewhere: 0.0,
        };
        Cell {
            samples: values.iter().copied().map(sample).collect(),
            failed: None,
        }
    }

    #[test]
    fn median_and_spread_are_those_of_the_rounds() {
        assert_eq!(cell(&[3.0, 1.0, 2.0]).judged(), Some(2.0));
        assert_eq!(cell(&[4.0, 2.0]).judged(), Some(3.0));
        assert_eq!(cell(&[3.0, 1.0, 2.0]).spread(), Some(100.0));
        assert_eq!(cell(&[]).judged(), None);
        let failed = Cell {
            failed: Some("no".to_owned()),
            ..cell(&[1.0])
        };
        assert_eq!(failed.judged(), None);
    }

    #[test]
    fn cpu_time_is_per_thing_done() {
        let said = serde_json::json!({"done": 1000, "seconds": 2.0, "cpu_us": 25000.0});
        let sample = Sample::of(Judged::Cpu, &said).expect("fine");
        assert_eq!((sample.judged, sample.rate), (25.0, 500.0));
        let nothing = serde_json::json!({"done": 0, "seconds": 2.0, "cpu_us": 25000.0});
        assert!(Sample::of(Judged::Cpu, &nothing).is_err());
    }
}
