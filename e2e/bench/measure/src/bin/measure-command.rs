//! Runs commands one after the other, and prints as JSON what they used in total: wall time,
//! CPU time, and the largest peak memory of any of them.
//!
//! The kernel's peak memory of a process is at least its parent's memory at the time of the
//! fork. This program is small and prints its own peak: lower values can't be measured.

use std::fs::File;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use serde::Deserialize;
use serde_json::json;

/// One command.
#[derive(Deserialize)]
struct Step {
    /// The program, and its arguments.
    args: Vec<String>,
    /// File for its standard output, which is dropped by default.
    stdout: Option<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(line) => {
            // Standard error may be closed.
            let _ = writeln!(std::io::stdout(), "{line}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            let _ = writeln!(std::io::stderr(), "measure-command: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<String, String> {
    let text = std::env::args().nth(1).ok_or("expected the commands as JSON")?;
    let steps: Vec<Step> = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let own = own_peak().ok_or("the kernel does not tell this program's memory")?;
    let began = Instant::now();
    for Step { args, stdout } in &steps {
        let (program, rest) = args.split_first().ok_or("a command without a program")?;
        let stdout = match stdout {
            Some(file) => {
                File::create(file).map_err(|error| format!("cannot write {file}: {error}"))?.into()
            }
            None => Stdio::null(),
        };
        let status = Command::new(program).args(rest).stdin(Stdio::null()).stdout(stdout).status();
        let status = status.map_err(|error| format!("cannot start {program}: {error}"))?;
        if !status.success() {
            return Err(format!("{program}: {status}"));
        }
    }
    let wall = began.elapsed();
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|errno| errno.to_string())?;
    let micros = |time: nix::sys::time::TimeVal| time.tv_sec() * 1_000_000 + time.tv_usec();
    Ok(json!({
        "wall_us": wall.as_micros(),
        "cpu_us": micros(used.user_time()) + micros(used.system_time()),
        "peak_kib": used.max_rss(),
        "own_kib": own,
    })
    .to_string())
}

/// This program's own peak, in KiB. Not getrusage's value, which includes the memory of the
/// parent process.
fn own_peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}
