//! `connect-inject inject`: documents in, injected documents out.

mod text;
mod workload;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use runtime::{Exit, Failure};

use crate::args::InjectArgs;
use crate::policy::Policy;
use crate::reason::Outcome;
use workload::{Finding, Judged};

/// What the flags mean.
#[derive(Debug)]
pub(crate) struct Settings {
    /// Where the documents are read from; `-` is standard input.
    pub(crate) files: Vec<PathBuf>,
    /// The namespace of documents that name none.
    pub(crate) namespace: String,
    /// What the operator decided.
    pub(crate) policy: Policy,
}

/// Reads all documents, injects those that can be, and writes all in their
/// order. Nothing is written unless all could be read.
pub(crate) fn run(args: InjectArgs) -> Result<ExitCode, Failure> {
    let Settings { files, namespace, policy } = args.settings()?;
    let mut documents = Vec::new();
    for file in &files {
        let name = if is_stdin(file) { "standard input".into() } else { file.to_string_lossy() };
        let text = read(file)
            .map_err(|error| Failure::usage(format_args!("cannot read {name}: {error}")))?;
        let read =
            text::read(&text).map_err(|error| Failure::usage(format_args!("{name}: {error}")))?;
        documents.extend(read.into_iter().map(|document| (name.to_string(), document)));
    }

    let mut denied = 0;
    for (file, document) in &mut documents {
        if document.is_blank() {
            continue;
        }
        let findings = workload::inject(document.value(), &namespace, &policy);
        denied += findings.judged.iter().filter(|judged| report(file, judged)).count();
        if let Some(changed) = findings.changed {
            document.replace(changed);
        }
    }
    write(&text::write(documents.iter().map(|(_, document)| document))).map_err(|error| {
        Failure::new(Exit::CannotWrite, format_args!("cannot write standard output: {error}"))
    })?;
    if denied > 0 {
        return Err(Failure::usage(format_args!("denied: {denied}; written unchanged")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what became of an object, and returns whether it was denied.
fn report(file: &str, Judged { object, finding }: &Judged) -> bool {
    let verdict = match finding {
        Finding::NoPod => {
            tracing::info!("{file}: {object}: unchanged: not a Pod, and without a pod template");
            return false;
        }
        Finding::Pod(verdict) => verdict,
    };
    for warning in &verdict.warnings {
        tracing::warn!("{file}: {object}: {warning}");
    }
    let outcome = verdict.reason.outcome();
    let (reason, message) = (verdict.reason.code(), &verdict.message);
    if outcome == Outcome::Denied {
        tracing::error!(reason, "{file}: {object}: {}: {message}", outcome.code());
    } else {
        tracing::info!(reason, "{file}: {object}: {}: {message}", outcome.code());
    }
    outcome == Outcome::Denied
}

fn is_stdin(file: &Path) -> bool {
    file == Path::new("-")
}

fn read(file: &Path) -> std::io::Result<String> {
    if is_stdin(file) {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file)
}

fn write(text: &str) -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        // The reader has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}
