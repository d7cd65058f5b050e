//! Plays the tutorial and says each step: `scripts/demo`.

use std::io::Write;
use std::process::ExitCode;

use harness::demo;
use harness::parts::Parts;

fn main() -> ExitCode {
    let mut out = std::io::stdout();
    let mut say = |line: &str| {
        let mark = if line.starts_with(' ') { "  " } else { "\n==" };
        // Standard output may be closed.
        let _ = writeln!(out, "{mark} {line}").and_then(|()| out.flush());
    };
    match Parts::find().map_err(Into::into).and_then(|parts| demo::play(parts, &mut say)) {
        Ok(()) => {
            say("Every step of the tutorial worked, and nothing is left behind");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "\ndemo: a step failed: {error}");
            ExitCode::FAILURE
        }
    }
}
