//! The commands of the [CNI specification](https://www.cni.dev/docs/spec/), passed by
//! the container runtime in environment variables and on stdin. The plugin keeps no
//! state: the rules belong to the pod's network and end with it.

use std::ffi::OsStr;
use std::io::Read;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use crate::config::{Config, VERSIONS};
use crate::failure::{Code, Failure};
use crate::network::Network;

/// The longest input, in bytes. A pod has at most 256 KiB of annotations.
const LONGEST: u64 = 4 << 20;

const RUNTIME: &str = "the container runtime runs this plugin: its log says how it failed; by hand, \
                       use connect-cni install, ready or uninstall";

/// Runs a command and writes its result.
pub(crate) fn main(command: &OsStr) -> ExitCode {
    let mut input = Vec::new();
    let read = std::io::stdin().take(LONGEST).read_to_end(&mut input);
    // Nothing to undo. The specification asks DEL to succeed even if resources are
    // missing, and a failed DEL would keep the pod in Terminating.
    if command == "DEL" || command == "GC" {
        return ExitCode::SUCCESS;
    }
    let answer = read
        .map_err(|error| {
            Failure::new(Code::Io, format_args!("cannot read stdin: {error}"), RUNTIME)
        })
        .and_then(|_| answer(&command.to_string_lossy(), &input));
    let (document, code) = match answer {
        Ok(document) => (document, ExitCode::SUCCESS),
        Err(failure) => (failure.document(&version_of(&input)), ExitCode::FAILURE),
    };
    if runtime::stdout::write(&document).is_err() { ExitCode::FAILURE } else { code }
}

fn answer(command: &str, input: &[u8]) -> Result<String, Failure> {
    match command {
        "ADD" => add(&Config::read(input)?),
        "CHECK" => check(&Config::read(input)?),
        // Ready even if the kernel lacks nf_tables: a failed STATUS would make the node
        // NotReady, also for pods that are not transparent.
        "STATUS" => Config::read(input).map(|_| String::new()),
        "VERSION" => Ok(versions(&version_of(input))),
        other => {
            let problem = format_args!(
                "unknown CNI_COMMAND `{other}`: expected ADD, CHECK, DEL, GC, STATUS or VERSION"
            );
            Err(Failure::new(Code::Environment, problem, RUNTIME))
        }
    }
}

fn add(config: &Config<'_>) -> Result<String, Failure> {
    let path = attachment()?;
    let previous = config.previous()?;
    if let Some(plan) = config.plan()? {
        Network::open(&path)?.redirect(&plan)?;
    }
    Ok(previous.to_owned())
}

fn check(config: &Config<'_>) -> Result<String, Failure> {
    let path = attachment()?;
    config.previous()?;
    if let Some(plan) = config.plan()? {
        Network::open(&path)?.verify(&plan)?;
    }
    Ok(String::new())
}

/// Checks the variables that ADD and CHECK require; returns the path of the pod's
/// network namespace.
fn attachment() -> Result<String, Failure> {
    let variable = |name| {
        let value = std::env::var_os(name).and_then(|value| value.into_string().ok());
        let value = value.filter(|value| !value.is_empty());
        value.ok_or_else(|| {
            let problem = format_args!("cannot find the pod: {name} is not set");
            Failure::new(Code::Environment, problem, RUNTIME)
        })
    };
    variable("CNI_CONTAINERID")?;
    variable("CNI_IFNAME")?;
    variable("CNI_NETNS")
}

fn versions(version: &str) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Versions<'a> {
        cni_version: &'a str,
        supported_versions: &'a [&'a str],
    }
    let versions = Versions { cni_version: version, supported_versions: &VERSIONS };
    serde_json::to_string(&versions).expect("its keys are strings")
}

/// The `cniVersion` of the input, in which the result is written; the newest if the
/// input is invalid.
fn version_of(input: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Asked {
        cni_version: String,
    }
    let newest = VERSIONS[VERSIONS.len() - 1].to_owned();
    serde_json::from_slice(input).map_or(newest, |asked: Asked| asked.cni_version)
}
