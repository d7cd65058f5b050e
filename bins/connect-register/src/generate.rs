//! `completions` and `man`: what is made from the command line's definition.

use clap::{Command, CommandFactory};
use clap_complete::generate;
use clap_mangen::Man;
use runtime::{Exit, Failure};

use crate::args::{Args, CompletionsArgs, ManArgs};
use crate::output;

/// Prints a shell's completions.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    let mut command = Args::command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    generate(args.shell, &mut command, name, &mut script);
    output::print_bytes(&script)
}

/// Prints the manual page of a subcommand, or of the program.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let mut program = Args::command();
    program.build();
    let page = match &args.subcommand {
        None => program,
        Some(name) => subcommand(&program, name)?,
    };
    let mut text = Vec::new();
    Man::new(page).render(&mut text).map_err(|error| {
        Failure::new(Exit::Failure, format_args!("the page can't be made: {error}"))
    })?;
    output::print_bytes(&text)
}

fn subcommand(program: &Command, name: &str) -> Result<Command, Failure> {
    let found = program.find_subcommand(name).cloned().ok_or_else(|| {
        let names: Vec<&str> = program.get_subcommands().map(Command::get_name).collect();
        Failure::usage(format_args!("there is no subcommand `{name}`"))
            .hint(format_args!("there are: {}", names.join(", ")))
    })?;
    let page = format!("{}-{name}", program.get_name());
    Ok(found.display_name(page))
}
