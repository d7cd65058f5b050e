//! The tools that come as Python packages: Helm, and Kubernetes' schemas.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::Result;

/// The tools, and the injector that they are held against.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The folder with the packages, from `PYTHON_TOOLS`.
    packages: PathBuf,
    /// `connect-inject` as it is shipped, from `E2E_BIN_DIR`.
    pub injector: PathBuf,
}

/// What a chart is installed as.
#[derive(Clone, Debug)]
pub struct Release {
    /// Its name.
    pub name: &'static str,
    /// Its namespace.
    pub namespace: &'static str,
    /// What the user sets.
    pub values: Value,
}

/// A chart, and what became of its releases.
#[derive(Debug)]
pub struct Rendered {
    /// What Helm's linter says, strictly.
    pub lint: Vec<Value>,
    /// `Chart.yaml`.
    pub metadata: Value,
    /// `values.yaml`.
    pub values: Value,
    /// For each release its objects and notes, or why it was refused.
    pub releases: Vec<std::result::Result<Objects, String>>,
}

/// What a release consists of.
#[derive(Clone, Debug, PartialEq)]
pub struct Objects {
    /// Kubernetes' objects.
    pub documents: Vec<Value>,
    /// What the user is told.
    pub notes: String,
}

// === impl Tools ===

impl Tools {
    /// Finds the tools.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn find() -> std::result::Result<Self, String> {
        let folder = |variable: &str| {
            let folder = std::env::var_os(variable).map(PathBuf::from);
            folder
                .filter(|folder| folder.is_dir())
                .ok_or_else(|| format!("{variable} names no folder: scripts/test sets it"))
        };
        let injector = folder("E2E_BIN_DIR")?.join("connect-inject");
        if !injector.is_file() {
            return Err("E2E_BIN_DIR has no connect-inject: scripts/build makes it".to_owned());
        }
        Ok(Self { packages: folder("PYTHON_TOOLS")?, injector })
    }

    /// For tests: the tools, or none with a line that says so. In CI, where `CI`
    /// is set, a missing tool is a failure.
    ///
    /// # Panics
    /// In CI, if a tool is missing.
    pub fn find_or_skip() -> Option<Self> {
        crate::parts::or_skip(Self::find())
    }

    /// Renders a chart for each release, as Helm does without a cluster.
    ///
    /// # Errors
    /// The chart can't be loaded.
    pub fn render(&self, releases: &[Release]) -> Result<Rendered> {
        let releases: Vec<_> = releases
            .iter()
            .map(|Release { name, namespace, values }| {
                json!({"name": name, "namespace": namespace, "values": values})
            })
            .collect();
        let question = json!({"chart": CHART, "releases": releases});
        let answer = self.ask(include_str!("../python/render.py"), &question)?;
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        Ok(Rendered {
            lint: list(&answer["lint"]),
            metadata: answer["metadata"].clone(),
            values: answer["values"].clone(),
            releases: list(&answer["releases"])
                .into_iter()
                .map(|release| match release["error"].as_str() {
                    Some(error) => Err(error.to_owned()),
                    None => Ok(Objects {
                        documents: list(&release["documents"]),
                        notes: release["notes"].as_str().unwrap_or_default().to_owned(),
                    }),
                })
                .collect(),
        })
    }

    /// What is wrong with each document by the schemas of Kubernetes, from a
    /// version such as `1.25` on; with the versions that there are.
    ///
    /// # Errors
    /// The schemas can't be read.
    pub fn validate(&self, documents: &[(Value, &str)]) -> Result<(Vec<String>, Vec<Vec<String>>)> {
        let answer = self.ask(include_str!("../python/validate.py"), &json!(documents))?;
        let versions = serde_json::from_value(answer["versions"].clone())?;
        Ok((versions, serde_json::from_value(answer["wrong"].clone())?))
    }

    /// Runs a script: a question in, an answer out.
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
        // It reads all of it before it writes.
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

/// The injector's chart.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bins/connect-inject/chart");

// === impl Objects ===

impl Objects {
    /// The one object of a kind.
    ///
    /// # Panics
    /// There is none, or more than one.
    pub fn one(&self, kind: &str) -> &Value {
        let found = self.all(kind);
        assert_eq!(found.len(), 1, "{kind}: {found:?}");
        found[0]
    }

    /// All objects of a kind.
    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.documents.iter().filter(|document| document["kind"] == kind).collect()
    }
}
