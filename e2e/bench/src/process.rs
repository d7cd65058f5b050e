//! CPU time and memory of a running process.
//!
//! Source: proc(5).

use std::fs::read_to_string;
use std::time::Duration;

use harness::Result;

/// CPU time of all its living threads.
///
/// # Errors
/// The process has exited.
pub fn cpu(pid: i32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().ok_or("an empty schedstat")?;
        nanos += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// Its memory in MiB: `Rss` or `Pss`.
///
/// # Errors
/// The process has exited, or the kernel has no such line.
pub fn memory(pid: i32, name: &str) -> Result<f64> {
    let text = read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let line = line.ok_or_else(|| format!("no {name} of process {pid}"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
