//! The subcommands `completions` and `man`.

use clap::CommandFactory;
use pages::{Page, completions as completions_of, manual};
use runtime::{Exit, Failure, stdout};

use crate::args::{Args, CompletionsArgs, ManArgs};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<(), Failure> {
    stdout::write(&completions_of(Args::command(), args.shell))
}

pub(crate) fn man(args: &ManArgs) -> Result<(), Failure> {
    let pages = manual(Args::command()).map_err(|error| {
        Failure::new(Exit::Failure, format_args!("cannot render the page: {error}"))
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
