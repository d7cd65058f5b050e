//! Checks the policy in `deny.toml` without cargo-deny, which would need 170 more crates.
//! Uses `cargo metadata` and no network.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde::Deserialize;

/// The part of `deny.toml` that is checked. Unknown keys are rejected, so that there is no
/// rule that nothing checks.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Policy {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    multiple_versions: Level,
    deny: Vec<Crate>,
    skip: Vec<Crate>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Level,
    unknown_git: Level,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    Deny,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Crate {
    #[serde(rename = "crate")]
    spec: String,
    reason: String,
}

/// Output of `cargo metadata`.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

fn packages(target: &str) -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--locked"])
        .args(["--filter-platform", target])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Metadata>(&output.stdout).unwrap().packages
}

/// Whether an SPDX expression can be satisfied with these licences. Supports the part of
/// SPDX that crates use: `AND` before `OR`, parentheses, and the old `/` for `OR`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    fn alternatives(
        words: &mut std::iter::Peekable<std::slice::Iter<'_, String>>,
        allowed: &BTreeSet<String>,
    ) -> bool {
        let mut is_met = terms(words, allowed);
        while words.next_if(|word| *word == "OR").is_some() {
            is_met |= terms(words, allowed);
        }
        is_met
    }
    fn terms(
        words: &mut std::iter::Peekable<std::slice::Iter<'_, String>>,
        allowed: &BTreeSet<String>,
    ) -> bool {
        let mut is_met = license(words, allowed);
        while words.next_if(|word| *word == "AND").is_some() {
            is_met &= license(words, allowed);
        }
        is_met
    }
    fn license(
        words: &mut std::iter::Peekable<std::slice::Iter<'_, String>>,
        allowed: &BTreeSet<String>,
    ) -> bool {
        let Some(name) = words.next() else { return false };
        if name == "(" {
            let is_met = alternatives(words, allowed);
            return words.next_if(|word| *word == ")").is_some() && is_met;
        }
        match words.next_if(|word| *word == "WITH").and_then(|_| words.next()) {
            Some(exception) => allowed.contains(&format!("{name} WITH {exception}")),
            None => allowed.contains(name),
        }
    }
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
    let mut words = words.iter().peekable();
    alternatives(&mut words, allowed) && words.next().is_none()
}

/// Whether `name` or `name@1.2` matches a package.
fn is_meant(spec: &str, package: &Package) -> bool {
    let (name, version) = spec.split_once('@').unwrap_or((spec, ""));
    let is_of_version = |rest: &str| rest.is_empty() || rest.starts_with('.');
    name == package.name
        && (version.is_empty() || package.version.strip_prefix(version).is_some_and(is_of_version))
}

/// Violations of the policy, one per line.
fn faults(policy: &Policy, packages: &[Package]) -> Vec<String> {
    let Bans { multiple_versions: Level::Deny, deny, skip } = &policy.bans;
    let Sources { unknown_registry: Level::Deny, unknown_git: Level::Deny } = &policy.sources;
    let mut faults = Vec::new();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in packages {
        let Package { name, version, license, source } = package;
        let license = license.as_deref().unwrap_or("none");
        if !is_allowed(license, &policy.licenses.allow) {
            faults.push(format!("{name} {version} has the licence {license}"));
        }
        if source.as_deref().is_some_and(|source| source != REGISTRY) {
            faults.push(format!("{name} {version} is from {source:?}"));
        }
        if let Some(Crate { reason, .. }) = deny.iter().find(|each| is_meant(&each.spec, package)) {
            faults.push(format!("{name} is banned: {reason}"));
        }
        if !skip.iter().any(|each| is_meant(&each.spec, package)) {
            versions.entry(name).or_default().push(version);
        }
    }
    let several = versions.iter().filter(|(_, versions)| versions.len() > 1);
    faults.extend(several.map(|(name, versions)| format!("{name} is there in {versions:?}")));
    let idle = skip.iter().filter(|each| !packages.iter().any(|found| is_meant(&each.spec, found)));
    faults.extend(idle.map(|each| format!("{} is skipped, and there is none", each.spec)));
    faults
}

fn policy() -> Policy {
    toml::from_str(&std::fs::read_to_string(root().join("deny.toml")).unwrap()).unwrap()
}

#[test]
fn dependencies_comply_with_the_policy() {
    let policy = policy();
    assert!(!policy.graph.targets.is_empty());
    for target in &policy.graph.targets {
        let packages = packages(target);
        assert!(packages.len() > 100, "{target}: {}", packages.len());
        let faults = faults(&policy, &packages);
        assert!(faults.is_empty(), "{target}: {faults:#?}");
    }
    let crates = [&policy.bans.deny, &policy.bans.skip];
    let silent: Vec<_> =
        crates.into_iter().flatten().filter(|each| each.reason.is_empty()).collect();
    assert!(silent.is_empty(), "without a reason: {}", silent.len());
}

#[test]
fn violations_of_the_policy_are_reported() {
    let package = |name: &str, version: &str, license: &str| Package {
        name: name.to_owned(),
        version: version.to_owned(),
        license: Some(license.to_owned()),
        source: Some(REGISTRY.to_owned()),
    };
    let policy = policy();
    let skipped = policy.bans.skip.iter().map(|each| {
        let (name, version) = each.spec.split_once('@').unwrap();
        package(name, version, "MIT")
    });
    let mut packages: Vec<Package> = skipped.collect();
    assert_eq!(faults(&policy, &packages), Vec::<String>::new());
    packages.push(package("a", "1.0.0", "GPL-3.0"));
    packages.push(package("a", "2.0.0", "MIT"));
    packages.push(package("openssl-sys", "0.9.1", "MIT"));
    packages.push(Package {
        source: Some("git+https://example.com/b".to_owned()),
        ..package("b", "1.0.0", "MIT")
    });
    let faults = faults(&policy, &packages).join("\n");
    for words in [
        "a 1.0.0 has the licence GPL-3.0",
        "a is there in",
        "openssl-sys is banned",
        "b 1.0.0 is from",
    ] {
        assert!(faults.contains(words), "{words}: {faults}");
    }
}

#[test]
fn licences_are_read_as_spdx_expressions() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, is_met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("(GPL-3.0 OR MIT) AND BSD", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("(MIT", false),
        ("MIT ISC", false),
        ("", false),
    ] {
        assert_eq!(is_allowed(expression, &allowed), is_met, "{expression}");
    }
}
