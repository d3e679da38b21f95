//! The table as a whole: what is decided, what a change keeps, what it ends.

mod changes;
mod decisions;
mod explanations;
mod scale;
mod snapshots;
mod support;
