//! What a process that runs has taken so far.
//!
//! Source: proc(5).

use std::fs::read_to_string;
use std::time::Duration;

use harness::Result;

/// The time on a processor of all its threads that live.
///
/// # Errors
/// It has ended.
pub fn cpu(pid: i32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().ok_or("an empty schedstat")?;
        nanos += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// A line of its memory in MiB: `Rss` or `Pss`.
///
/// # Errors
/// It has ended, or there is no such line.
pub fn memory(pid: i32, name: &str) -> Result<f64> {
    let text = read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let line = line.ok_or_else(|| format!("no {name} of process {pid}"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
