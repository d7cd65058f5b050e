//! Rules about the repository: links in the pages work, and the table of dependencies in
//! ARCHITECTURE.md matches the Cargo.toml files. Needs no real part.

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The repository's Markdown files, relative to its root.
fn documents() -> Vec<PathBuf> {
    let files = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.md"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(files.status.success(), "{}", String::from_utf8_lossy(&files.stderr));
    String::from_utf8(files.stdout).unwrap().lines().map(PathBuf::from).collect()
}

/// The text outside of fenced code blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// The targets of `[text](target)`.
fn links(text: &str) -> impl Iterator<Item = &str> {
    prose(text).flat_map(|line| {
        line.split("](").skip(1).filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
    })
}

/// The anchors of the headings, as on GitHub.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter_map(|line| line.strip_prefix('#'));
    headings
        .map(|heading| {
            let heading = heading.trim_start_matches('#').trim().to_lowercase();
            let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn every_link_of_the_pages_works() {
    let root = root();
    let documents = documents();
    assert!(documents.len() > 10, "{documents:?}");
    let mut broken = Vec::new();
    for document in &documents {
        let text = std::fs::read_to_string(root.join(document)).unwrap();
        for link in links(&text).filter(|link| !link.contains("://")) {
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() {
                root.join(document)
            } else {
                root.join(document).parent().unwrap().join(file)
            };
            let is_there = target.exists()
                && (anchor.is_empty()
                    || anchors(&std::fs::read_to_string(&target).unwrap()).contains(anchor));
            if !is_there {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_dependencies_in_architecture_md_are_those_of_the_code() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version=1", "--offline", "--locked"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let names: BTreeSet<String> = packages.iter().map(name).collect();
    let of_the_product = |package: &&Value| {
        let manifest = package["manifest_path"].as_str().unwrap();
        !manifest.contains("/e2e/")
    };
    let code: BTreeMap<String, BTreeSet<String>> = packages
        .iter()
        .filter(of_the_product)
        .map(|package| {
            let dependencies = package["dependencies"].as_array().unwrap().iter();
            let ours = dependencies.filter(|d| d["kind"].is_null()).map(name);
            (name(package), ours.filter(|name| names.contains(name)).collect())
        })
        .collect();

    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = text.split("| crate | imports of ours |").nth(1).unwrap();
    let table = table.split("\n\n").next().unwrap();
    let words = |cell: &str| cell.split('`').skip(1).step_by(2).map(str::to_owned).collect();
    let drawn: BTreeMap<String, BTreeSet<String>> = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let (name, imports) = line[1..].split_once('|').unwrap();
            (name.trim().trim_matches('`').to_owned(), words(imports))
        })
        .collect();
    assert_eq!(drawn, code);
}

/// `runtime::stdout` ignores a closed pipe; a program that writes to standard output
/// directly would fail.
#[test]
fn the_product_writes_to_stdout_in_one_place() {
    let found = Command::new("git")
        .args(["grep", "--files-with-matches", "io::stdout", "--"])
        .args(["bins/*/src/*.rs", "shared/*/src/*.rs"])
        .current_dir(root())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "shared/runtime/src/stdout.rs\n");
}

/// clap gives a flag the heading of the group before it: groups of flags with a heading come
/// after the flags that have none.
#[test]
fn no_flag_stands_under_the_heading_of_another_group() {
    let files = Command::new("git")
        .args(["grep", "--files-with-matches", "-E", r"next_help_heading|command\(flatten", "--"])
        .args(["bins/*/src/*.rs", "shared/*/src/*.rs"])
        .current_dir(root())
        .output()
        .unwrap();
    let files = String::from_utf8(files.stdout).unwrap();
    let read = |file: &str| std::fs::read_to_string(root().join(file)).unwrap();
    let texts: Vec<(&str, String)> = files.lines().map(|file| (file, read(file))).collect();
    let mut with_heading = BTreeSet::new();
    let mut leaking = Vec::new();
    // A group within a group: its name is known after the first round.
    for _ in 0..2 {
        leaking.clear();
        for (file, text) in &texts {
            leaking.extend(flags_after_groups(text, &mut with_heading).map(|flag| (*file, flag)));
        }
    }
    assert!(with_heading.len() > 5, "{with_heading:?}");
    assert!(leaking.is_empty(), "{leaking:#?}");
}

/// The fields of a file's structs that are flags without a heading after a group with one.
/// Adds the structs that set a heading.
fn flags_after_groups(
    text: &str,
    with_heading: &mut BTreeSet<String>,
) -> impl Iterator<Item = String> + use<> {
    let mut leaking = Vec::new();
    let (mut structure, mut attribute) = (String::new(), String::new());
    let (mut is_after, mut sets_heading) = (false, false);
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[") || attribute.ends_with(',') || attribute.ends_with('(') {
            attribute += line;
            sets_heading |= line.starts_with("#[command(next_help_heading");
        } else if let Some(at) = line.find("struct ") {
            let name = line[at + "struct ".len()..].split(|c: char| !c.is_alphanumeric()).next();
            name.unwrap_or_default().clone_into(&mut structure);
            if std::mem::take(&mut sets_heading) {
                with_heading.insert(structure.clone());
            }
            attribute.clear();
        } else if line == "}" {
            is_after = false;
            attribute.clear();
        } else if let Some((name, kind)) = line.trim_end_matches(',').split_once(": ")
            && !line.starts_with("//")
        {
            let kind = kind.rsplit("::").next().unwrap_or_default();
            if attribute.contains("command(flatten") {
                is_after |= with_heading.contains(kind);
                if is_after {
                    with_heading.insert(structure.clone());
                }
            } else if is_after && attribute.contains("long") && !attribute.contains("help_heading")
            {
                leaking.push(format!("{structure}: {name}"));
            }
            attribute.clear();
        }
    }
    leaking.into_iter()
}
