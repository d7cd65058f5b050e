//! A binary's reference, which is its README, held against its command line.
//! For the tests of each binary.

use std::collections::BTreeSet;

use clap::{Arg, Command};

/// What the README and the command line do not agree on, one line for each:
/// flags, environment variables and exit codes. Flags of the README that stand
/// in a code block count as examples of other programs.
pub fn differences(mut command: Command, readme: &str) -> Vec<String> {
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
    for line in crate::exit::HELP.lines().filter_map(|line| line.strip_prefix("  ")) {
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

    #[test]
    fn a_flag_on_one_side_only_is_a_difference() {
        let command = Command::new("x").arg(Arg::new("port").long("port").env("X_PORT"));
        let codes = "| 0 | done |\n| 1 | other failure |\n| 64 | usage or configuration |\n| 69 | agent unreachable |\n\
             | 73 | cannot write a file |\n| 75 | deadline passed |\n| 77 | ACL denied |\n| 78 | the agent refused the registration |\n";
        let readme =
            format!("`--port` `X_PORT` `--help` `--version`\n```\nother --flag\n```\n{codes}");
        assert_eq!(differences(command.clone(), &readme), Vec::<String>::new());
        assert_eq!(
            differences(command.clone(), &format!("{readme} `--gone`")),
            ["there is no flag --gone"]
        );
        assert_eq!(
            differences(command.clone(), &readme.replace("`--port`", "")),
            ["the README lacks --port"]
        );
        assert_eq!(
            differences(command.clone(), &readme.replace("`X_PORT`", "")),
            ["the README lacks X_PORT"]
        );
        assert_eq!(
            differences(command, &readme.replace("| 0 |", "| 2 |")),
            ["the README lacks | 0 | done |"]
        );
    }
}
