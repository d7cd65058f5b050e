//! Manual pages and shell completions, made from the definition of a command
//! line, so that they say what `--help` says.

use std::io;
use std::path::Path;

use clap::{Arg, Command};
use clap_complete::generate;
use clap_mangen::Man;

pub use clap_complete::Shell;

/// The section of user commands.
const SECTION: &str = "1";

/// The shells whose completions are part of a release, and how each names its file.
const SHELLS: [(Shell, &str, &str, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions", "", ""),
    (Shell::Zsh, "share/zsh/site-functions", "_", ""),
    (Shell::Fish, "share/fish/vendor_completions.d", "", ".fish"),
];

#[derive(Clone, Debug)]
pub struct Page {
    /// The program, or program and subcommand joined by a dash.
    pub name: String,
    /// The page in roff.
    pub text: Vec<u8>,
}

/// The manual pages of a program and of its subcommands, the program's first.
///
/// # Errors
/// None in practice: a page is written to memory.
pub fn manual(mut program: Command) -> io::Result<Vec<Page>> {
    program.build();
    let source = format!("{} {}", program.get_name(), program.get_version().unwrap_or_default());
    let mut pages = Vec::new();
    add(&program, program.get_name(), &source, &mut pages)?;
    Ok(pages)
}

fn add(command: &Command, name: &str, source: &str, pages: &mut Vec<Page>) -> io::Result<()> {
    let mut text = Vec::new();
    Man::new(command.clone().display_name(name))
        .section(SECTION)
        .source(source)
        .manual("User Commands")
        .render(&mut text)?;
    pages.push(Page { name: name.to_owned(), text });
    for subcommand in subcommands(command) {
        add(subcommand, &format!("{name}-{}", subcommand.get_name()), source, pages)?;
    }
    Ok(())
}

/// Those that have something to say: `help` repeats the others.
fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|each| each.get_name() != "help" && !each.is_hide_set())
}

pub fn completions(mut program: Command, shell: Shell) -> Vec<u8> {
    let name = program.get_name().to_owned();
    let mut script = Vec::new();
    generate(shell, &mut program, name, &mut script);
    script
}

/// Writes pages and completions below a directory, as an installation prefix such as
/// `/usr/local` has them.
///
/// # Errors
/// A directory or file that can't be written.
#[expect(clippy::disallowed_methods, reason = "nobody reads a release before it is whole")]
pub fn write_all(program: &Command, prefix: &Path) -> io::Result<()> {
    let folder = prefix.join("share/man/man1");
    std::fs::create_dir_all(&folder)?;
    for Page { name, text } in manual(program.clone())? {
        std::fs::write(folder.join(format!("{name}.{SECTION}")), text)?;
    }
    for (shell, folder, before, after) in SHELLS {
        let folder = prefix.join(folder);
        std::fs::create_dir_all(&folder)?;
        let name = format!("{before}{}{after}", program.get_name());
        std::fs::write(folder.join(name), completions(program.clone(), shell))?;
    }
    Ok(())
}

/// What `--help` says and the manual pages or the completions do not, a line for
/// each: flags, their variables and defaults, subcommands. For the tests of each
/// binary.
pub fn lacking(mut program: Command) -> Vec<String> {
    program.build();
    let mut lacking = Vec::new();
    let pages = match manual(program.clone()) {
        Ok(pages) => pages,
        Err(error) => return vec![error.to_string()],
    };
    let scripts = SHELLS.map(|(shell, ..)| {
        let script = completions(program.clone(), shell);
        (shell, String::from_utf8_lossy(&script).into_owned())
    });
    let mut commands = vec![(program.get_name().to_owned(), &program)];
    while let Some((name, command)) = commands.pop() {
        let page = pages.iter().find(|page| page.name == name).map(|page| plain(&page.text));
        let page = page.unwrap_or_default();
        for words in command.get_arguments().filter(|arg| !arg.is_hide_set()).flat_map(words_of) {
            if !page.contains(&words) {
                lacking.push(format!("{name}.{SECTION} lacks {words}"));
            }
        }
        for flag in command.get_arguments().filter_map(Arg::get_long) {
            for (shell, script) in &scripts {
                let written =
                    if *shell == Shell::Fish { format!("-l {flag}") } else { format!("--{flag}") };
                if !script.contains(&written) {
                    lacking.push(format!("the completions of {shell} lack --{flag}"));
                }
            }
        }
        for subcommand in subcommands(command) {
            let name = format!("{name}-{}", subcommand.get_name());
            if !page.contains(&name) {
                lacking.push(format!("a page lacks the subcommand {name}"));
            }
            commands.push((name, subcommand));
        }
    }
    lacking
}

/// What a page has to say of an argument.
fn words_of(arg: &Arg) -> Vec<String> {
    let mut words = Vec::new();
    words.extend(arg.get_long().map(|flag| format!("--{flag}")));
    words.extend(arg.get_env().map(|name| name.to_string_lossy().into_owned()));
    if arg.get_action().takes_values() && !arg.is_hide_default_value_set() {
        let defaults = arg.get_default_values().iter();
        words.extend(defaults.map(|value| value.to_string_lossy().into_owned()));
    }
    words
}

/// A page without the marks of roff.
fn plain(page: &[u8]) -> String {
    let page = String::from_utf8_lossy(page);
    let page = page.replace("\\-", "-").replace("\\*(Aq", "'").replace("\\(aq", "'");
    page.replace("\\fB", "").replace("\\fI", "").replace("\\fR", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        let port =
            Arg::new("port").long("port").env("X_PORT").default_value("19000").help("A port");
        let go = Command::new("go").about("Go").arg(port).after_help("Exit codes:\n  0   done");
        Command::new("prog").version("1.2").about("A program").subcommand(go)
    }

    #[test]
    fn a_program_has_a_page_for_itself_and_for_each_subcommand() {
        let pages = manual(program()).unwrap();
        let names: Vec<_> = pages.iter().map(|page| page.name.as_str()).collect();
        assert_eq!(names, ["prog", "prog-go"]);
        let page = plain(&pages[1].text);
        for words in [".TH prog-go 1", "prog 1.2", "--port", "X_PORT", "19000", "0   done"] {
            assert!(page.contains(words), "{words}: {page}");
        }
    }

    #[test]
    fn what_a_page_leaves_out_is_told() {
        assert_eq!(lacking(program()), Vec::<String>::new());
        let words = words_of(&Arg::new("port").long("port").env("X_PORT").default_value("19"));
        assert_eq!(words, ["--port", "X_PORT", "19"]);
    }

    #[test]
    fn files_are_where_an_installation_has_them() {
        let prefix = tempfile::tempdir().unwrap();
        write_all(&program(), prefix.path()).unwrap();
        for file in [
            "share/man/man1/prog.1",
            "share/man/man1/prog-go.1",
            "share/bash-completion/completions/prog",
            "share/zsh/site-functions/_prog",
            "share/fish/vendor_completions.d/prog.fish",
        ] {
            assert!(prefix.path().join(file).is_file(), "{file}");
        }
    }
}
