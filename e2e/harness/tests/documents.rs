//! Compares `connect-inject inject` and `uninject` with two independent YAML parsers:
//! kubectl, which decides what is created in the end, and PyYAML, for files that kubectl
//! does not accept. Before and after the injection, both parse the same objects except for
//! the injected parts.
//!
//! kubectl reads with `annotate --local`, which needs no API server.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use harness::Result;
use harness::parts::or_skip;
use harness::python::Tools;
use serde_json::{Map, Value, json};

/// The two parsers, and our program.
struct Readers {
    tools: Tools,
    kubectl: PathBuf,
}

impl Readers {
    fn find_or_skip() -> Option<Self> {
        or_skip(Tools::find().and_then(|tools| {
            let folder = std::env::var_os("KUBERNETES_DIR").map(PathBuf::from);
            let kubectl = folder.map(|folder| folder.join("kubectl")).filter(|file| file.is_file());
            let kubectl =
                kubectl.ok_or("KUBERNETES_DIR has no kubectl: scripts/kubernetes makes it")?;
            Ok(Self { tools, kubectl })
        }))
    }

    /// The objects of a text, with lists split.
    fn kubectl(&self, text: &str) -> Result<Vec<Value>> {
        let args =
            ["annotate", "--local", "--kubeconfig=/dev/null", "-f", "-", "-o", "json", "read=by"];
        let output = run(&self.kubectl, &args, text);
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let objects = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        Ok(objects.collect::<std::result::Result<_, _>>()?)
    }

    fn inject(&self, text: &str) -> String {
        let images = ["inject", "--init-image=i:1", "--envoy-image=e:1"];
        written(&run(&self.tools.injector, &images, text))
    }

    fn uninject(&self, text: &str) -> String {
        written(&run(&self.tools.injector, &["uninject"], text))
    }
}

fn run(program: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // A parser may stop reading at the first error.
        scope.spawn(move || {
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output().unwrap()
    })
}

fn written(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// An object without the parts that injection adds, and without empty maps and lists at
/// these places, which injection may also add.
fn without_the_edit(value: &Value) -> Value {
    const OURS: [&str; 3] =
        ["consul-connect-inject-init", "consul-connect-inject-data", "envoy-sidecar"];
    const WRITTEN: [&str; 6] = [
        "consul.hashicorp.com/connect-inject-status",
        "consul.hashicorp.com/connect-inject-undo",
        "consul.hashicorp.com/connect-service",
        "consul.hashicorp.com/connect-service-port",
        "kubectl.kubernetes.io/default-container",
        "read",
    ];
    let is_ours = |element: &Value| {
        let name = element["name"].as_str().unwrap_or_default();
        OURS.contains(&name) || name.contains("_CONNECT_SERVICE_")
    };
    match value {
        Value::Array(elements) => {
            elements.iter().filter(|element| !is_ours(element)).map(without_the_edit).collect()
        }
        Value::Object(members) => {
            const EDITED: [&str; 6] =
                ["annotations", "env", "initContainers", "labels", "metadata", "volumes"];
            let kept = members.iter().filter(|(key, _)| !WRITTEN.contains(&key.as_str()));
            let kept = kept.map(|(key, value)| (key.clone(), without_the_edit(value)));
            let is_empty = |value: &Value| {
                matches!(value, Value::Array(all) if all.is_empty())
                    || *value == json!({})
                    || value.is_null()
            };
            let kept =
                kept.filter(|(key, value)| !EDITED.contains(&key.as_str()) || !is_empty(value));
            Value::Object(kept.collect::<Map<_, _>>())
        }
        other => other.clone(),
    }
}

/// Number of pods with a sidecar.
fn sidecars(value: &Value) -> usize {
    match value {
        Value::Array(all) => all.iter().map(sidecars).sum(),
        Value::Object(members) => {
            let own = usize::from(members.get("name") == Some(&json!("envoy-sidecar")));
            own + members.values().map(sidecars).sum::<usize>()
        }
        _ => 0,
    }
}

/// A pod that asks for injection, with a field `x` in its specification.
fn pod(x: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    \
         consul.hashicorp.com/connect-inject: \"true\"\n    \
         consul.hashicorp.com/connect-service-upstreams: db:1234\nspec:\n  containers:\n  - name: web\n{x}"
    )
}

fn field(x: &str) -> String {
    pod(&format!("  x: {x}\n"))
}

/// Plain scalars and their values in kubectl, then in PyYAML if they differ. Both parse YAML
/// 1.1, but kubectl's library omits numbers to base 60, also knows `0o`, and accepts `1e3`
/// and the short booleans.
fn scalars() -> Vec<(&'static str, Value, Option<Value>)> {
    let same = |text, value| (text, value, None);
    let but = |text, value, other| (text, value, Some(other));
    vec![
        same("0400", json!(256)),
        same("0644", json!(420)),
        same("-0400", json!(-256)),
        same("0x1F", json!(31)),
        same("-0x10", json!(-16)),
        same("0b101", json!(5)),
        same("1_000", json!(1000)),
        same("+12", json!(12)),
        same("0", json!(0)),
        same("9007199254740993", json!(9_007_199_254_740_993_u64)),
        but("0o400", json!(256), json!("0o400")),
        but("08", json!(8), json!("08")),
        but("0_7", json!(7), json!(7)),
        // Numbers to base 60.
        but("1:30", json!("1:30"), json!(90)),
        but("190:20:30", json!("190:20:30"), json!(685_230)),
        but("22:22", json!("22:22"), json!(1342)),
        but("1:30.5", json!("1:30.5"), json!(90.5)),
        same("1.5", json!(1.5)),
        same(".5", json!(0.5)),
        same("685.230_15e+03", json!(685_230.15)),
        but("1e3", json!(1000), json!("1e3")),
        but("12e3", json!(12000), json!("12e3")),
        but("1E-3", json!(0.001), json!("1E-3")),
        but("5.", json!(5), json!(5.0)),
        but("1.0", json!(1), json!(1.0)),
        same("true", json!(true)),
        same("on", json!(true)),
        same("Yes", json!(true)),
        same("OFF", json!(false)),
        same("no", json!(false)),
        but("y", json!(true), json!("y")),
        but("N", json!(false), json!("N")),
        same("yEs", json!("yEs")),
        same("~", Value::Null),
        same("Null", Value::Null),
        same("2001-01-01", json!("2001-01-01")),
        same("\"0400\"", json!("0400")),
        same("'on'", json!("on")),
        same("1.2.3", json!("1.2.3")),
        same("0x", json!("0x")),
        same("e3", json!("e3")),
        same("1-2", json!("1-2")),
        same("!!str 0400", json!("0400")),
        same("!!str true", json!("true")),
        same("!!int \"12\"", json!(12)),
        same("\"\\x41\\u263a\\U0001F600\"", json!("A☺😀")),
        same("'it''s'", json!("it's")),
    ]
}

#[test]
fn scalars_mean_the_same_before_and_after() {
    let Some(readers) = Readers::find_or_skip() else { return };
    let scalars = scalars();
    let list: String =
        scalars.iter().fold(String::new(), |text, (scalar, ..)| text + "  - " + scalar + "\n");
    let before = pod(&format!("  x:\n{list}"));
    let after = readers.inject(&before);
    let x = |objects: &[Value]| objects[0]["spec"]["x"].as_array().unwrap().clone();
    let (read, again) =
        (x(&readers.kubectl(&before).unwrap()), x(&readers.kubectl(&after).unwrap()));
    let python = x(&readers.tools.read_yaml(&before).unwrap());
    let python_again = x(&readers.tools.read_yaml(&after).unwrap());
    assert_eq!([read.len(), again.len(), python.len(), python_again.len()], [scalars.len(); 4]);
    for (index, (text, expected, differs)) in scalars.iter().enumerate() {
        assert_eq!(&read[index], expected, "kubectl: {text}");
        assert_eq!(&again[index], expected, "kubectl, after: {text}");
        assert_eq!(&python[index], differs.as_ref().unwrap_or(expected), "PyYAML: {text}");
        // The output means the same to both parsers.
        assert_eq!(&python_again[index], expected, "PyYAML, after: {text}");
    }
}

/// Which of the parsers accept a document.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Which {
    Both,
    Kubectl,
    Python,
}

/// Documents, the number of pods in them that ask for injection, and which parsers accept
/// them.
fn corpus() -> Vec<(&'static str, String, usize, Which)> {
    use Which::{Both, Kubectl, Python};
    let list = |items: &[String]| {
        let items = items.iter().fold(String::new(), |mut text, item| {
            let _ = writeln!(text, "- {}", item.trim_end().replace('\n', "\n  "));
            text
        });
        format!("apiVersion: v1\nkind: List\nitems:\n{items}")
    };
    let template = |version: &str, kind: &str, at: &[&str]| {
        let template = pod("").split_once("kind: Pod\n").unwrap().1.to_owned();
        let (mut text, mut indent) = (
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: web}}\n"),
            String::new(),
        );
        for key in at {
            let _ = writeln!(text, "{indent}{key}:");
            indent += "  ";
        }
        for line in template.lines() {
            let _ = writeln!(text, "{indent}{line}");
        }
        text
    };
    let crlf = |text: String| text.replace('\n', "\r\n");
    let live: Vec<String> = (0..3000)
        .map(|n| {
            pod("    env:\n    - {name: A, value: \"0400\"}\n  x: {mode: 0400, on: 1_000}\n")
                .replace("name: web", &format!("name: web-{n}"))
        })
        .collect();
    let deep = format!("{}1{}", "[".repeat(90), "]".repeat(90));
    let aliases =
        format!("\n    one: &one {{a: 0400}}\n    many: [{}]", vec!["*one"; 200].join(", "));
    vec![
        ("plain", pod(""), 1, Both),
        ("mode", pod("  volumes:\n  - name: key\n    secret: {secretName: key, defaultMode: 0400}\n"), 1, Both),
        ("comments", format!("# first\n{}# last\n", pod("  # inside\n")), 1, Both),
        // A byte order mark, and Windows line ends.
        ("mark", format!("\u{feff}{}", pod("")), 1, Both),
        ("crlf", crlf(pod("  x: |\n    a\n    b\n  z: 0400\n")), 1, Both),
        ("mark and crlf", crlf(format!("\u{feff}{}---\n{}", pod(""), pod(""))), 2, Both),
        // kubectl splits at `---` before it parses, which leaves directives alone.
        ("directive", format!("%YAML 1.1\n---\n{}", field("0400")), 1, Python),
        ("directives", format!("%YAML 1.1\n%TAG ! tag:example.com,2026:\n--- # c\n{}...\n%YAML 1.1\n---\n{}", pod(""), pod("")), 2, Python),
        ("content behind a marker", format!("--- {{apiVersion: v1, kind: Service}}\n---\n{}", pod("")), 1, Python),
        ("end", format!("{}...\n---\n{}...\n", pod(""), pod("")), 2, Both),
        ("nothing between", format!("---\n---\n# only this\n---\n{}---\n", pod("")), 1, Both),
        // Block scalars.
        ("literal", field("|\n    a\n      b\n\n    c"), 1, Both),
        ("kept", field("|+\n    a\n\n"), 1, Both),
        ("stripped", field("|-\n    a\n    b\n\n"), 1, Both),
        ("folded", field(">\n    a\n    b\n\n    c\n      d\n"), 1, Both),
        ("indented", field("|2\n     a\n    b\n"), 1, Both),
        ("trailing blanks", field("\"a \\nb\\t\\n\""), 1, Both),
        ("script", field("|\n    #!/bin/sh\n    set -e\n    \tif a; then\n    \t\tb\n    fi"), 1, Both),
        // Tabs.
        ("tab first", field("\"\\tx\\ny\\n\""), 1, Both),
        ("tab alone", field("\"\\t\""), 1, Both),
        ("tab behind", field("a\t# comment"), 1, Both),
        // Lines and characters that parsers interpret in different ways.
        ("several lines", field("one\n    two\n\n    three"), 1, Both),
        ("quoted lines", field("\"one\n    two\\\n    \\ three\""), 1, Both),
        ("characters", field("\"é ☺ 😀 \\u0085 \\u2028 \\u2029 \\ufeff \\x7f \\xa0 \\e \\0\""), 1, Both),
        ("return", field("\"a\\r\\nb\\r\""), 1, Both),
        ("odd keys", field("{0400: a, 1.5: b, true: c, \"\": e, \"a: b\": f, \"# g\": g, '-': h}"), 1, Both),
        ("key by key", field("\n    ? a\n    : 0400\n    ? \"b c\"\n    : on"), 1, Both),
        ("flow", field("{a: [1, 0400, {b: on}], \"c\":1,\n    d: [], e: {}}"), 1, Both),
        // Anchors and merges.
        ("anchors", field("\n    one: &one {a: 0400}\n    two: *one\n    three: [*one, &s on, *s]"), 1, Both),
        ("aliases", field(&aliases), 1, Both),
        ("merge", field("\n    one: &one {a: 1, b: 2}\n    two: {<<: *one, b: 3}\n    three:\n      <<: [*one, {c: 0400}]\n      d: 4"), 1, Both),
        // In kubectl's library a merge overrides the keys before it.
        ("late merge", field("\n    one: &one {a: 1, b: 2}\n    two: {b: 3, <<: *one}"), 1, Kubectl),
        ("equal keys", format!("{}---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata: {{a: \"1\", a: \"2\"}}\n", pod("  x: 1\n  x: 2\n")), 1, Both),
        // Depth and size.
        ("deep", field(&deep), 1, Both),
        ("live pods", list(&live), 3000, Both),
        ("nested lists", list(&[list(&[pod(""), pod("")]), "kind: Service\napiVersion: v1".to_owned()]), 2, Python),
        // Kinds.
        ("Deployment", template("apps/v1", "Deployment", &["spec", "template"]), 1, Both),
        ("StatefulSet", template("apps/v1", "StatefulSet", &["spec", "template"]), 1, Both),
        ("CronJob", template("batch/v1", "CronJob", &["spec", "jobTemplate", "spec", "template"]), 1, Both),
        ("PodTemplate", template("v1", "PodTemplate", &["template"]), 1, Both),
        ("Rollout", template("argoproj.io/v1alpha1", "Rollout", &["spec", "template"]), 1, Both),
        ("DeploymentConfig", template("apps.openshift.io/v1", "DeploymentConfig", &["spec", "template"]), 1, Both),
        ("CloneSet", template("apps.kruise.io/v1alpha1", "CloneSet", &["spec", "template"]), 1, Both),
        // Other objects around it.
        ("stream", format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\ndata:\n  y: |\n    ---x\n    on: 0400\n---\n{}---\napiVersion: v1\nkind: Service\nmetadata: {{name: s}}\nspec: {{x: 0400}}\n", pod("")), 1, Both),
        ("json", json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "annotations": {"consul.hashicorp.com/connect-inject": "true"}}, "spec": {"containers": [{"name": "web", "x": ["0400", 1.0, 1e3, "\t\u{1f600}", null]}]}}).to_string(), 1, Both),
    ]
}

/// Parses a text.
type Read<'r> = Box<dyn Fn(&str) -> Result<Vec<Value>> + 'r>;

/// Each parser gives the same objects except for the injected parts, and exactly the same
/// after `uninject`.
#[test]
fn documents_mean_the_same_before_and_after() {
    let Some(readers) = Readers::find_or_skip() else { return };
    let mut wrong = Vec::new();
    for (name, before, pods, which) in corpus() {
        let after = readers.inject(&before);
        let back = readers.uninject(&after);
        let kubectl: Read<'_> = Box::new(|text| readers.kubectl(text));
        let python: Read<'_> = Box::new(|text| readers.tools.read_yaml(text));
        for (reader, read, may) in [
            ("kubectl", kubectl, which != Which::Python),
            ("PyYAML", python, which != Which::Kubectl),
        ] {
            if !may {
                continue;
            }
            let mut is_wrong = |what: &str| wrong.push(format!("{reader}: {name}: {what}"));
            match (read(&before), read(&after), read(&back)) {
                (Ok(input), Ok(output), Ok(taken_back)) => {
                    let [input, output, taken_back] = [input, output, taken_back].map(Value::from);
                    if sidecars(&output) != pods {
                        is_wrong(&format!("{} sidecars", sidecars(&output)));
                    }
                    if without_the_edit(&input) != without_the_edit(&output) {
                        is_wrong(&format!("another meaning: {after:.2000}"));
                    }
                    if input != taken_back {
                        is_wrong(&format!("another meaning after uninject: {back:.2000}"));
                    }
                }
                read => is_wrong(&format!("{:.2000}", format!("{read:?}"))),
            }
        }
        if readers.inject(&after) != after {
            wrong.push(format!("{name}: a second time makes a difference"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// Documents whose pods opt out are written unchanged, and so is text without pods that no
/// parser accepts.
#[test]
fn a_document_without_injected_pods_is_written_unchanged() {
    let Some(readers) = Readers::find_or_skip() else { return };
    for (name, asks, ..) in corpus() {
        let text = asks.replace("connect-inject: \"true\"", "connect-inject: \"false\"");
        let text = text.replace(r#"connect-inject":"true""#, r#"connect-inject":"false""#);
        assert!(text != asks, "{name}");
        assert!(readers.inject(&text) == text, "{name}");
        assert!(readers.uninject(&text) == text, "{name}");
    }
    for text in [
        "a: [\n---\nb: 1\n",
        "\tnobody: [\n",
        "%YAML 9.9\n---\n{{ helm }}\n",
        "a: *nowhere\n",
        "- !!int x\n",
    ] {
        assert_eq!(readers.inject(text), text);
    }
}
