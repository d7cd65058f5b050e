//! The offline commands: inject, uninject and explain manifests.

mod kinds;
mod text;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use runtime::{Failure, stdout};

use crate::inject::undo::{self, Undone};
use crate::judge::Verdict;
use crate::outcome::Outcome;
use crate::pod::Pod;
use crate::policy::Policy;
use kinds::{Findings, Judged};
use text::Document;

#[derive(Debug)]
pub(crate) struct Settings {
    /// Manifest files; `-` is standard input.
    pub(crate) files: Vec<PathBuf>,
    /// Default namespace for manifests without one.
    pub(crate) namespace: String,
    pub(crate) policy: Policy,
}

/// Injects the manifests and writes all of them in their order. If one can't be read,
/// writes nothing.
pub(crate) fn inject(settings: Settings) -> Result<ExitCode, Failure> {
    let Settings { files, namespace, policy } = settings;
    let mut denied = 0;
    rewrite(&files, |file, document| {
        let Findings { judged, changed } = kinds::inject(document, &namespace, &policy);
        denied += judged.iter().filter(|judged| report(file, judged)).count();
        changed
    })?;
    if denied > 0 {
        return Err(Failure::usage(format_args!(
            "manifests denied: {denied}; they were written unchanged"
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes injections and writes all manifests in their order.
pub(crate) fn uninject(files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let mut left = 0;
    rewrite(files, |file, document| {
        let mut undo = |pod: Pod<'_>, _: &str| match undo::uninject(pod.value()) {
            Undone::Pod(pod) => (Ok("uninjected"), Some(pod)),
            Undone::NotInjected => (Ok("unchanged: not injected"), None),
            Undone::NoSteps(problem) => (Err(problem), None),
        };
        let findings = kinds::each(document, "default", &mut undo);
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
        return Err(Failure::usage(format_args!(
            "manifests not uninjected: {left}; they were written unchanged"
        )));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a tab-separated line for each pod of the manifests: object, outcome, reason and a
/// sentence.
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
        return Err(Failure::usage(format_args!("manifests denied: {denied}")));
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes the documents; those that `change` returns a value for are replaced.
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
        // A document without changes keeps its text.
        if let Some(changed) = change(file, value).filter(|changed| changed != value) {
            document.replace(changed);
        }
    }
    stdout::write(&text::write(documents.iter().map(|(_, document)| document)))
}

/// The value of a document; `None`, with a warning, if it isn't valid YAML.
fn readable<'d>(file: &str, document: &'d Document) -> Option<&'d serde_json::Value> {
    document
        .value()
        .map_err(|problem| {
            tracing::warn!("{file}: a document without containers is written unchanged: {problem}");
        })
        .ok()
}

/// The documents of all files, with the name of the file.
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

/// Logs the result for an object; returns whether it was denied.
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
    tracing::info!("{file}: {object}: unchanged: neither a Pod nor an object with a pod template");
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
