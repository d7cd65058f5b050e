//! The flags of the log, and the termination message of a container.

use std::io::Write;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::Failure;

/// How much is logged, and in which form. The log goes to stderr; stdout is
/// for data.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// The least severe messages that are logged
    #[arg(
        long,
        env = "CONNECT_LOG_LEVEL",
        value_enum,
        default_value = "info",
        value_name = "LEVEL",
        global = true
    )]
    log_level: LogLevel,

    /// The form of the log
    #[arg(
        long,
        env = "CONNECT_LOG_FORMAT",
        value_enum,
        default_value = "plain",
        value_name = "FORMAT",
        global = true
    )]
    log_format: LogFormat,

    /// File whose contents a failure replaces, if the file exists: in a pod,
    /// `kubectl describe pod` shows it
    #[arg(
        long,
        env = "CONNECT_TERMINATION_LOG",
        default_value = "/dev/termination-log",
        value_name = "FILE",
        global = true
    )]
    termination_log: PathBuf,

    #[arg(skip)]
    reports: Reports,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Reports {
    /// In the log, and as the container's termination message.
    #[default]
    LogAndMessage,
    Log,
    /// On stderr, without time, severity and exit code.
    Bare,
}

/// What `kubectl describe pod` shows of a container that ended: why it failed, or
/// what it suffered from when it was ended.
#[derive(Clone, Debug)]
pub struct TerminationMessage {
    file: PathBuf,
}

/// The severities.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogLevel {
    Trace,
    Debug,
    Info,
    #[value(alias = "warning")]
    Warn,
    /// Consul's agents also call it `err`.
    #[value(alias = "err")]
    Error,
    Off,
}

/// The forms of a line of the log.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Plain,
    /// One JSON object a line
    Json,
}

// === impl LogArgs ===

impl LogArgs {
    /// Opens the log. A second call has no effect, so that tests may share it.
    pub fn init(&self) {
        let level = match self.log_level {
            LogLevel::Trace => LevelFilter::TRACE,
            LogLevel::Debug => LevelFilter::DEBUG,
            LogLevel::Info => LevelFilter::INFO,
            LogLevel::Warn => LevelFilter::WARN,
            LogLevel::Error => LevelFilter::ERROR,
            LogLevel::Off => LevelFilter::OFF,
        };
        // The libraries below us (HTTP, TLS) speak only when they are in trouble.
        let filter = Targets::new().with_default(level).with_targets(
            ["hyper", "hyper_util", "reqwest", "rustls", "h2", "tower"]
                .map(|library| (library, level.min(LevelFilter::WARN))),
        );
        let registry = tracing_subscriber::registry().with(filter);
        let lines =
            tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
        let opened = match self.log_format {
            LogFormat::Plain => registry.with(lines.with_ansi(false)).try_init(),
            LogFormat::Json => {
                registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init()
            }
        };
        if opened.is_ok() {
            std::panic::set_hook(Box::new(log_panic));
        } else {
            tracing::debug!("the log is open already");
        }
    }

    /// Without a termination message: that is for the container's main process, so
    /// that a failed probe or hook does not overwrite why it ended.
    #[must_use]
    pub fn without_termination_message(self) -> Self {
        Self { reports: Reports::Log, ..self }
    }

    /// For a probe. The kubelet makes an event of what a failed probe writes, and counts
    /// those that are the same: the time would make each an event of its own.
    #[must_use]
    pub fn of_a_probe(self) -> Self {
        Self { reports: Reports::Bare, ..self }
    }

    /// Reports why the binary failed: in the log, and as the container's
    /// termination message if there is one.
    pub fn report(&self, failure: &Failure) {
        if self.reports == Reports::Bare {
            // Nobody is left to tell that stderr is closed.
            let _ = writeln!(std::io::stderr(), "{failure}");
            return;
        }
        tracing::error!(exit = failure.exit() as u8, "{failure}");
        if self.reports == Reports::LogAndMessage {
            self.termination_message().set(Some(&failure.to_string()));
        }
    }

    /// The container's termination message.
    pub fn termination_message(&self) -> TerminationMessage {
        TerminationMessage { file: self.termination_log.clone() }
    }
}

/// Logs a panic like everything else, in the log's form and on one line: whoever
/// collects the log reads one object a line.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string);
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or(payload.downcast_ref::<String>().map(String::as_str));
    tracing::error!(at, "panicked, which is a bug: {}", text.unwrap_or_default());
}

// === impl TerminationMessage ===

impl TerminationMessage {
    /// Replaces the message; none: there is nothing to say any more. What can't be
    /// written is logged.
    pub fn set(&self, text: Option<&str>) {
        let Self { file } = self;
        if let Err(error) = replace_if_present(file, text) {
            tracing::warn!(file = %file.display(), %error, "cannot write the termination log");
        }
    }
}

/// The kubelet makes the file before it starts the container ("Customizing the
/// termination message" of the Kubernetes documentation); elsewhere there is
/// none, and none is made. The kubelet reads the last 4 KiB at most.
fn replace_if_present(file: &Path, text: Option<&str>) -> std::io::Result<()> {
    match std::fs::OpenOptions::new().write(true).truncate(true).open(file) {
        Ok(mut file) => text.map_or(Ok(()), |text| writeln!(file, "{text}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Tool {
        #[command(flatten)]
        log: LogArgs,
    }

    #[test]
    fn the_last_failure_is_the_termination_message_and_a_probes_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("termination-log");
        let flag = format!("--termination-log={}", file.display());
        let Tool { log } = Tool::parse_from(["tool", &flag]);
        log.report(&Failure::usage("nobody asked for a file"));
        assert!(!file.exists());
        crate::file::write_whole(&file, 0o644, b"".as_slice()).unwrap();
        for text in ["a long failure at first", "short"] {
            log.report(&Failure::usage(text));
            assert_eq!(std::fs::read_to_string(&file).unwrap(), format!("{text}\n"));
        }
        log.clone().without_termination_message().report(&Failure::usage("the hook failed"));
        log.clone().of_a_probe().report(&Failure::usage("the probe failed"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "short\n");
        log.termination_message().set(None);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "");
    }
}
