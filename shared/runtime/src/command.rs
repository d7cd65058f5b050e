//! From `main` to the exit code.

use std::ffi::{OsStr, OsString};
use std::future::Future;
use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, Parser};
use tokio::runtime::Builder;

use crate::exit::{Exit, Failure};
use crate::log::LogArgs;
use crate::signal::Signals;

/// Parses command line and environment.
///
/// # Errors
/// The exit code: 64 if a flag is wrong (the error is on stderr), 0 after `--help` or
/// `--version`.
pub fn parse<A: Parser>() -> Result<A, ExitCode> {
    parse_command(A::command())
}

/// A flag of another program that users may write here.
#[derive(Clone, Copy, Debug)]
pub struct Elsewhere {
    /// The subcommand that it appears with.
    pub subcommand: &'static str,
    /// Without dashes.
    pub flag: &'static str,
    /// The replacement to suggest.
    pub instead: &'static str,
}

/// Like [`parse`], with hints for another program's flags.
///
/// # Errors
/// See [`parse`].
pub fn parse_beside<A: Parser>(elsewhere: &[Elsewhere]) -> Result<A, ExitCode> {
    read(A::command(), elsewhere)
}

/// Like [`parse`], for a command whose definition was changed, such as its defaults.
///
/// In all binaries:
/// - an environment variable that is set but empty counts as absent;
/// - the variable of a flag without a value accepts the booleans of Go's
///   [`strconv.ParseBool`](https://pkg.go.dev/strconv#ParseBool), as Consul's do;
/// - words of a fixed set, such as log levels, may be written in any case;
/// - an error names the variable if the value came from one.
///
/// # Errors
/// See [`parse`].
pub fn parse_command<A: Parser>(command: Command) -> Result<A, ExitCode> {
    read(command, &[])
}

fn read<A: Parser>(command: Command, elsewhere: &[Elsewhere]) -> Result<A, ExitCode> {
    write_pages(&command)?;
    let env = |name: &OsStr| std::env::var_os(name);
    let line: Vec<OsString> = std::env::args_os().collect();
    let mut command = as_consul_reads(command, &env);
    let parsed = command
        .try_get_matches_from_mut(&line)
        .and_then(|mut matches| A::from_arg_matches_mut(&mut matches));
    parsed.map_err(|mut error| {
        let is_page = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
        if let Some(word) = misread(&line).filter(|_| is_page) {
            let problem = format!("unexpected argument '{word}' found");
            error = command.error(ErrorKind::UnknownArgument, problem);
        }
        let variables = variables_of(&error, &command, &line, &env);
        if let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) {
            let value = without_credentials(value);
            error.insert(ContextKind::InvalidValue, ContextValue::String(value));
        }
        // Nothing can be done about a closed stdout or stderr.
        let _ = error.print();
        for (variable, flag) in variables {
            let _ = writeln!(
                std::io::stderr(),
                "hint: the environment variable {variable} sets {flag}; correct or unset it"
            );
        }
        let is_unknown = error.kind() == ErrorKind::UnknownArgument;
        let meant: Vec<_> = if is_unknown { of_others(elsewhere, &line) } else { Vec::new() };
        for Elsewhere { flag, instead, .. } in &meant {
            let _ = writeln!(std::io::stderr(), "hint: for -{flag} write: {instead}");
        }
        let said = subcommand_of(&line).and_then(|name| command.find_subcommand(name));
        if let Some(flag) = with_one_dash(said.unwrap_or(&command), &line) {
            let _ = writeln!(std::io::stderr(), "hint: flags begin with two dashes: {flag}");
        }
        match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Done.into(),
            _ => Exit::Usage.into(),
        }
    })
}

/// Writes manual pages and completions into the directory of `CONNECT_PAGES`, in a
/// binary that was built with the feature `pages`.
///
/// # Errors
/// The exit code: the pages are written, or can't be.
#[cfg(feature = "pages")]
pub fn write_pages(command: &Command) -> Result<(), ExitCode> {
    let Some(folder) = std::env::var_os("CONNECT_PAGES") else { return Ok(()) };
    Err(match pages::write_all(command, folder.as_ref()) {
        Ok(()) => Exit::Done.into(),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cannot write the pages: {error}");
            Exit::CannotWrite.into()
        }
    })
}

/// Does nothing in a release binary; see the feature `pages`.
///
/// # Errors
/// None.
#[cfg(not(feature = "pages"))]
pub fn write_pages(_command: &Command) -> Result<(), ExitCode> {
    Ok(())
}

/// Parses a boolean as Go's `strconv.ParseBool` does.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err("expected true or false (or 1, t, 0, f)".to_owned()),
    }
}

/// Replaces user and password of a URL by `***`: errors must not repeat a password.
pub fn without_credentials(text: &str) -> String {
    let (scheme, rest) = match text.find("://") {
        Some(at) => text.split_at(at + "://".len()),
        None => ("", text),
    };
    match rest.rsplit_once('@') {
        Some((credentials, host)) if !scheme.is_empty() || credentials.contains(':') => {
            format!("{scheme}***@{host}")
        }
        _ => text.to_owned(),
    }
}

/// Changes that apply to every flag of every binary.
fn as_consul_reads(command: Command, env: &dyn Fn(&OsStr) -> Option<OsString>) -> Command {
    let is_empty = |arg: &Arg| arg.get_env().and_then(env).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| {
            let arg = if is_empty(&arg) { arg.env(None::<&str>) } else { arg };
            match arg.get_action() {
                ArgAction::SetTrue | ArgAction::SetFalse => arg.value_parser(boolean),
                ArgAction::Set | ArgAction::Append => arg.ignore_case(true),
                _ => arg,
            }
        })
        .mut_subcommands(|command| as_consul_reads(command, env))
}

/// The environment variables whose values an error is about, each with its flag.
fn variables_of(
    error: &clap::Error,
    command: &Command,
    line: &[OsString],
    env: &dyn Fn(&OsStr) -> Option<OsString>,
) -> Vec<(String, String)> {
    let named = [ContextKind::InvalidArg, ContextKind::PriorArg];
    let named = named.iter().filter_map(|kind| error.get(*kind)).flat_map(|value| match value {
        ContextValue::String(arg) => vec![arg.clone()],
        ContextValue::Strings(args) => args.clone(),
        _ => Vec::new(),
    });
    let mut variables = Vec::new();
    for named in named {
        let Some(arg) = find(command, &named) else { continue };
        let (Some(variable), Some(flag)) = (arg.get_env(), arg.get_long()) else { continue };
        let flag = format!("--{flag}");
        let is_on_line = line.iter().filter_map(|word| word.to_str()).any(|word| {
            word.strip_prefix(&flag).is_some_and(|after| after.is_empty() || after.starts_with('='))
        });
        let pair = (variable.to_string_lossy().into_owned(), flag);
        if !is_on_line && env(variable).is_some() && !variables.contains(&pair) {
            variables.push(pair);
        }
    }
    variables
}

fn subcommand_of(line: &[OsString]) -> Option<&str> {
    let mut words = line.iter().skip(1).filter_map(|word| word.to_str());
    words.find(|word| !word.starts_with('-'))
}

/// The flags of another program on this line.
fn of_others<'e>(elsewhere: &'e [Elsewhere], line: &[OsString]) -> Vec<&'e Elsewhere> {
    let words = || line.iter().skip(1).filter_map(|word| word.to_str());
    let subcommand = subcommand_of(line).unwrap_or_default();
    let flags = words().take_while(|word| *word != "--").filter_map(|word| {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
        name.split('=').next()
    });
    let of = |name| elsewhere.iter().find(|it| it.subcommand == subcommand && it.flag == name);
    flags.filter_map(of).collect()
}

/// The first flag with one dash, as in Consul's CLI and other Go programs.
fn with_one_dash(command: &Command, line: &[OsString]) -> Option<String> {
    let words = line.iter().skip(1).filter_map(|word| word.to_str());
    words.take_while(|word| *word != "--").find_map(|word| {
        let name = word.strip_prefix('-').filter(|name| !name.starts_with('-'))?;
        let flag = format!("--{}", name.split('=').next().filter(|name| name.len() > 1)?);
        find(command, &flag).map(|_| flag)
    })
}

/// The first word that clap reads as `-h` or `-V`, though it is a flag with one dash: of
/// `-http-addr`, a script would see help and success.
fn misread(line: &[OsString]) -> Option<&str> {
    let words = line.iter().skip(1).filter_map(|word| word.to_str());
    let mut words = words.take_while(|word| *word != "--");
    words.find(|word| word.len() > 2 && (word.starts_with("-h") || word.starts_with("-V")))
}

/// The flag that an error names like `--port <PORT>`.
fn find<'c>(command: &'c Command, named: &str) -> Option<&'c Arg> {
    let long = named.strip_prefix("--")?.split([' ', '=', '[', '<']).next();
    let own = command.get_arguments().find(|arg| arg.get_long() == long);
    own.or_else(|| command.get_subcommands().find_map(|command| find(command, named)))
}

/// Opens the log, handles SIGTERM and SIGINT, runs `body` on this thread and reports
/// its failure.
pub fn start<F>(log: &LogArgs, body: impl FnOnce(Signals) -> F) -> ExitCode
where
    F: Future<Output = Result<ExitCode, Failure>>,
{
    start_on(Builder::new_current_thread(), log, body)
}

/// As [`start`], but what `body` spawns runs on the event loop of that builder.
pub fn start_on<F>(
    mut event_loop: Builder,
    log: &LogArgs,
    body: impl FnOnce(Signals) -> F,
) -> ExitCode
where
    F: Future<Output = Result<ExitCode, Failure>>,
{
    log.init();
    let outcome = event_loop
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::new(Exit::Failure, format_args!("cannot start the event loop: {error}"))
        })
        .and_then(|runtime| {
            let outcome = runtime.block_on(async { body(Signals::install()?).await });
            // A hanging lookup of a host name must not delay the exit.
            runtime.shutdown_background();
            outcome
        });
    outcome.unwrap_or_else(|failure| {
        log.report(&failure);
        failure.exit().into()
    })
}

#[cfg(test)]
mod tests {
    use clap::{Args, CommandFactory, FromArgMatches, Subcommand, ValueEnum};

    use super::*;

    #[derive(Debug, PartialEq, Eq, Parser)]
    struct Tool {
        #[arg(long, env = "TOOL_NAME")]
        name: Option<String>,
        #[arg(long, env = "TOOL_PORT", default_value = "1")]
        port: u16,
        #[arg(long, env = "TOOL_QUIET")]
        quiet: bool,
        #[arg(long, env = "TOOL_COLOUR", value_enum, default_value = "red")]
        colour: Colour,
        #[command(subcommand)]
        verb: Option<Verb>,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
    enum Colour {
        Red,
        Green,
    }

    #[derive(Debug, PartialEq, Eq, Subcommand)]
    enum Verb {
        Go(Go),
    }

    #[derive(Debug, PartialEq, Eq, Args)]
    struct Go {
        #[arg(long, env = "TOOL_TOKEN", conflicts_with = "user")]
        token: Option<String>,
        #[arg(long, env = "TOOL_USER")]
        user: Option<String>,
    }

    type Env = &'static [(&'static str, &'static str)];

    /// clap reads the environment when a flag is declared. Tests set the variables as
    /// defaults instead.
    fn read(line: &[&str], env: Env) -> Result<Tool, Box<(clap::Error, Command)>> {
        let lookup = |name: &OsStr| {
            env.iter().find(|(variable, _)| name == *variable).map(|(_, value)| (*value).into())
        };
        let command = as_consul_reads(Tool::command(), &lookup);
        let mut command = with_values(command, env);
        let line = ["tool"].iter().chain(line);
        match command.try_get_matches_from_mut(line) {
            Ok(matches) => Ok(Tool::from_arg_matches(&matches).unwrap()),
            Err(error) => Err(Box::new((error, command))),
        }
    }

    fn with_values(command: Command, env: Env) -> Command {
        let value = |arg: &Arg| {
            let name = arg.get_env()?;
            env.iter().find(|(variable, _)| name == *variable).map(|(_, value)| *value)
        };
        command
            .mut_args(|arg| match value(&arg) {
                Some(value) => arg.default_value(value),
                None => arg,
            })
            .mut_subcommands(|command| with_values(command, env))
    }

    fn variables(line: &[&str], env: Env) -> Vec<(String, String)> {
        let (error, command) = *read(line, env).unwrap_err();
        let line: Vec<OsString> = line.iter().map(OsString::from).collect();
        let lookup = |name: &OsStr| {
            env.iter().find(|(variable, _)| name == *variable).map(|(_, value)| (*value).into())
        };
        variables_of(&error, &command, &line, &lookup)
    }

    #[test]
    fn an_empty_variable_counts_as_absent() {
        let all = [("TOOL_NAME", ""), ("TOOL_PORT", ""), ("TOOL_QUIET", ""), ("TOOL_COLOUR", "")];
        let tool = read(&[], Box::leak(Box::new(all))).unwrap();
        assert_eq!(tool, read(&[], &[]).unwrap());
        let go = read(&["go"], &[("TOOL_TOKEN", ""), ("TOOL_USER", "")]).unwrap();
        assert_eq!(go.verb, Some(Verb::Go(Go { token: None, user: None })));
    }

    #[test]
    fn a_variable_of_a_flag_takes_gos_booleans() {
        for text in ["1", "t", "TRUE", "True"] {
            assert_eq!(boolean(text), Ok(true), "{text}");
        }
        for text in ["0", "f", "FALSE", "False"] {
            assert_eq!(boolean(text), Ok(false), "{text}");
        }
        assert!(boolean("yes").is_err());
        assert!(read(&[], &[("TOOL_QUIET", "1")]).unwrap().quiet);
        assert!(read(&["--quiet"], &[]).unwrap().quiet);
        assert!(!read(&[], &[("TOOL_QUIET", "F")]).unwrap().quiet);
        assert!(read(&[], &[("TOOL_QUIET", "yes")]).is_err());
    }

    #[test]
    fn a_word_of_a_fixed_set_may_be_written_in_any_case() {
        assert_eq!(read(&[], &[("TOOL_COLOUR", "GREEN")]).unwrap().colour, Colour::Green);
        assert_eq!(read(&["--colour", "Green"], &[]).unwrap().colour, Colour::Green);
    }

    #[test]
    fn an_error_names_the_variable_that_gave_the_value() {
        let pair = |variable: &str, flag: &str| vec![(variable.to_owned(), flag.to_owned())];
        assert_eq!(variables(&[], &[("TOOL_PORT", "x")]), pair("TOOL_PORT", "--port"));
        assert_eq!(variables(&["--port", "x"], &[("TOOL_PORT", "2")]), []);
        assert_eq!(variables(&["--port=x"], &[("TOOL_PORT", "2")]), []);
        assert_eq!(variables(&["--port", "x"], &[]), []);
        let line = ["go", "--user", "me", "--token", "t"];
        assert_eq!(variables(&line, &[("TOOL_TOKEN", "t")]), []);
    }

    #[test]
    fn an_error_repeats_no_password() {
        for text in ["http://me:s3cret@h:1", "me:s3cret@h:1", "ftp://me:s3c@ret@h", "x://s3cret@"] {
            let shown = without_credentials(text);
            assert!(!shown.contains("s3c") && shown.contains("***@"), "{shown}");
        }
        for text in ["envoy@sha256:abc", "http://h:1", ""] {
            assert_eq!(without_credentials(text), text);
        }
    }

    #[test]
    fn a_flag_of_another_program_is_recognized() {
        let elsewhere =
            [Elsewhere { subcommand: "bootstrap", flag: "wan-address", instead: "that" }];
        let found = |line: &[&str]| {
            let line: Vec<OsString> = line.iter().map(Into::into).collect();
            of_others(&elsewhere, &line).len()
        };
        for line in [
            &["x", "bootstrap", "-wan-address", "a:1"][..],
            &["x", "bootstrap", "--wan-address=a:1"],
        ] {
            assert_eq!(found(line), 1, "{line:?}");
        }
        for line in [
            &["x", "register", "-wan-address", "a:1"][..],
            &["x", "bootstrap", "--", "-wan-address"],
            &["x", "bootstrap", "wan-address"],
        ] {
            assert_eq!(found(line), 0, "{line:?}");
        }
    }

    #[test]
    fn a_flag_with_one_dash_is_recognized() {
        let command = || {
            Command::new("x").subcommand(
                Command::new("bootstrap").arg(Arg::new("proxy-id").long("proxy-id").short('p')),
            )
        };
        let found = |line: &[&str]| {
            let line: Vec<OsString> = line.iter().map(Into::into).collect();
            with_one_dash(&command(), &line)
        };
        assert_eq!(found(&["x", "bootstrap", "-proxy-id", "a"]), Some("--proxy-id".to_owned()));
        assert_eq!(found(&["x", "bootstrap", "-proxy-id=a"]), Some("--proxy-id".to_owned()));
        for line in [
            &["x", "bootstrap", "--proxy-id", "a"][..],
            &["x", "bootstrap", "-p", "a"],
            &["x", "bootstrap", "-other"],
            &["x", "--", "-proxy-id"],
            &["x", "-"],
        ] {
            assert_eq!(found(line), None, "{line:?}");
        }
    }
}
