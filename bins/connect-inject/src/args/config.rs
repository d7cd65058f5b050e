//! The file of `--config`. Its values become the defaults of the policy's flags, so a flag
//! takes precedence over the environment, and the environment over the file. The file may
//! also be the ConfigMap that the chart creates from these values.

use std::collections::BTreeMap;
use std::path::Path;

use clap::{Arg, Args as _, Command};
use serde::Deserialize;

use crate::policy::Policy;
use crate::values::nearest;
use crate::yaml;

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Setting {
    /// Null: as if the flag were not in the file.
    Unset(()),
    Switch(bool),
    Number(u64),
    /// Rejected, because an unquoted `1.30` is read as 1.3.
    Fraction(f64),
    Text(String),
    List(Vec<Setting>),
}

/// Flag whose value is the name of a file.
const CA_FLAG: &str = "consul-ca-cert";

/// Sets the values of the file as defaults of a command's flags.
///
/// # Errors
/// Every problem in the file, one sentence each.
pub(super) fn apply(mut command: Command, file: &Path) -> Result<Command, Vec<String>> {
    let settings = read(file).map_err(|mistake| vec![mistake])?;
    let mut mistakes = Vec::new();
    let flags = Policy::augment_args(Command::new("policy"));
    for (key, setting) in settings {
        // This names a file in the injector's pod, which usually doesn't exist elsewhere.
        // `explain` and `audit` don't need it; `inject` can name another file by flag.
        if key == CA_FLAG
            && (command.get_name() == "explain"
                || command.get_name() == "audit" && !setting.is_readable())
        {
            continue;
        }
        let Some(flag) = flags.get_arguments().find(|flag| flag.get_long() == Some(&key)) else {
            let known = flags.get_arguments().filter_map(Arg::get_long);
            let near = nearest(&key, known).map(|near| format!(": did you mean `{near}`?"));
            let problem = near.unwrap_or_else(|| ": see `connect-inject inject --help`".to_owned());
            mistakes.push(format!("`{key}`: unknown setting{problem}"));
            continue;
        };
        match values(setting, flag) {
            Ok(None) => {}
            Ok(Some(values)) => {
                // clap requires defaults that live as long as the program.
                let values: Vec<&'static str> =
                    values.into_iter().map(|value| &*value.leak()).collect();
                command = command.mut_arg(flag.get_id(), |flag| {
                    flag.required(false).default_values(values).hide_default_value(true)
                });
            }
            Err(mistake) => mistakes.push(format!("`{key}`: {mistake}")),
        }
    }
    if mistakes.is_empty() { Ok(command) } else { Err(mistakes) }
}

impl Setting {
    /// Whether the setting names a readable file: if the audit runs in the injector's
    /// namespace, the file may be mounted there.
    fn is_readable(&self) -> bool {
        matches!(self, Self::Text(file) if std::fs::File::open(file).is_ok())
    }
}

fn read(file: &Path) -> Result<BTreeMap<String, Setting>, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    let mut settings = yaml::value(&text)?;
    if settings["kind"] == "ConfigMap" {
        let text = settings["data"]["config.yaml"].as_str();
        settings = yaml::value(text.ok_or("a ConfigMap without `config.yaml`")?)?;
    }
    let settings: Option<BTreeMap<String, Setting>> = serde_json::from_value(settings)
        .map_err(|_| "expected names of flags with their values".to_owned())?;
    Ok(settings.unwrap_or_default())
}

/// The flag's values for a setting, checked by the flag's own parser; `None` for null.
fn values(setting: Setting, flag: &Arg) -> Result<Option<Vec<String>>, String> {
    let values = match setting {
        Setting::Unset(()) => return Ok(None),
        Setting::List(list) if flag.get_value_delimiter().is_some() => {
            list.into_iter().map(text).collect::<Result<Vec<_>, _>>()?
        }
        one => vec![text(one)?],
    };
    let id = flag.get_id().clone();
    let alone = Command::new("policy")
        .no_binary_name(true)
        .arg(flag.clone().required(false).env(None::<&str>));
    // Not checked here: the parser would read the file, though a flag may name another one.
    let values_to_check = if flag.get_long() == Some(CA_FLAG) { &[][..] } else { &values[..] };
    for value in values_to_check {
        let line = format!("--{}={value}", flag.get_long().unwrap_or_default());
        if let Err(error) = alone.clone().try_get_matches_from([line]) {
            // clap's error has the parser's message as its source.
            let problem = std::error::Error::source(&error).map(ToString::to_string);
            return Err(problem.unwrap_or_else(|| format!("invalid value for `{id}`")));
        }
    }
    Ok(Some(values))
}

fn text(setting: Setting) -> Result<String, String> {
    match setting {
        Setting::Text(text) => Ok(text),
        Setting::Switch(value) => Ok(value.to_string()),
        Setting::Number(number) => Ok(number.to_string()),
        Setting::Fraction(number) => Err(format!("write {number} in quotes")),
        Setting::Unset(()) | Setting::List(_) => {
            Err("expected a string, a number, `true` or `false`".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn command() -> Command {
        Policy::augment_args(Command::new("x"))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(crate::cases(2048)))]

        #[test]
        fn no_file_panics(text in "((allow-k8s-namespace|init-image|default-inject|sidecar-mode|kubernetes-version|[a-z-]{0,8}): (\\[[a-z*, ]{0,4}\\]|true|null|0?[0-9.]{1,4}|\"\"|\\{\\}|\\PC{0,4})\n){0,4}\\PC{0,4}") {
            let file = tempfile::NamedTempFile::new().unwrap();
            std::io::Write::write_all(&mut file.as_file(), text.as_bytes()).unwrap();
            if let Ok(command) = apply(command(), file.path()) {
                let line = ["x", "--init-image=i", "--envoy-image=e"];
                prop_assert!(command.try_get_matches_from(line).is_ok(), "{}", text);
            }
        }
    }
}
