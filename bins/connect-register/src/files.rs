//! Services from definition files.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use definition::{Definition, Format, Problem};
use runtime::Failure;
use serde_json::{Value, json};

use crate::output::{self, Output};

/// The file name that stands for standard input.
const STDIN: &str = "-";

pub(crate) struct Read {
    pub(crate) definitions: Vec<Definition>,
    /// Number of files.
    pub(crate) files: usize,
}

/// An error in one file, or between files.
enum Mistake {
    At(Problem),
    Other(String),
}

/// Reads all files in order and checks them together. Of a directory, it reads the
/// files with a definition file's name, sorted.
///
/// # Errors
/// Each error of each file has been logged, or printed as JSON.
pub(crate) fn read(files: &[PathBuf], output: Output) -> Result<Read, Failure> {
    let mut read = Read { definitions: Vec::new(), files: 0 };
    let mut mistakes = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let is_stdin = file == Path::new(STDIN);
        if is_stdin && files[..index].contains(file) {
            mistakes.push(Mistake::Other("standard input (-) can be read once only".to_owned()));
        } else if !is_stdin && file.is_dir() {
            match files_of(file) {
                Ok(files) => {
                    if files.is_empty() {
                        tracing::warn!("directory {} has no .hcl or .json file", file.display());
                    }
                    for file in &files {
                        read.add(file, &mut mistakes);
                    }
                }
                Err(error) => mistakes.push(Mistake::of(file, &error)),
            }
        } else {
            read.add(file, &mut mistakes);
        }
    }
    mistakes.extend(duplicates(&read.definitions).map(Mistake::Other));
    report(&mistakes, output)?;
    if read.definitions.is_empty() {
        return Err(Failure::usage("no service is defined: nothing was sent")
            .hint("a definition file has `service`, or `services` with a list"));
    }
    for Definition { service, place, warnings, .. } in &read.definitions {
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        if let Err(error) = registration::name::check(&service.name) {
            let (file, line) = (&place.file, place.line);
            tracing::warn!(
                "{file}:{line}: {error}; it is registered all the same, but DNS cannot serve it"
            );
        }
    }
    Ok(read)
}

/// The definition files of a directory, without subdirectories, as Consul does.
fn files_of(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let file = entry?.path();
        if Format::of(&file).is_ok() && !file.is_dir() {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// Services that would replace each other on the agent, including the sidecars that the
/// agent creates from `sidecar_service`.
fn duplicates(definitions: &[Definition]) -> impl Iterator<Item = String> {
    let mut first: HashMap<(&str, &str, String), (&Definition, &str)> = HashMap::new();
    let mut found = Vec::new();
    for definition in definitions {
        let Definition { service, place, .. } = definition;
        let connect = service.connect.as_ref();
        let sidecar = connect.and_then(|connect| connect.sidecar_service.as_ref());
        let sidecar = sidecar.map(|_| (format!("{}-sidecar-proxy", service.id()), "sidecar of "));
        for (id, what) in [(service.id().to_owned(), "")].into_iter().chain(sidecar) {
            let key = (service.partition.as_str(), service.namespace.as_str(), id.clone());
            if let Some((before, what_before)) = first.get(&key) {
                found.push(format!(
                    "{}:{}: service id `{id}` ({what}`{}`) is taken: {}:{} has it for {what_before}`{}`; \
                     expected an id of its own",
                    place.file,
                    place.line,
                    service.name,
                    before.place.file,
                    before.place.line,
                    before.service.name,
                ));
            } else {
                first.insert(key, (definition, what));
            }
        }
    }
    found.into_iter()
}

fn report(mistakes: &[Mistake], output: Output) -> Result<(), Failure> {
    if mistakes.is_empty() {
        return Ok(());
    }
    if output == Output::Json {
        let mistakes: Vec<Value> = mistakes.iter().map(Mistake::to_json).collect();
        output::print_json(&json!({"problems": mistakes}))?;
    }
    for mistake in mistakes {
        tracing::error!("{mistake}");
    }
    let count = mistakes.len();
    let plural = if count == 1 { "error" } else { "errors" };
    let message = format_args!("{count} {plural} in the definition files: nothing was sent");
    Err(Failure::usage(message).hint("correct what is listed above"))
}

// === impl Read ===

impl Read {
    fn add(&mut self, file: &Path, mistakes: &mut Vec<Mistake>) {
        self.files += 1;
        let name = name_of(file);
        let (format, text) = if file == Path::new(STDIN) {
            // Standard input has no file name; JSON is recognized by its first
            // character.
            (Ok(Format::Hcl), std::io::read_to_string(std::io::stdin()))
        } else {
            (Format::of(file), std::fs::read_to_string(file))
        };
        let text = match (format, text) {
            (Err(error), _) => Err(Mistake::of(file, &error)),
            (_, Err(error)) => Err(Mistake::of(file, &format_args!("cannot be read: {error}"))),
            (Ok(format), Ok(text)) => Ok((format, text)),
        };
        match text.map(|(format, text)| definition::parse(&name, format, &text)) {
            Err(mistake) => mistakes.push(mistake),
            Ok(Err(problems)) => mistakes.extend(problems.into_iter().map(Mistake::At)),
            Ok(Ok(found)) => {
                if found.is_empty() {
                    tracing::warn!("{name} defines no service");
                }
                self.definitions.extend(found);
            }
        }
    }
}

fn name_of(file: &Path) -> String {
    if file == Path::new(STDIN) { "stdin".to_owned() } else { file.display().to_string() }
}

// === impl Mistake ===

impl Mistake {
    fn of(file: &Path, problem: &dyn fmt::Display) -> Self {
        Self::Other(format!("{}: {problem}", name_of(file)))
    }

    fn to_json(&self) -> Value {
        match self {
            Self::At(Problem { file, line, column, path, message, .. }) => json!({
                "file": file, "line": line, "column": column, "key": path, "message": message,
            }),
            Self::Other(message) => json!({"message": message}),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(problem) => problem.fmt(f),
            Self::Other(message) => f.write_str(message),
        }
    }
}
