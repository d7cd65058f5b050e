//! The container runtime of the harness: `run SPEC`, `enter SPEC`, `sandbox`.

use std::path::Path;
use std::process::ExitCode;

use harness::runtime::container;

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let words: Vec<&str> = args.iter().filter_map(|word| word.to_str()).collect();
    let result = match words[..] {
        ["run", spec] => container::run(Path::new(spec)),
        ["enter", spec] => container::enter(Path::new(spec)),
        ["sandbox"] => container::sandbox(),
        _ => Err("expected `run SPEC` or `sandbox`".into()),
    };
    result.unwrap_or_else(|error| {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        tracing::error!("pod-runtime: {error}");
        ExitCode::from(125)
    })
}
