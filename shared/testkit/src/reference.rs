//! Reference tables of Markdown files, generated from the code that they describe.
//!
//! A table stands between `<!-- table: NAME -->` and `<!-- end -->`. Tests compare each
//! with the code; `scripts/reference` writes them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, Command};

/// A generated table.
#[derive(Clone, Debug)]
pub struct Table {
    /// As the marker has it.
    pub name: String,
    /// In Markdown.
    pub text: String,
}

/// Set by `scripts/reference` to write the tables instead of comparing them.
const WRITE: &str = "WRITE_REFERENCES";

const END: &str = "<!-- end -->";

/// Compares the tables of a Markdown file with these, by name, and returns a line for each
/// that is missing or differs. A marker of another name belongs to another test.
///
/// # Panics
/// The file can't be read or written, or a marker has no end.
#[expect(clippy::disallowed_methods, reason = "a test has no flags, and nobody reads meanwhile")]
pub fn differences(file: &Path, tables: &[Table]) -> Vec<String> {
    let name = file.display();
    let text = std::fs::read_to_string(file).expect("a page that exists");
    let (written, missing) = with_tables(&text, tables);
    let mut faults: Vec<String> =
        missing.iter().map(|table| format!("{name} lacks <!-- table: {table} -->")).collect();
    if written != text {
        if std::env::var_os(WRITE).is_some() {
            std::fs::write(file, written).expect("a page that can be written");
        } else {
            let differs = written.lines().zip(text.lines()).find(|(new, old)| new != old);
            let (new, old) = differs.unwrap_or(("more lines", "fewer lines"));
            faults.push(format!(
                "{name} differs from the code, which says\n{new}\ninstead of\n{old}\nrun scripts/reference"
            ));
        }
    }
    faults
}

/// The text with these tables between their markers, and the names of tables without one.
fn with_tables<'t>(text: &str, tables: &'t [Table]) -> (String, Vec<&'t str>) {
    let mut text = text.to_owned();
    let mut missing = Vec::new();
    for Table { name, text: table } in tables {
        let begin = format!("<!-- table: {name} -->\n");
        let Some(start) = text.find(&begin).map(|at| at + begin.len()) else {
            missing.push(name.as_str());
            continue;
        };
        let length = text[start..].find(END).expect("a table's end");
        text.replace_range(start..start + length, &format!("\n{table}\n"));
    }
    (text, missing)
}

/// The tables of a program's flags: one for each subcommand and help heading, named
/// `PROGRAM SUBCOMMAND flags` or `PROGRAM SUBCOMMAND flags, HEADING`. A group of flags that
/// all subcommands with this heading share has one table without the subcommand.
pub fn of_flags(program: &Command) -> Vec<Table> {
    let mut program = program.clone();
    program.build();
    let name = program.get_name().to_owned();
    let commands: Vec<&Command> = program
        .get_subcommands()
        .filter(|each| each.get_name() != "help" && !each.is_hide_set())
        .collect();
    let commands = if commands.is_empty() { vec![&program] } else { commands };
    let mut groups: Vec<Group<'_>> = Vec::new();
    for command in &commands {
        let of =
            if commands.len() > 1 { format!(" {}", command.get_name()) } else { String::new() };
        for arg in command.get_arguments().filter(|arg| is_listed(arg)) {
            let heading = arg.get_help_heading();
            match groups.iter_mut().find(|group| group.of == of && group.heading == heading) {
                Some(group) => group.args.push(arg),
                None => groups.push(Group { of: of.clone(), heading, args: vec![arg] }),
            }
        }
    }
    let mut tables: Vec<Table> = Vec::new();
    for Group { of, heading, args } in &groups {
        let rows = rows(args);
        let same = groups.iter().filter(|other| other.heading == *heading);
        let is_shared = heading.is_some()
            && same.clone().count() > 1
            && same.clone().all(|other| self::rows(&other.args) == rows);
        let of = if is_shared { "" } else { of };
        let heading = heading.map(|heading| format!(", {heading}")).unwrap_or_default();
        let name = format!("{name}{of} flags{heading}");
        if !tables.iter().any(|table| table.name == name) {
            tables.push(Table { name, text: rows });
        }
    }
    tables
}

/// Flags under one heading of a command's help.
struct Group<'c> {
    /// The subcommand, after a blank; empty for a program without any.
    of: String,
    heading: Option<&'c str>,
    args: Vec<&'c Arg>,
}

fn is_listed(arg: &Arg) -> bool {
    let is_usual = matches!(arg.get_id().as_str(), "help" | "version");
    arg.get_long().is_some() && !is_usual && !arg.is_hide_set()
}

fn rows(args: &[&Arg]) -> String {
    let has_env = args.iter().any(|arg| arg.get_env().is_some());
    let has_default = args.iter().any(|arg| default_of(arg).is_some());
    let mut text = String::from("| flag |");
    let mut rule = String::from("|---|");
    for (is_there, title) in
        [(has_env, " environment |"), (has_default, " default |"), (true, " |")]
    {
        if is_there {
            text += title;
            rule += "---|";
        }
    }
    let _ = writeln!(text, "\n{rule}");
    for arg in args {
        let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
        let _ = write!(text, "| {short}`--{}` |", arg.get_long().unwrap_or_default());
        if has_env {
            let env = arg.get_env().map(|name| format!(" `{}`", name.to_string_lossy()));
            let _ = write!(text, "{} |", env.unwrap_or_default());
        }
        if has_default {
            let default = default_of(arg).map(|value| format!(" `{value}`"));
            let _ = write!(text, "{} |", default.unwrap_or_default());
        }
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let required = if arg.is_required_set() { "; required" } else { "" };
        let help = help.replace('|', "\\|").replace('<', "&lt;");
        let _ = writeln!(text, " {help}{}{required} |", words(arg));
    }
    text
}

/// The default, unless it is that a flag is absent.
fn default_of(arg: &Arg) -> Option<String> {
    let takes_value = arg.get_action().takes_values();
    let [value] = arg.get_default_values() else { return None };
    let value = value.to_string_lossy();
    (takes_value && !value.is_empty()).then(|| value.into_owned())
}

/// The fixed words that a flag accepts.
fn words(arg: &Arg) -> String {
    let is_boolean = !arg.get_action().takes_values();
    let values = arg.get_possible_values();
    let names: Vec<String> = values
        .iter()
        .filter(|value| !value.is_hide_set() && !is_boolean)
        .map(|value| format!("`{}`", value.get_name()))
        .collect();
    match names.split_last() {
        Some((last, others)) if !others.is_empty() => {
            format!(": {} or {last}", others.join(", "))
        }
        _ => String::new(),
    }
}

/// The table of the exit codes, which all programs share.
pub fn of_exit_codes() -> Table {
    let mut text = String::from("| code | |\n|---|---|\n");
    for line in runtime::exit::HELP.lines().filter_map(|line| line.strip_prefix("  ")) {
        if let Some((code, meaning)) = line.split_once(' ') {
            let _ = writeln!(text, "| {code} | {} |", meaning.trim());
        }
    }
    Table { name: "exit codes".to_owned(), text }
}

/// Flags, environment variables and exit codes that a page written by hand lacks, and flags
/// that it lists without there being any. Flags in code blocks belong to examples.
pub fn unlisted(mut command: Command, readme: &str) -> Vec<String> {
    command.build();
    let mut flags = BTreeSet::from(["--help".to_owned(), "--version".to_owned()]);
    let mut variables = BTreeSet::new();
    for command in command.get_subcommands().chain([&command]) {
        for argument in command.get_arguments() {
            flags.extend(argument.get_long().map(|flag| format!("--{flag}")));
            variables.extend(Arg::get_env(argument).map(|name| name.display().to_string()));
        }
    }
    let prose: String = readme.split("```").step_by(2).collect();
    let is_of_a_flag = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let listed: BTreeSet<String> = prose
        .split(|c| !is_of_a_flag(c))
        .filter(|word| word.len() > 2 && word.starts_with("--") && !word.starts_with("---"))
        .map(str::to_owned)
        .collect();

    let mut differences = Vec::new();
    differences.extend(flags.difference(&listed).map(|flag| format!("the README lacks {flag}")));
    differences.extend(listed.difference(&flags).map(|flag| format!("there is no flag {flag}")));
    for variable in variables {
        if !prose.contains(&format!("`{variable}`")) {
            differences.push(format!("the README lacks {variable}"));
        }
    }
    for line in runtime::exit::HELP.lines().filter_map(|line| line.strip_prefix("  ")) {
        if let Some((code, meaning)) = line.split_once(' ') {
            let row = format!("| {code} | {} |", meaning.trim());
            if !prose.contains(&row) {
                differences.push(format!("the README lacks {row}"));
            }
        }
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Command {
        let port = Arg::new("port").long("port").env("X_PORT").default_value("80").help("Port");
        let level = Arg::new("level").long("level").help("Level").help_heading("Log");
        let go = Command::new("go").arg(port).arg(level.clone());
        let form = Arg::new("form").long("form").value_parser(["a", "b"]).help("Form of x|y");
        Command::new("prog").subcommand(go).subcommand(Command::new("stay").arg(form).arg(level))
    }

    #[test]
    fn flags_have_a_table_for_each_subcommand_and_shared_heading() {
        let tables = of_flags(&program());
        let table = |name: &str| {
            let found = tables.iter().find(|table| table.name == name);
            found.unwrap_or_else(|| panic!("{name}: {tables:?}")).text.as_str()
        };
        assert_eq!(
            table("prog go flags"),
            "| flag | environment | default | |\n|---|---|---|---|\n| `--port` | `X_PORT` | `80` | Port |\n"
        );
        assert_eq!(
            table("prog stay flags"),
            "| flag | |\n|---|---|\n| `--form` | Form of x\\|y: `a` or `b` |\n"
        );
        assert_eq!(table("prog flags, Log"), "| flag | |\n|---|---|\n| `--level` | Level |\n");
        assert_eq!(tables.len(), 3);
    }

    #[test]
    fn a_page_that_differs_or_lacks_a_table_is_reported() {
        let page = tempfile::NamedTempFile::new().unwrap();
        let check = |text: &str| {
            runtime::file::write_whole(page.path(), 0o600, text.as_bytes()).unwrap();
            differences(page.path(), &[Table { name: "x".to_owned(), text: "| a |\n".to_owned() }])
        };
        assert_eq!(
            check("b\n<!-- table: x -->\n\n| a |\n\n<!-- end -->\nc\n"),
            Vec::<String>::new()
        );
        assert!(check("b\n").concat().contains("lacks <!-- table: x -->"));
        assert!(check("<!-- table: x -->\n\n| b |\n\n<!-- end -->\n").concat().contains("| b |"));
    }

    #[test]
    fn a_flag_on_one_side_only_is_a_difference() {
        let command = Command::new("x").arg(Arg::new("port").long("port").env("X_PORT"));
        let codes = "| 0 | done |\n| 1 | other failure |\n| 64 | usage or configuration |\n| 69 | agent unreachable |\n\
             | 73 | cannot write a file |\n| 75 | deadline passed |\n| 77 | ACL denied |\n| 78 | the agent refused the registration |\n";
        let readme =
            format!("`--port` `X_PORT` `--help` `--version`\n```\nother --flag\n```\n{codes}");
        assert_eq!(unlisted(command.clone(), &readme), Vec::<String>::new());
        assert_eq!(
            unlisted(command.clone(), &format!("{readme} `--gone`")),
            ["there is no flag --gone"]
        );
        assert_eq!(
            unlisted(command.clone(), &readme.replace("`--port`", "")),
            ["the README lacks --port"]
        );
        assert_eq!(
            unlisted(command.clone(), &readme.replace("`X_PORT`", "")),
            ["the README lacks X_PORT"]
        );
        assert_eq!(
            unlisted(command, &readme.replace("| 0 |", "| 2 |")),
            ["the README lacks | 0 | done |"]
        );
    }
}
