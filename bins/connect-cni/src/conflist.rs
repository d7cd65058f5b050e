//! Adds the plugin's entry to a network's configuration list, and removes it. The list
//! is edited as text, so that the rest of it stays the same, byte for byte.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::PLUGIN;
use crate::config::VERSIONS;

/// Why the entry can't be added to a configuration.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Invalid JSON, for instance of a file that is being written.
    #[error("it is invalid: {0}")]
    Invalid(#[from] serde_json::Error),
    /// `connect-cni` requires the result of another plugin.
    #[error("it lists no other plugin")]
    Empty,
    /// The plugin would reject each pod, so that none on the node would get a network.
    #[error("its cniVersion is `{0}`, expected one of {known}", known = VERSIONS.join(", "))]
    Version(String),
    /// The runtime looks for plugins elsewhere. It would not find `connect-cni`, so that
    /// no new pod on the node would get a network.
    #[error("none of its plugins ({}) is in {}", .plugins.join(", "), .folder.display())]
    Elsewhere {
        /// The `type`s of the other plugins.
        plugins: Vec<String>,
        /// Where they were looked for.
        folder: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct List<'t> {
    #[serde(borrow)]
    cni_version: Option<Cow<'t, str>>,
    /// Since 1.1.0. The runtime uses the newest one that it supports.
    cni_versions: Option<Vec<String>>,
    #[serde(borrow)]
    name: Option<&'t RawValue>,
    #[serde(borrow)]
    plugins: Option<Vec<&'t RawValue>>,
}

/// The entry in a list; `None` if there is none, or more than one.
///
/// # Errors
/// The plugin can't run as part of this list.
pub(crate) fn entry_of(text: &str) -> Result<Option<Value>, Error> {
    let list: List<'_> = serde_json::from_str(text)?;
    list.check_version()?;
    let plugins = list.plugins.unwrap_or_default();
    let mut own = plugins.iter().filter(|plugin| is_own(plugin));
    Ok(match (own.next(), own.next()) {
        (Some(only), None) => value(only.get()),
        _ => None,
    })
}

/// The `type`s of the other plugins in a list, or of the plugin that a `.conf` file
/// configures.
///
/// # Errors
/// There are none, or the plugin can't run behind them.
pub(crate) fn others(text: &str) -> Result<Vec<String>, Error> {
    let list: List<'_> = serde_json::from_str(text)?;
    list.check_version()?;
    let kinds: Vec<_> = match list.plugins {
        Some(plugins) => plugins.iter().filter_map(|plugin| kind(plugin.get())).collect(),
        None => kind(text).into_iter().collect(),
    };
    let others: Vec<_> = kinds.into_iter().filter(|kind| kind != PLUGIN).collect();
    if others.is_empty() { Err(Error::Empty) } else { Ok(others) }
}

/// The generation of an entry; 0 if it has none.
pub(crate) fn generation(entry: &Value) -> u64 {
    entry["generation"].as_u64().unwrap_or_default()
}

/// The list with the entry, which replaces an older one; `None` if it is there already, or
/// one of a higher generation.
///
/// # Errors
/// The plugin can't run as part of this list.
pub(crate) fn with(text: &str, entry: &str) -> Result<Option<String>, Error> {
    let wanted = value(entry).unwrap_or_default();
    if let Some(there) = entry_of(text)?
        && (there == wanted || generation(&there) > generation(&wanted))
    {
        return Ok(None);
    }
    let text = without(text)?.map_or(Cow::Borrowed(text), Cow::Owned);
    let others = spans(&text)?;
    let (Some(first), Some(before)) = (others.first(), others.last()) else {
        return Err(Error::Empty);
    };
    // The same indentation as the first plugin's.
    let (begin, _) = text.split_at(first.start);
    let indentation = &begin[begin.trim_end().len()..];
    let (head, tail) = text.split_at(before.end);
    Ok(Some(format!("{head},{indentation}{entry}{tail}")))
}

/// The list without the entry; `None` if it isn't there.
///
/// # Errors
/// The list is invalid.
pub(crate) fn without(text: &str) -> Result<Option<String>, Error> {
    let mut text = Cow::Borrowed(text);
    loop {
        let spans = spans(&text)?;
        let own = spans.iter().position(|span| {
            serde_json::from_str(&text[span.clone()]).is_ok_and(|plugin: &RawValue| is_own(plugin))
        });
        let Some(index) = own else { break };
        let span = match (index.checked_sub(1), spans.get(index + 1)) {
            (Some(before), _) => spans[before].end..spans[index].end,
            (None, Some(behind)) => spans[index].start..behind.start,
            (None, None) => spans[index].clone(),
        };
        text.to_mut().replace_range(span, "");
    }
    Ok(match text {
        Cow::Borrowed(_) => None,
        Cow::Owned(text) => Some(text),
    })
}

/// A list of the entry and of the plugin that a `.conf` file configures.
///
/// # Errors
/// The plugin can't run as part of such a list.
pub(crate) fn list_of(text: &str, entry: &str) -> Result<String, Error> {
    let only: List<'_> = serde_json::from_str(text)?;
    only.check_version()?;
    if kind(text).is_none() {
        return Err(Error::Empty);
    }
    let name = only.name.map_or("\"\"", RawValue::get);
    let version = Value::from(only.cni_version.unwrap_or_default());
    Ok(format!(
        "{{\"cniVersion\": {version}, \"name\": {name}, \"plugins\": [\n{},\n{entry}\n]}}\n",
        text.trim()
    ))
}

/// The byte ranges of the plugins in the text.
fn spans(text: &str) -> Result<Vec<Range<usize>>, Error> {
    let list: List<'_> = serde_json::from_str(text)?;
    let start = |plugin: &str| plugin.as_ptr().addr() - text.as_ptr().addr();
    let span = |plugin: &RawValue| start(plugin.get())..start(plugin.get()) + plugin.get().len();
    Ok(list.plugins.unwrap_or_default().into_iter().map(span).collect())
}

fn is_own(plugin: &RawValue) -> bool {
    kind(plugin.get()).is_some_and(|kind| kind == PLUGIN)
}

fn kind(plugin: &str) -> Option<String> {
    // Not a struct, which serde would read from an array, too.
    let members: BTreeMap<String, &RawValue> = serde_json::from_str(plugin).ok()?;
    serde_json::from_str(members.get("type")?.get()).ok()
}

fn value(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

// === impl Error ===

impl Error {
    /// What to do next.
    pub(crate) fn hint(&self) -> &'static str {
        match self {
            Self::Invalid(_) => {
                "if this repeats, repair the file: the network's own installer writes it, in the \
                 node's directory connectInject.cni.cniNetDir"
            }
            Self::Empty => {
                "if this repeats, list the plugin that creates the network in this file, in the \
                 node's directory connectInject.cni.cniNetDir"
            }
            Self::Version(_) => {
                "set cniVersion to a supported version in this file, in the node's directory \
                 connectInject.cni.cniNetDir"
            }
            Self::Elsewhere { .. } => {
                "set connectInject.cni.cniBinDir to the directory in which the container runtime \
                 looks for plugins"
            }
        }
    }
}

// === impl List ===

impl List<'_> {
    fn check_version(&self) -> Result<(), Error> {
        let one = self.cni_version.as_deref().map(str::to_owned).unwrap_or_default();
        let is_unknown = |version: &&String| !VERSIONS.contains(&version.as_str());
        let all = self.cni_versions.as_deref().unwrap_or(std::slice::from_ref(&one));
        match all.iter().find(is_unknown) {
            Some(other) => Err(Error::Version(other.clone())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ENTRY: &str = r#"{"type":"connect-cni","nodeAddresses":["10.0.0.1"]}"#;
    const LIST: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "pods", "unknown": [1.50, {"a": null}],
  "plugins": [
    {"type": "bridge", "mtu": 1500},
    {"type": "portmap"}
  ]
}
"#;

    #[test]
    fn the_entry_is_appended() {
        let with_it = with(LIST, ENTRY).unwrap().unwrap();
        let tail = format!("    {{\"type\": \"portmap\"}},\n    {ENTRY}\n  ]\n}}\n");
        assert!(with_it.ends_with(&tail), "{with_it}");
        assert_eq!(with(&with_it, ENTRY).unwrap(), None);
        assert_eq!(without(&with_it).unwrap().as_deref(), Some(LIST));
        assert_eq!(without(LIST).unwrap(), None);
    }

    #[test]
    fn an_older_entry_is_replaced_at_any_position() {
        let old = r#"{"type":"connect-cni"}"#;
        let plugins = [format!("{old},A"), format!("A,{old}"), format!("{old}, A , {old}")];
        for plugins in plugins {
            let plugins = plugins.replace('A', r#"{"type":"a"}"#);
            let text = format!(r#"{{"cniVersion":"1.0.0","plugins":[{plugins}]}}"#);
            let with_it = with(&text, ENTRY).unwrap().unwrap();
            assert_eq!(with_it.matches("connect-cni").count(), 1, "{with_it}");
            assert!(with_it.contains(r#"{"type":"a"}"#) && with_it.contains(ENTRY), "{with_it}");
        }
    }

    #[test]
    fn an_entry_of_a_higher_generation_stays() {
        let text = r#"{"cniVersion":"1.0.0","plugins":[{"type":"a"},{"type":"connect-cni","generation":7}]}"#;
        let entry =
            |generation| format!(r#"{{"type":"connect-cni","x":1,"generation":{generation}}}"#);
        assert_eq!(with(text, &entry(6)).unwrap(), None);
        assert!(with(text, &entry(7)).unwrap().is_some());
        assert!(with(text, &entry(8)).unwrap().is_some());
    }

    #[test]
    fn a_list_in_which_the_plugin_would_fail_stays_as_it_is() {
        for (text, problem) in [
            (r#"{"cniVersion":"0.2.0","plugins":[{"type":"a"}]}"#, "cniVersion is `0.2.0`"),
            (r#"{"plugins":[{"type":"a"}]}"#, "cniVersion is ``"),
            (r#"{"cniVersion":"1.1.0","cniVersions":["9.0.0"],"plugins":[{}]}"#, "`9.0.0`"),
            (r#"{"cniVersion":"1.0.0","plugins":[]}"#, "no other plugin"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"connect-cni"}]}"#, "no other plugin"),
            (r#"{"cniVersion":"1.0.0","plugins":[{"type":"#, "is invalid"),
            ("", "is invalid"),
        ] {
            let error = with(text, ENTRY).unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }

    #[test]
    fn the_other_plugins_are_found_in_a_list_and_in_a_conf_file() {
        for (text, expected) in [
            (LIST, &["bridge", "portmap"][..]),
            (&with(LIST, ENTRY).unwrap().unwrap(), &["bridge", "portmap"]),
            (r#"{"cniVersion":"0.3.0","type":"ptp"}"#, &["ptp"]),
            (r#"{"cniVersion":"0.3.0","plugins":[1,{},["x"],{"type":"ptp"}]}"#, &["ptp"]),
        ] {
            assert_eq!(others(text).unwrap(), expected, "{text}");
        }
        for text in [r#"{"cniVersion":"1.0.0","type":"connect-cni"}"#, r#"{"cniVersion":"1.0.0"}"#]
        {
            assert!(matches!(others(text), Err(Error::Empty)), "{text}");
        }
    }

    #[test]
    fn a_single_plugin_becomes_a_list() {
        let one =
            "{\"cniVersion\": \"0.3.1\", \"name\": \"pods\", \"type\": \"bridge\", \"mtu\": 1e3}\n";
        let list = list_of(one, ENTRY).unwrap();
        assert!(list.contains("\"mtu\": 1e3}"), "{list}");
        let list: Value = serde_json::from_str(&list).unwrap();
        assert_eq!((&list["name"], &list["cniVersion"]), (&"pods".into(), &"0.3.1".into()));
        assert_eq!(list["plugins"][1]["type"], "connect-cni");
        assert!(matches!(list_of("{\"cniVersion\":\"0.3.1\"}", ENTRY), Err(Error::Empty)));
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "\\PC{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map("[a-z\\[\\]{},]{1,5}", inner, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    fn plugin() -> impl Strategy<Value = Value> {
        (json(), "bridge|portmap").prop_map(|(other, kind)| {
            let mut plugin = serde_json::json!({"type": kind});
            plugin["other"] = other;
            plugin
        })
    }

    proptest! {
        /// `install` must outlive any file that appears in the directory.
        #[test]
        fn no_file_causes_a_panic(
            changes in prop::collection::vec((0..LIST.len(), "\\PC{0,2}|[\\[\\]{}\":,]"), 0..4),
            cut in 0..=LIST.len(),
        ) {
            let mut text = LIST.to_owned();
            for (at, piece) in changes {
                if text.is_char_boundary(at) {
                    text.insert_str(at, &piece);
                }
            }
            for text in [text.as_str(), text.get(..cut).unwrap_or_default()] {
                let _ = (list_of(text, ENTRY), others(text));
                if let Ok(Some(with_it)) = with(text, ENTRY) {
                    prop_assert_eq!(with(&with_it, ENTRY).unwrap(), None);
                }
            }
        }

        /// Removing the entry restores the list, and adding it changes nothing else.
        #[test]
        fn removing_an_added_entry_restores_the_list(
            plugins in prop::collection::vec(plugin(), 1..4),
            other in json(),
            is_pretty: bool,
            space in "[ \t\n\r]{0,3}",
        ) {
            let list = serde_json::json!({
                "cniVersion": "1.0.0", "name": "x", "z": other, "plugins": plugins,
            });
            let text = if is_pretty { serde_json::to_string_pretty(&list) } else { serde_json::to_string(&list) };
            let text = format!("{space}{}{space}", text.unwrap());
            let with_it = with(&text, ENTRY).unwrap().unwrap();
            let mut expected = list;
            expected["plugins"].as_array_mut().unwrap().push(value(ENTRY).unwrap());
            prop_assert_eq!(value(&with_it), Some(expected));
            prop_assert_eq!(without(&with_it).unwrap(), Some(text));
        }
    }
}
