//! `envoy_bootstrap_json_tpl`: the part of Go's `text/template` that templates
//! for the bootstrap need. What is not understood is refused, never skipped.

use serde_json::Value;

use crate::Error;

/// The value of a field.
#[derive(Debug, Clone)]
pub(crate) enum Field {
    /// Goes between quotes of the template's, so it is escaped for JSON.
    Text(String),
    /// JSON values, with commas between them.
    Json(Vec<Value>),
    /// `true` or `false`.
    Flag(bool),
}

/// What stands between `{{` and `}}`.
enum Action<'a> {
    Comment,
    Print(&'a Field),
    If(bool),
    Else,
    End,
}

/// A branch of an `if`.
struct Branch {
    taken: bool,
    in_else: bool,
}

/// Renders the template.
pub(crate) fn render(template: &str, fields: &[(&'static str, Field)]) -> Result<String, Error> {
    let refuse = |action: &str, problem| Error::Template {
        action: action.to_owned(),
        problem,
        fields: fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
    };
    let mut output = String::new();
    let mut branches: Vec<Branch> = Vec::new();
    let mut rest = template;
    let mut trim_start = false;
    loop {
        let (mut text, after) = match rest.split_once("{{") {
            Some((text, after)) => (text, Some(after)),
            None => (rest, None),
        };
        if trim_start {
            text = text.trim_start();
        }
        let visible = branches.iter().all(|branch| branch.taken);

        let Some(after) = after else {
            if !branches.is_empty() {
                return Err(refuse("if", "has no end"));
            }
            output.push_str(text);
            return Ok(output);
        };
        let (inside, next) =
            after.split_once("}}").ok_or_else(|| refuse(after.trim(), "has no closing braces"))?;
        rest = next;
        let inside = match inside.strip_prefix('-') {
            Some(trimmed) if trimmed.starts_with(char::is_whitespace) => {
                text = text.trim_end();
                trimmed
            }
            _ => inside,
        };
        let inside = match inside.strip_suffix('-') {
            Some(trimmed) if trimmed.ends_with(char::is_whitespace) => {
                trim_start = true;
                trimmed
            }
            _ => {
                trim_start = false;
                inside
            }
        };
        if visible {
            output.push_str(text);
        }

        let inside = inside.trim();
        match parse(inside, fields).map_err(|problem| refuse(inside, problem))? {
            Action::Print(field) if visible => output.push_str(&field.print()),
            Action::Comment | Action::Print(_) => {}
            Action::If(taken) => branches.push(Branch { taken, in_else: false }),
            Action::Else => match branches.last_mut() {
                Some(branch) if !branch.in_else => {
                    branch.taken = !branch.taken;
                    branch.in_else = true;
                }
                _ => return Err(refuse(inside, "has no if")),
            },
            Action::End => {
                branches.pop().ok_or_else(|| refuse(inside, "has no if"))?;
            }
        }
    }
}

fn parse<'a>(
    action: &str,
    fields: &'a [(&'static str, Field)],
) -> Result<Action<'a>, &'static str> {
    let field = |name: &str| {
        let name = name.strip_prefix('.').ok_or("is not understood")?;
        fields
            .iter()
            .find_map(|(known, field)| (*known == name).then_some(field))
            .ok_or("is not a field")
    };
    if action.starts_with("/*") && action.ends_with("*/") {
        return Ok(Action::Comment);
    }
    let words: Vec<&str> = action.split_whitespace().collect();
    match words[..] {
        ["else"] => Ok(Action::Else),
        ["end"] => Ok(Action::End),
        ["if", name] => Ok(Action::If(field(name)?.is_set())),
        ["if", "not", name] => Ok(Action::If(!field(name)?.is_set())),
        [name] => Ok(Action::Print(field(name)?)),
        _ => Err("is not understood"),
    }
}

impl Field {
    /// Whether `if` takes it for true.
    fn is_set(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Json(values) => !values.is_empty(),
            Self::Flag(flag) => *flag,
        }
    }

    fn print(&self) -> String {
        match self {
            Self::Text(text) => {
                let quoted = Value::from(text.as_str()).to_string();
                quoted[1..quoted.len() - 1].to_owned()
            }
            Self::Json(values) => {
                let values: Vec<String> = values.iter().map(Value::to_string).collect();
                values.join(",\n")
            }
            Self::Flag(flag) => flag.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn fields() -> Vec<(&'static str, Field)> {
        vec![
            ("ProxyID", Field::Text("web \"1\"\n".to_owned())),
            ("NodeName", Field::Text(String::new())),
            ("AgentTLS", Field::Flag(true)),
            ("StaticClustersJSON", Field::Json(vec![json!({"a": 1}), json!({})])),
        ]
    }

    #[test]
    fn rendered() {
        for (template, expected) in [
            ("", ""),
            ("{}", "{}"),
            ("\"{{ .ProxyID }}\"", "\"web \\\"1\\\"\\n\""),
            ("{{.AgentTLS}}", "true"),
            ("[{{ .StaticClustersJSON }}]", "[{\"a\":1},\n{}]"),
            ("a {{- .AgentTLS -}} \n b", "atrueb"),
            ("a {{/* note */}} b", "a  b"),
            ("{{ if .NodeName }}n{{ else }}none{{ end }}", "none"),
            ("{{ if not .NodeName }}none{{ end }}", "none"),
            ("{{ if .AgentTLS }}a{{ if .NodeName }}b{{ end }}c{{ else }}d{{ end }}e", "ace"),
            ("{{ if .NodeName }}a{{ if .AgentTLS }}b{{ else }}c{{ end }}{{ end }}e", "e"),
            ("{{ if .NodeName }}{{ .ProxyID }}{{ end }}", ""),
        ] {
            assert_eq!(render(template, &fields()).unwrap(), expected, "{template}");
        }
    }

    #[test]
    fn refused() {
        for (template, text) in [
            ("{{ .Nope }}", "{{ .Nope }} is not a field"),
            ("{{ if .NodeName }}{{ .Nope }}{{ end }}", "{{ .Nope }} is not a field"),
            ("{{ range .X }}", "{{ range .X }} is not understood"),
            ("{{ .ProxyID | printf }}", "{{ .ProxyID | printf }} is not understood"),
            ("{{ if (not .NodeName) }}", "{{ if (not .NodeName) }} is not understood"),
            ("{{ \"x\" }}", "is not understood"),
            ("{{ }}", "is not understood"),
            ("{{ .ProxyID", "{{ .ProxyID }} has no closing braces"),
            ("{{ if .NodeName }}", "{{ if }} has no end"),
            ("{{ end }}", "{{ end }} has no if"),
            ("{{ if .NodeName }}{{ else }}{{ else }}{{ end }}", "{{ else }} has no if"),
        ] {
            let error = render(template, &fields()).unwrap_err().to_string();
            assert!(error.contains(text), "{template}: {error}");
            assert!(error.contains("fields: ProxyID, NodeName"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_template_panics(template in "([{}a. -]|\\{\\{|\\}\\}|if|end|else|not|\\.ProxyID|é){0,20}") {
            let _ = render(&template, &fields());
        }
    }
}
