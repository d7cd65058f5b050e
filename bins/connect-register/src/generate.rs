//! `completions` and `man`: what is made from the command line's definition.

use clap::CommandFactory;
use pages::{Page, completions as completions_of, manual};
use runtime::{Exit, Failure, stdout};

use crate::args::{Args, CompletionsArgs, ManArgs};

/// Prints a shell's completions.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    stdout::write(&completions_of(Args::command(), args.shell))
}

/// Prints the manual page of a subcommand, or of the program.
pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let pages = manual(Args::command()).map_err(|error| {
        Failure::new(Exit::Failure, format_args!("the page can't be made: {error}"))
    })?;
    let program = Args::command().get_name().to_owned();
    let wanted = match &args.subcommand {
        None => program.clone(),
        Some(name) => format!("{program}-{name}"),
    };
    let Some(Page { text, .. }) = pages.iter().find(|page| page.name == wanted) else {
        let prefix = format!("{program}-");
        let names: Vec<&str> =
            pages.iter().filter_map(|page| page.name.strip_prefix(&prefix)).collect();
        let name = args.subcommand.as_deref().unwrap_or_default();
        return Err(Failure::usage(format_args!("there is no subcommand `{name}`"))
            .hint(format_args!("there are: {}", names.join(", "))));
    };
    stdout::write(text)
}
