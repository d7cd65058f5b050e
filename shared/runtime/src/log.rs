//! Flags of the log, and the termination message of a container.

use std::io::Write;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use nix::errno::Errno;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::exit::Failure;

/// Level and format of the log, which goes to stderr.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Minimum log level
    #[arg(
        long,
        env = "CONNECT_LOG_LEVEL",
        value_enum,
        default_value = "info",
        value_name = "LEVEL",
        global = true
    )]
    log_level: LogLevel,

    /// Log format
    #[arg(
        long,
        env = "CONNECT_LOG_FORMAT",
        value_enum,
        default_value = "plain",
        value_name = "FORMAT",
        global = true
    )]
    log_format: LogFormat,

    /// File whose contents are replaced by the final error, if the file exists. In a
    /// pod, `kubectl describe pod` shows it
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
    /// On stderr, without time, level and exit code.
    Bare,
}

/// What `kubectl describe pod` shows of a container that ended: why it failed, or what
/// was wrong when it was stopped.
#[derive(Clone, Debug)]
pub struct TerminationMessage {
    file: PathBuf,
}

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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    /// For people
    Plain,
    /// One JSON object per line
    Json,
}

/// Standard error without the standard library's lock, which threads that log at the same
/// time would wait for. The log writes each line at once, so lines stay whole.
struct Stderr;

// === impl Stderr ===

impl Write for Stderr {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        match nix::unistd::write(std::io::stderr(), line) {
            Ok(written) => Ok(written),
            Err(Errno::EINTR) => Err(Errno::EINTR.into()),
            // A closed stderr can't be reported anywhere.
            Err(_) => Ok(line.len()),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
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
        // Libraries (HTTP, TLS) only log warnings and errors.
        let filter = Targets::new().with_default(level).with_targets(
            ["hyper", "hyper_util", "reqwest", "rustls", "h2", "tower"]
                .map(|library| (library, level.min(LevelFilter::WARN))),
        );
        let registry = tracing_subscriber::registry().with(filter);
        let lines = tracing_subscriber::fmt::layer().with_writer(|| Stderr).with_target(false);
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

    /// Without a termination message, which belongs to the container's main process: a
    /// failed probe or hook must not overwrite it.
    #[must_use]
    pub fn without_termination_message(self) -> Self {
        Self { reports: Reports::Log, ..self }
    }

    /// For a probe. The kubelet makes an event of a failed probe's output and counts
    /// equal events: a timestamp would make each one different.
    #[must_use]
    pub fn of_a_probe(self) -> Self {
        Self { reports: Reports::Bare, ..self }
    }

    /// Reports the failure in the log, and as the container's termination message.
    pub fn report(&self, failure: &Failure) {
        if self.reports == Reports::Bare {
            // A closed stderr can't be reported anywhere.
            let _ = writeln!(std::io::stderr(), "{failure}");
            return;
        }
        tracing::error!(exit = failure.exit() as u8, "{failure}");
        if self.reports == Reports::LogAndMessage {
            self.termination_message().set(Some(&failure.to_string()));
        }
    }

    pub fn termination_message(&self) -> TerminationMessage {
        TerminationMessage { file: self.termination_log.clone() }
    }
}

/// Logs a panic in the log's format and on one line, for log collectors that read one
/// object a line.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string);
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or(payload.downcast_ref::<String>().map(String::as_str));
    tracing::error!(at, "panicked, which is a bug: {}", text.unwrap_or_default());
}

// === impl TerminationMessage ===

impl TerminationMessage {
    /// Replaces the message; `None` empties it. A write error is logged.
    pub fn set(&self, text: Option<&str>) {
        let Self { file } = self;
        if let Err(error) = replace_if_present(file, text) {
            tracing::warn!(file = %file.display(), %error, "cannot write the termination log");
        }
    }
}

/// The kubelet creates the file before it starts the container ("Customizing the
/// termination message" of the Kubernetes documentation), and reads its last 4 KiB.
/// Elsewhere there is no such file, and none is created.
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
