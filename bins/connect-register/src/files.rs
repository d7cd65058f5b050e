//! Services from definition files.

use std::fmt;
use std::path::{Path, PathBuf};

use definition::{Definition, Format};
use runtime::Failure;

/// Standard input, as a file.
const STDIN: &str = "-";

/// Reads all files, in their order.
///
/// # Errors
/// Every mistake of every file has been logged.
pub(crate) fn read(files: &[PathBuf]) -> Result<Vec<Definition>, Failure> {
    let mut definitions = Vec::new();
    let mut mistakes = 0;
    let mut mistake = |problem: &dyn fmt::Display| {
        mistakes += 1;
        tracing::error!("{problem}");
    };
    for (index, file) in files.iter().enumerate() {
        if file == Path::new(STDIN) && files[..index].contains(file) {
            mistake(&"standard input (-) can be read once only");
            continue;
        }
        match read_one(file) {
            Ok(found) => {
                if found.is_empty() {
                    tracing::warn!("{} defines no service", name_of(file));
                }
                definitions.extend(found);
            }
            Err(found) => found.iter().for_each(|problem| mistake(problem)),
        }
    }
    if mistakes > 0 {
        let plural = if mistakes == 1 { "mistake" } else { "mistakes" };
        let message = format_args!("{mistakes} {plural} in the definition files: nothing was sent");
        return Err(Failure::usage(message).hint("correct what is listed above"));
    }
    if definitions.is_empty() {
        return Err(Failure::usage("no service is defined: nothing was sent")
            .hint("a definition file has `service`, or `services` with a list"));
    }
    Ok(definitions)
}

fn read_one(file: &Path) -> Result<Vec<Definition>, Vec<String>> {
    let name = name_of(file);
    let problem = |problem: &dyn fmt::Display| vec![format!("{name}: {problem}")];
    let (format, text) = if file == Path::new(STDIN) {
        (Format::Json, std::io::read_to_string(std::io::stdin()))
    } else {
        // A folder is no file of an unknown format.
        if file.is_dir() {
            return Err(problem(&"a folder: expected a file"));
        }
        let format = Format::of(file).map_err(|error| problem(&error))?;
        (format, std::fs::read_to_string(file))
    };
    let text = text.map_err(|error| problem(&format_args!("cannot be read: {error}")))?;
    definition::parse(&name, format, &text)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

fn name_of(file: &Path) -> String {
    if file == Path::new(STDIN) { "stdin".to_owned() } else { file.display().to_string() }
}
