//! Counts the instructions of a job with callgrind. The count hardly varies between runs,
//! whatever else the machine does, so it shows regressions. Each count is compared with the
//! number in the repository.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Plan;
use super::cases::start::{Bench, text, write};
use super::cases::webhook::padded;
use super::command::Taken;
use harness::Result;
use harness::node::Node;
use harness::process::run as output_of;
use harness::tutorial::ECHO_SERVER;

/// Allowed increase. Runs differ by less than a thousandth.
const MARGIN: f64 = 0.05;

/// Counts the instructions of all jobs.
///
/// # Errors
/// A program fails, or valgrind is missing.
pub fn count(plan: &Plan) -> Result<BTreeMap<String, u64>> {
    let mut counts = BTreeMap::new();
    let folder = tempfile::tempdir()?;
    let out = folder.path().join("callgrind");
    let bins = &plan.parts.bins;
    let pod = folder.path().join("pod.json");
    let document: Value = serde_saphyr::from_str(ECHO_SERVER)?;
    write(&pod, &padded(&document, 64 << 10).to_string())?;
    let inject = [
        text(&bins.join("connect-inject")),
        "inject".to_owned(),
        "--init-image=init:1".to_owned(),
        "--envoy-image=envoy:1".to_owned(),
        "-f".to_owned(),
        text(&pod),
    ];
    counts.insert("connect-inject inject, a pod of 64 KiB".to_owned(), callgrind(&out, &inject)?);
    for https in [false, true] {
        let node = std::thread::scope(|scope| {
            scope
                .spawn(|| -> Result<(u64, u64)> {
                    let node = Node::new(plan.parts.clone())?;
                    let mut bench = Bench::new(plan, &node)?;
                    let further =
                        if https { bench.with_tls(&node)? } else { serde_json::json!({}) };
                    let _agent = node.start_agent_with(&further)?;
                    bench.describe()?;
                    // One run before, so that the counted run finds the agent in the same
                    // state each time.
                    let first = bench.init()?;
                    Taken::default().add(plan, &first)?;
                    let args = bench.init_command()?;
                    let init = callgrind(&folder.path().join("init"), &args)?;
                    let args = [
                        text(&bins.join("connect-lifecycle")),
                        "deregister".to_owned(),
                        format!("--dir={}", text(&bench.last_folder())),
                    ];
                    Ok((init, callgrind(&folder.path().join("end"), &args)?))
                })
                .join()
        });
        let (init, end) = node.map_err(|_| "the job panicked")??;
        let over = if https { "HTTPS" } else { "HTTP" };
        counts.insert(format!("connect-init over {over}"), init);
        counts.insert(format!("connect-lifecycle deregister over {over}"), end);
    }
    Ok(counts)
}

/// Instruction counts in the repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noted {
    /// Compiler of the binaries: another one generates other instructions.
    pub built_with: String,
    /// Instructions by job.
    pub instructions: BTreeMap<String, u64>,
}

/// A line for each job, and whether no job needs more instructions than noted. Binaries of
/// another compiler can't be compared, so their counts are only reported.
pub fn compare(found: &Noted, noted: &Noted) -> (Vec<String>, bool) {
    let mut lines = Vec::new();
    let mut good = true;
    let comparable = found.built_with == noted.built_with;
    if !comparable {
        let (here, there) = (&found.built_with, &noted.built_with);
        lines.push(format!("built with {here}: the numbers noted are of {there}"));
    }
    for (name, count) in &found.instructions {
        let Some(before) = noted.instructions.get(name) else {
            good &= !comparable;
            lines.push(format!("{name}: {count} instructions, nothing is noted"));
            continue;
        };
        let ratio = thousands(*count) / thousands(*before);
        let verdict = if !comparable {
            "not compared"
        } else if ratio > 1.0 + MARGIN {
            good = false;
            "more than it may be"
        } else if ratio < 1.0 - MARGIN {
            "less: note it"
        } else {
            "as noted"
        };
        let percent = (ratio - 1.0) * 100.0;
        lines.push(format!("{name}: {count} instructions, {percent:+.1} %: {verdict}"));
    }
    (lines, good)
}

/// Converts to a floating-point number, exact enough to see a hundredth.
fn thousands(count: u64) -> f64 {
    f64::from(u32::try_from(count / 1000).unwrap_or(u32::MAX))
}

/// The instructions of a command, without the kernel's.
fn callgrind(out: &Path, args: &[String]) -> Result<u64> {
    let mut all =
        vec!["--tool=callgrind".to_owned(), format!("--callgrind-out-file={}", text(out))];
    all.extend(args.iter().cloned());
    output_of("valgrind", &all)?;
    let found = std::fs::read_to_string(out)?;
    let total = found.lines().find_map(|line| line.strip_prefix("summary: "));
    Ok(total.ok_or("callgrind's output has no summary")?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(built_with: &str, job: &str, count: u64) -> Noted {
        let instructions = BTreeMap::from([(job.to_owned(), count)]);
        Noted { built_with: built_with.to_owned(), instructions }
    }

    #[test]
    fn an_increase_is_reported() {
        let before = noted("1.95", "a", 1_000_000);
        let good = |built_with, job, count| compare(&noted(built_with, job, count), &before).1;
        for count in [1_000_000, 1_049_000, 500_000] {
            assert!(good("1.95", "a", count), "{count}");
        }
        assert!(!good("1.95", "a", 1_060_000));
        assert!(!good("1.95", "b", 1), "nothing is noted of it");
        assert!(good("1.96", "a", 1_060_000), "another compiler's can't be compared");
    }
}
