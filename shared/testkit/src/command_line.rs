//! Compares a command line with its README, its manual pages, and its completions,
//! which shells have to load.

use std::path::Path;
use std::process::{Command as Process, Stdio};

use clap::Command;
use clap::error::ErrorKind;

use crate::{or_skip, reference};

/// A shell, the directory of its completions, and a script that loads the completions
/// of `$1` from `$2` and prints the suggestions for `$1 `.
struct Shell {
    program: &'static str,
    package: &'static str,
    args: &'static [&'static str],
    script: &'static str,
}

const SHELLS: [Shell; 3] = [
    Shell {
        program: "bash",
        package: "bash",
        args: &["--norc", "-c"],
        script: r#"
            source "$2/share/bash-completion/completions/$1" || exit 1
            completion=$(complete -p "$1") && completion=${completion#*-F } || exit 1
            for word in '' --; do
              COMP_WORDS=("$1" "$word") COMP_CWORD=1
              "${completion%% *}" "$1" "$word" "$1"
              printf '%s\n' "${COMPREPLY[@]}"
            done"#,
    },
    // Outside of a terminal, zsh offers nothing: the test loads the function and reads
    // what it passes to `_arguments` and `_describe`.
    Shell {
        program: "zsh",
        package: "zsh",
        args: &["-f", "-c"],
        script: r#"
            fpath=("$2/share/zsh/site-functions" $fpath)
            autoload -Uz compinit && compinit -u -D && [[ $_comps[$1] = "_$1" ]] || exit 1
            autoload -Uz +X "_$1" || exit 1
            _arguments() { print -l -- "$@" }
            _describe() { print -l -- "${(P@)${@[-1]}}" }
            "_$1"
            (( ! $+functions[_$1_commands] )) || "_$1_commands""#,
    },
    Shell {
        program: "fish",
        package: "fish",
        args: &["--no-config", "-c"],
        script: r#"
            source $argv[2]/share/fish/vendor_completions.d/$argv[1].fish; or exit 1
            complete --do-complete "$argv[1] "; complete --do-complete "$argv[1] --""#,
    },
];

/// Compares a command line with the tables of its README, its manual pages, and its
/// completions. The tables of the Markdown file are those of [`reference`].
///
/// # Panics
/// With all differences.
#[track_caller]
pub fn agrees_with_its_pages(program: &Command, readme: &str) {
    let mut tables = reference::of_flags(program);
    tables.push(reference::of_exit_codes());
    let faults = reference::differences(Path::new(readme), &tables);
    agrees_with_its_manual(program, faults);
}

/// The same for a README whose tables are written by hand.
///
/// # Panics
/// With all differences.
#[track_caller]
pub fn agrees_with_readme(program: &Command, readme: &str) {
    agrees_with_its_manual(program, reference::unlisted(program.clone(), readme));
}

#[track_caller]
fn agrees_with_its_manual(program: &Command, mut faults: Vec<String>) {
    program.clone().debug_assert();
    faults.extend(not_parsed(program));
    faults.extend(pages::lacking(program.clone()));
    let prefix = tempfile::tempdir().expect("a directory for the pages");
    pages::write_all(program, prefix.path()).expect("the directory takes files");
    for shell in &SHELLS {
        faults.extend(shell.not_offered(program, prefix.path()));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Commands in the code blocks of the project's pages that the program would reject.
fn not_parsed(program: &Command) -> Vec<String> {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let pages = Process::new("git").args(["ls-files", "*.md"]).current_dir(root).output();
    let pages = pages.expect("git can be run");
    let why = String::from_utf8_lossy(&pages.stderr);
    assert!(pages.status.success() && !pages.stdout.is_empty(), "git lists no page: {why}");
    let mut faults = Vec::new();
    for page in String::from_utf8_lossy(&pages.stdout).lines() {
        let text = std::fs::read_to_string(root.join(page));
        let text = text.unwrap_or_else(|error| panic!("{page}: {error}"));
        for line in commands_of(program.get_name(), &text) {
            match program.clone().try_get_matches_from(words(&line)) {
                Err(error) if !is_accepted(error.kind()) => {
                    faults.push(format!("{page}: `{line}` is not a command: {error}"));
                }
                _ => {}
            }
        }
    }
    faults
}

/// What a program may require can stand in a file or a variable.
fn is_accepted(kind: ErrorKind) -> bool {
    use ErrorKind::{DisplayHelp, DisplayVersion, MissingRequiredArgument};
    matches!(kind, DisplayHelp | DisplayVersion | MissingRequiredArgument)
}

/// The lines of code blocks that begin with the program's name, perhaps behind a prompt;
/// lines that a backslash continues are one. A line with `[flags]`, `...` or a word in
/// capitals is a synopsis.
fn commands_of(program: &str, text: &str) -> Vec<String> {
    let blocks = text.split("```").skip(1).step_by(2);
    let lines = blocks.flat_map(|block| {
        let joined = block.replace("\\\n", " ");
        joined.lines().map(|line| line.trim_start_matches("$ ").to_owned()).collect::<Vec<_>>()
    });
    let begins = format!("{program} ");
    lines
        .filter(|line| line.starts_with(&begins))
        .filter(|line| !line.contains('[') && !line.contains("..."))
        .filter(|line| !line.split(' ').any(is_placeholder))
        .collect()
}

fn is_placeholder(word: &str) -> bool {
    word.len() > 1 && word.chars().all(|c| c.is_ascii_uppercase())
}

/// The words of a line up to a pipe, a redirection or a comment.
fn words(line: &str) -> Vec<String> {
    let words = line.split_whitespace();
    let words = words.take_while(|word| !["|", ">", "<", "#", "&&", ";"].contains(word));
    words.map(|word| word.trim_matches(['"', '\'']).to_owned()).collect()
}

// === impl Shell ===

impl Shell {
    /// Subcommands and flags that the shell does not offer.
    fn not_offered(&self, program: &Command, prefix: &Path) -> Vec<String> {
        let Self { program: shell, package, args, script } = self;
        let name = program.get_name();
        let mut command = Process::new(shell);
        command.args(*args).arg(script);
        // fish passes all arguments on, the other shells take the first as their name.
        command.args((*shell != "fish").then_some(shell)).arg(name).arg(prefix);
        let output = command.env("HOME", prefix).stdin(Stdio::null()).output();
        let missing = |_| format!("{shell} is not installed: install {package}");
        let Some(output) = or_skip(output.map_err(missing)) else { return Vec::new() };
        let offered = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return vec![format!("{shell} does not load the completions of {name}: {said}")];
        }
        let flags = program.get_arguments().filter(|arg| !arg.is_hide_set());
        let flags = flags.filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
        let subcommands = program.get_subcommands().filter(|each| !each.is_hide_set());
        let words = flags.chain(subcommands.map(|each| each.get_name().to_owned()));
        words
            .filter(|word| !offered.contains(word.as_str()))
            .map(|word| format!("{shell} does not offer {word} after {name}: {offered}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completion_that_is_broken_or_lacks_a_word_is_told() {
        let prefix = tempfile::tempdir().unwrap();
        let program = || Command::new("prog").subcommand(Command::new("go").about("Go"));
        pages::write_all(&program(), prefix.path()).unwrap();
        let more = program().subcommand(Command::new("stay").about("Stay"));
        for shell in &SHELLS {
            let faults = shell.not_offered(&program(), prefix.path());
            assert!(faults.is_empty(), "{faults:?}");
            let lacking = shell.not_offered(&more, prefix.path());
            let other = shell.not_offered(&Command::new("other"), prefix.path());
            if Process::new(shell.program).arg("--version").output().is_ok() {
                assert!(lacking[0].contains("does not offer stay"), "{lacking:?}");
                assert!(other[0].contains("does not load"), "{other:?}");
            }
        }
    }

    #[test]
    fn a_command_of_a_page_is_read_without_what_surrounds_it() {
        let page =
            "`prog x`\n```sh\n$ prog go --to \\\n  here | less\nprog [flags]\nother\n```\nprog y\n";
        let commands = commands_of("prog", page);
        assert_eq!(commands, ["prog go --to    here | less"]);
        assert_eq!(words(&commands[0]), ["prog", "go", "--to", "here"]);
    }
}
