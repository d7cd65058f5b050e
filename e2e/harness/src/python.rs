//! Tools to test the chart: Helm, and Python packages with Kubernetes' schemas and a strict
//! YAML parser.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::Result;

/// The tools, and the injector to compare them with.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The directory with the packages, from `PYTHON_TOOLS`.
    packages: PathBuf,
    /// The `helm` command, from `HELM_BIN`.
    helm: PathBuf,
    /// The release binary of `connect-inject`, from `E2E_BIN_DIR`.
    pub injector: PathBuf,
}

/// A release of a chart.
#[derive(Clone, Debug)]
pub struct Release {
    pub name: &'static str,
    pub namespace: &'static str,
    /// Values set by the user.
    pub values: Value,
}

/// A chart, and its rendered releases.
#[derive(Debug)]
pub struct Rendered {
    /// The error of `helm lint --strict`, if any.
    pub lint: std::result::Result<(), String>,
    /// `Chart.yaml`.
    pub metadata: Value,
    /// `values.yaml`.
    pub values: Value,
    /// For each release its objects and notes, or why Helm rejected it.
    pub releases: Vec<std::result::Result<Objects, String>>,
}

/// The contents of a release.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// Kubernetes' objects.
    pub documents: Vec<Value>,
    /// The notes that Helm prints.
    pub notes: String,
}

// === impl Tools ===

impl Tools {
    /// Finds the tools.
    ///
    /// # Errors
    /// A tool is missing; with a hint.
    pub fn find() -> std::result::Result<Self, String> {
        let folder = |variable: &str| {
            let folder = std::env::var_os(variable).map(PathBuf::from);
            folder
                .filter(|folder| folder.is_dir())
                .ok_or_else(|| format!("{variable} names no directory: scripts/test sets it"))
        };
        let injector = folder("E2E_BIN_DIR")?.join("connect-inject");
        if !injector.is_file() {
            return Err("E2E_BIN_DIR has no connect-inject: scripts/build makes it".to_owned());
        }
        let helm = std::env::var_os("HELM_BIN").map(PathBuf::from);
        let helm = helm
            .filter(|helm| helm.is_file())
            .ok_or("HELM_BIN names no program: scripts/tools helm prints it")?;
        Ok(Self { packages: folder("PYTHON_TOOLS")?, helm, injector })
    }

    /// For tests: the tools, or `None` with a message on stderr. If `CI` is set, a missing
    /// tool is a failure.
    ///
    /// # Panics
    /// In CI, if a tool is missing.
    pub fn find_or_skip() -> Option<Self> {
        crate::parts::or_skip(Self::find())
    }

    /// Renders the chart for each release, as Helm does without a cluster.
    ///
    /// # Errors
    /// The chart can't be loaded.
    pub fn render(&self, releases: &[Release]) -> Result<Rendered> {
        self.render_chart(Path::new(CHART), releases)
    }

    /// The same for another chart, such as one that has ours as a dependency.
    ///
    /// # Errors
    /// The chart can't be loaded, or a rendered object has a duplicate key.
    pub fn render_chart(&self, chart: &Path, releases: &[Release]) -> Result<Rendered> {
        let folder = tempfile::tempdir()?;
        let install = |(i, release): (usize, &Release)| {
            let values = folder.path().join(format!("{i}.json"));
            (i, self.install(chart, release, &values))
        };
        let mut outcomes: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..THREADS)
                .map(|first| {
                    let mine = releases.iter().enumerate().skip(first).step_by(THREADS);
                    let install = &install;
                    scope.spawn(move || mine.map(install).collect::<Vec<_>>())
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
        });
        outcomes.sort_by_key(|(i, _)| *i);
        if outcomes.len() != releases.len() {
            return Err("a thread that renders has panicked".into());
        }

        let mut texts = vec![
            std::fs::read_to_string(chart.join("Chart.yaml"))?,
            std::fs::read_to_string(chart.join("values.yaml"))?,
        ];
        let mut rendered = Vec::new();
        for (_, outcome) in outcomes {
            rendered.push(match outcome? {
                Ok(release) => {
                    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                    texts.push(text(&release["manifest"]));
                    Ok(text(&release["info"]["notes"]).trim_start().to_owned())
                }
                Err(refused) => Err(refused),
            });
        }
        let parsed = self.ask(include_str!("../python/strict.py"), &json!(texts))?;
        let mut parsed: Vec<Vec<Value>> = serde_json::from_value(parsed)?;
        let mut documents = parsed.split_off(2).into_iter();
        let first = |i: usize| parsed[i].first().cloned().unwrap_or_default();
        let lint = self.helm(&["lint", "--strict", &chart.to_string_lossy()])?;
        Ok(Rendered {
            lint: if lint.status.success() {
                Ok(())
            } else {
                Err(String::from_utf8_lossy(&lint.stdout).into_owned())
            },
            metadata: first(0),
            values: first(1),
            releases: rendered
                .into_iter()
                .map(|notes| {
                    let documents = notes.is_ok().then(|| documents.next()).flatten();
                    notes.map(|notes| Objects { documents: documents.unwrap_or_default(), notes })
                })
                .collect(),
        })
    }

    /// One release in Helm's JSON form, or why Helm rejects it.
    fn install(
        &self,
        chart: &Path,
        release: &Release,
        values: &Path,
    ) -> Result<std::result::Result<Value, String>> {
        #[expect(clippy::disallowed_methods, reason = "no program reads the file yet")]
        std::fs::write(values, release.values.to_string())?;
        let (chart, values) = (chart.to_string_lossy(), values.to_string_lossy());
        let namespace = ["--namespace", release.namespace, "--values", &values];
        let dry = ["install", release.name, &chart, "--dry-run=client", "--output=json"];
        let output = self.helm(&[dry.as_slice(), &namespace].concat())?;
        if output.status.success() {
            return Ok(Ok(serde_json::from_slice(&output.stdout)?));
        }
        Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// Runs the `helm` command without a cluster, in a temporary home.
    ///
    /// # Errors
    /// It can't be started.
    pub fn helm(&self, args: &[&str]) -> Result<Output> {
        let home = tempfile::tempdir()?;
        let mut command = Command::new(&self.helm);
        for name in ["CACHE", "CONFIG", "DATA"] {
            command.env(format!("HELM_{name}_HOME"), home.path().join(name));
        }
        command.env("KUBECONFIG", home.path().join("none")).stdin(Stdio::null());
        Ok(command.args(args).output().map_err(|error| format!("cannot start helm: {error}"))?)
    }

    /// Parses YAML documents strictly.
    ///
    /// # Errors
    /// The YAML is invalid, or a key is duplicate.
    pub fn strict(&self, yaml: &str) -> Result<Vec<Value>> {
        let parsed = self.ask(include_str!("../python/strict.py"), &json!([yaml]))?;
        Ok(serde_json::from_value(parsed[0].clone())?)
    }

    /// Validates objects against the schemas of Kubernetes, each from a version such as `1.25`
    /// on. Returns the available versions, and the errors of each object.
    ///
    /// # Errors
    /// The schemas can't be read.
    pub fn validate(&self, documents: &[(Value, &str)]) -> Result<(Vec<String>, Vec<Vec<String>>)> {
        let answer = self.ask(include_str!("../python/validate.py"), &json!(documents))?;
        let versions = serde_json::from_value(answer["versions"].clone())?;
        Ok((versions, serde_json::from_value(answer["wrong"].clone())?))
    }

    /// Parses YAML documents with PyYAML.
    ///
    /// # Errors
    /// PyYAML rejects the text.
    pub fn read_yaml(&self, text: &str) -> Result<Vec<Value>> {
        let answer = self.ask(include_str!("../python/read.py"), &json!([text]))?;
        match &answer[0]["documents"] {
            Value::Array(documents) => Ok(documents.clone()),
            _ => Err(answer[0]["error"].as_str().unwrap_or_default().into()),
        }
    }

    /// Runs a script with JSON on stdin, and returns the JSON from its stdout.
    fn ask(&self, script: &str, question: &Value) -> Result<Value> {
        let mut python = Command::new("python3")
            .args(["-c", script])
            .env("PYTHONPATH", &self.packages)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start python3: {error}"))?;
        let mut stdin = python.stdin.take().ok_or("python3 has no input")?;
        let question = question.to_string();
        // No deadlock: the script reads its whole input before it writes.
        let written = stdin.write_all(question.as_bytes());
        drop(stdin);
        let output = python.wait_with_output()?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        written?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// Number of releases rendered at once.
const THREADS: usize = 4;

pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bins/connect-inject/chart");

// === impl Objects ===

impl Objects {
    /// The only object of a kind.
    ///
    /// # Panics
    /// There is none, or more than one.
    pub fn one(&self, kind: &str) -> &Value {
        let found = self.all(kind);
        assert_eq!(found.len(), 1, "{kind}: {found:?}");
        found[0]
    }

    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.documents.iter().filter(|document| document["kind"] == kind).collect()
    }
}
