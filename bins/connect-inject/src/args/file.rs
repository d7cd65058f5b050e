//! The policy from a file: `--config`.

use std::ffi::OsString;
use std::path::Path;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args as _, Command};
use serde_json::Value;

use super::PolicyArgs;

/// Reads the file as flags, and what is wrong with it. What the command line or
/// the environment says already is left out.
pub(super) fn read(file: &Path, matches: &ArgMatches) -> (Vec<OsString>, Vec<String>) {
    let name = format!("--config {}", file.display());
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => return (Vec::new(), vec![format!("{name}: {error}")]),
    };
    let (flags, mistakes) = match serde_saphyr::from_str::<Value>(&text) {
        Ok(Value::Null) => (Vec::new(), Vec::new()),
        Ok(Value::Object(settings)) => {
            let mut flags = Vec::new();
            let mut mistakes = Vec::new();
            for (key, value) in &settings {
                match setting(key, value, matches) {
                    Ok(setting) => flags.extend(setting),
                    Err(mistake) => mistakes.push(format!("`{key}`: {mistake}")),
                }
            }
            (flags, mistakes)
        }
        Ok(_) => (Vec::new(), vec!["expected names of flags with their values".to_owned()]),
        Err(error) => (Vec::new(), vec![format!("no YAML: {}", error.without_snippet())]),
    };
    let mistakes = mistakes.into_iter().map(|mistake| format!("{name}: {mistake}")).collect();
    (flags, mistakes)
}

/// A setting as flags.
fn setting(key: &str, value: &Value, matches: &ArgMatches) -> Result<Vec<OsString>, String> {
    let command = PolicyArgs::augment_args(Command::new(""));
    let is_it = |flag: &&clap::Arg| flag.get_long() == Some(key) && key != "config";
    let Some(flag) = command.get_arguments().find(is_it) else {
        return Err("there is no such flag of the policy".to_owned());
    };
    let source =
        matches.subcommand().and_then(|(_, flags)| flags.value_source(flag.get_id().as_str()));
    let values = match value {
        Value::Array(values) if flag.get_value_delimiter().is_some() => values.iter().collect(),
        Value::Null => Vec::new(),
        value => vec![value],
    };
    let values = values.into_iter().map(text).collect::<Result<Vec<_>, _>>()?;
    if matches!(source, Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
        return Ok(Vec::new());
    }
    Ok(values.into_iter().map(|value| format!("--{key}={value}").into()).collect())
}

fn text(value: &Value) -> Result<String, String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Number(number) if number.is_u64() => Ok(number.to_string()),
        // 1.30 would be 1.3.
        Value::Number(number) => Err(format!("write {number} in quotes")),
        _ => Err("expected a text, a number or `true` or `false`".to_owned()),
    }
}
