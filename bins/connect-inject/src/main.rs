//! The injector: a mutating admission webhook that adds a Connect sidecar to
//! pods that ask for it, and the same code offline.
//!
//! A pod passes through these layers: [`args`] → [`audit`], [`serve`] or [`documents`] →
//! [`judge`] → [`inject`] → [`plan`] → [`kubernetes`], [`outcome`], [`pod`], [`policy`],
//! [`results`] → [`values`], [`yaml`] → [`json`] → [`names`], [`annotation`]. A module imports
//! only modules of the layers below it.

mod annotation;
mod args;
mod audit;
mod documents;
mod inject;
mod json;
mod judge;
mod kubernetes;
mod names;
mod outcome;
mod plan;
mod pod;
mod policy;
mod results;
mod serve;
mod values;
mod yaml;

use std::process::ExitCode;

use args::{Args, Command};
use mimalloc::MiMalloc;
use runtime::{Failure, LogArgs};

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let Args { log, command } = match args::parse() {
        Ok(args) => args,
        Err(code) => return code,
    };
    match command {
        Command::Serve(args) => runtime::start_on(serve::event_loop(), &log, async |signals| {
            serve::run(args.settings().await?, signals).await
        }),
        Command::Inject(args) => offline(&log, || documents::inject(args.settings_to_write()?)),
        Command::Uninject(args) => offline(&log, || documents::uninject(&args.files)),
        Command::Audit(args) if args.print_rbac => offline(&log, audit::print_rights),
        Command::Audit(args) => {
            runtime::start(&log, async |signals| audit::run(args.settings().await?, signals).await)
        }
        Command::Explain(args) => offline(&log, || documents::explain(args.settings()?)),
    }
}

/// Number of cases of a property test: `PROPTEST_CASES`, or `usual` if that is not set.
#[cfg(test)]
fn cases(usual: u32) -> u32 {
    let is_set = std::env::var_os("PROPTEST_CASES").is_some();
    if is_set { proptest::test_runner::Config::default().cases } else { usual }
}

/// Runs without an event loop, which would handle SIGINT: it must end a program that waits
/// for its standard input.
fn offline(log: &LogArgs, body: impl FnOnce() -> Result<ExitCode, Failure>) -> ExitCode {
    log.init();
    body().unwrap_or_else(|failure| {
        log.report(&failure);
        failure.exit().into()
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// The layers, top to bottom.
    const LAYERS: [&[&str]; 10] = [
        &["main"],
        &["args"],
        &["audit", "documents", "serve"],
        &["judge"],
        &["inject"],
        &["plan"],
        &["kubernetes", "outcome", "pod", "policy", "results"],
        &["values", "yaml"],
        &["json"],
        &["annotation", "names"],
    ];

    fn layer(module: &str) -> usize {
        let layer = LAYERS.iter().position(|modules| modules.contains(&module));
        layer.unwrap_or_else(|| panic!("`{module}` is missing in LAYERS"))
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
    }

    /// The modules after each `crate::`: one, or several in braces.
    fn imported(code: &str) -> Vec<&str> {
        let word =
            |text: &'_ str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').count();
        let mut modules = Vec::new();
        for rest in code.split("crate::").skip(1) {
            let Some(list) = rest.strip_prefix('{') else {
                modules.push(&rest[..word(rest)]);
                continue;
            };
            let (mut depth, mut begins) = (1, true);
            for (at, c) in list.char_indices() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    ',' => begins = true,
                    c if c.is_alphabetic() && begins && depth == 1 => {
                        modules.push(&list[at..at + word(&list[at..])]);
                        begins = false;
                    }
                    _ => {}
                }
                if depth == 0 {
                    break;
                }
            }
        }
        modules
    }

    #[test]
    fn modules_import_only_from_lower_layers() {
        let source = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
        let mut imports = 0;
        for file in files(source) {
            let place = file.strip_prefix(source).unwrap().with_extension("");
            let module = place.iter().next().unwrap().to_str().unwrap();
            let text = fs::read_to_string(&file).unwrap();
            // Tests may import anything.
            let code = text.split("\n#[cfg(test)]\n").next().unwrap();
            for other in imported(code).into_iter().filter(|other| *other != module) {
                assert!(layer(other) > layer(module), "{}: imports {other}", file.display());
                imports += 1;
            }
        }
        assert!(imports > 100, "{imports}");
        assert_eq!(imported("crate::{a, b::{c, d},\n e::f}; x crate::g::h"), ["a", "b", "e", "g"]);
    }
}
