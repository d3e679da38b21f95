//! What a command prints: the parts it goes through, each with its time.
//!
//! A part that runs long streams its own output between its two lines; the table at the end
//! repeats all of them, so that the last screen tells the whole.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// The parts of one command, in order.
pub(crate) struct Parts {
    command: &'static str,
    started: Instant,
    done: Vec<(String, Duration)>,
}

impl Parts {
    /// Starts the clock.
    pub(crate) fn new(command: &'static str) -> Self {
        Self {
            command,
            started: Instant::now(),
            done: Vec::new(),
        }
    }

    /// Runs one part between two lines of output. A failure names the part and its time.
    pub(crate) fn run<T>(&mut self, name: &str, part: impl FnOnce() -> Result<T>) -> Result<T> {
        println!("== {name}");
        let started = Instant::now();
        let result = part();
        let took = started.elapsed();
        let value = result.with_context(|| format!("{name} failed after {}", seconds(took)))?;
        println!("== {name}: ok, {}\n", seconds(took));
        self.done.push((name.to_owned(), took));
        Ok(value)
    }

    /// Prints the table and the last line.
    pub(crate) fn finish(self) {
        let width = self
            .done
            .iter()
            .map(|(name, _)| name.len())
            .max()
            .unwrap_or(0);
        let mut table = String::new();
        for (name, took) in &self.done {
            // Writing to a String cannot fail.
            let _ = writeln!(table, "  {name:width$}  {:>9}", seconds(*took));
        }
        print!("{table}");
        println!(
            "{}: all passed in {}",
            self.command,
            seconds(self.started.elapsed())
        );
    }
}

/// A duration as a person reads it: `0.42 s`, `95.1 s`, `12 min 04 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let secs = duration.as_secs();
    if secs >= 120 {
        format!("{} min {:02} s", secs / 60, secs % 60)
    } else if secs >= 10 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{:.2} s", duration.as_secs_f64())
    }
}
