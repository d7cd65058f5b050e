//! The offline commands: documents in, and injected or uninjected documents, or
//! what would become of them, out.

mod kinds;
mod text;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use runtime::{Failure, stdout};

use crate::inject::undo::{self, Undone};
use crate::judge::Verdict;
use crate::outcome::Outcome;
use crate::policy::Policy;
use kinds::{Findings, Judged};
use text::Document;

/// What to read, and by what rules.
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
pub(crate) fn inject(settings: Settings) -> Result<ExitCode, Failure> {
    let Settings { files, namespace, policy } = settings;
    let mut denied = 0;
    rewrite(&files, |file, document| {
        let Findings { judged, changed } = kinds::inject(document, &namespace, &policy);
        denied += judged.iter().filter(|judged| report(file, judged)).count();
        changed
    })?;
    if denied > 0 {
        return Err(Failure::usage(format_args!("denied: {denied}; written unchanged")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads all documents, takes their injections back, and writes all in their
/// order.
pub(crate) fn uninject(files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let mut left = 0;
    rewrite(files, |file, document| {
        let findings = kinds::each(document, "default", &mut |pod, _| match undo::uninject(pod) {
            Undone::Pod(pod) => (Ok("uninjected"), Some(pod)),
            Undone::NotInjected => (Ok("unchanged: not injected"), None),
            Undone::NoSteps(problem) => (Err(problem), None),
        });
        for Judged { object, finding, .. } in &findings.judged {
            match finding {
                None => no_pod(file, object),
                Some(Ok(done)) => tracing::info!("{file}: {object}: {done}"),
                Some(Err(problem)) => {
                    left += 1;
                    tracing::error!("{file}: {object}: cannot be uninjected: {problem}");
                }
            }
        }
        findings.changed
    })?;
    if left > 0 {
        return Err(Failure::usage(format_args!("not uninjected: {left}; written unchanged")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads all documents, and writes a line for each pod of theirs: the object,
/// the outcome, the reason and a sentence, with tabs between.
pub(crate) fn explain(settings: Settings) -> Result<ExitCode, Failure> {
    let Settings { files, namespace, policy } = settings;
    let mut lines = Vec::new();
    let mut denied = 0;
    for (file, document) in read_all(&files)? {
        if document.is_blank() {
            continue;
        }
        let Some(value) = readable(&file, &document) else { continue };
        for judged in kinds::inject(value, &namespace, &policy).judged {
            let Judged { object, finding, warning } = judged;
            let Some(Verdict { reason, message, warnings, .. }) = finding else {
                no_pod(&file, &object);
                warn(&file, &object, warning.as_slice());
                continue;
            };
            warn(&file, &object, &warnings);
            let outcome = reason.outcome();
            denied += usize::from(outcome == Outcome::Denied);
            let mistake = warning.map(|mistake| format!("; {mistake}")).unwrap_or_default();
            let (outcome, reason) = (outcome.code(), reason.code());
            lines.push(format!("{object}\t{outcome}\t{reason}\t{message}{mistake}\n"));
        }
    }
    stdout::write(&lines.concat())?;
    if denied > 0 {
        return Err(Failure::usage(format_args!("denied: {denied}")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes each document as `change` makes it, or as it was read.
fn rewrite(
    files: &[PathBuf],
    mut change: impl FnMut(&str, &serde_json::Value) -> Option<serde_json::Value>,
) -> Result<(), Failure> {
    let mut documents = read_all(files)?;
    for (file, document) in &mut documents {
        if document.is_blank() {
            continue;
        }
        let Some(value) = readable(file, document) else { continue };
        // What comes out as it went in is not touched.
        if let Some(changed) = change(file, value).filter(|changed| changed != value) {
            document.replace(changed);
        }
    }
    stdout::write(&text::write(documents.iter().map(|(_, document)| document)))
}

/// What a document says; none, which is reported, if nobody can read it.
fn readable<'d>(file: &str, document: &'d Document) -> Option<&'d serde_json::Value> {
    document
        .value()
        .map_err(|problem| tracing::warn!("{file}: passed on unread, without a pod: {problem}"))
        .ok()
}

/// The documents of all files, each with its file's name.
fn read_all(files: &[PathBuf]) -> Result<Vec<(String, Document)>, Failure> {
    let mut documents = Vec::new();
    for file in files {
        let name = if is_stdin(file) { "standard input".into() } else { file.to_string_lossy() };
        let text = read(file)
            .map_err(|error| Failure::usage(format_args!("cannot read {name}: {error}")))?;
        let read =
            text::read(&text).map_err(|error| Failure::usage(format_args!("{name}: {error}")))?;
        documents.extend(read.into_iter().map(|document| (name.to_string(), document)));
    }
    Ok(documents)
}

/// Says what became of an object, and returns whether it was denied.
fn report(file: &str, Judged { object, finding, warning }: &Judged<Verdict>) -> bool {
    let Some(Verdict { reason, message, warnings, .. }) = finding else {
        no_pod(file, object);
        warn(file, object, warning.as_slice());
        return false;
    };
    warn(file, object, warnings);
    warn(file, object, warning.as_slice());
    let outcome = reason.outcome();
    let reason = reason.code();
    if outcome == Outcome::Denied {
        tracing::error!(reason, "{file}: {object}: {}: {message}", outcome.code());
    } else {
        tracing::info!(reason, "{file}: {object}: {}: {message}", outcome.code());
    }
    outcome == Outcome::Denied
}

fn no_pod(file: &str, object: &kinds::Object) {
    tracing::info!("{file}: {object}: unchanged: not a Pod, and without a pod template");
}

fn warn(file: &str, object: &kinds::Object, warnings: &[String]) {
    for warning in warnings {
        tracing::warn!("{file}: {object}: {warning}");
    }
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
