//! A stand-in for the image `hashicorp/http-echo` of the tutorial: it answers any HTTP
//! request with a fixed text.
//!
//! It has the same flags: `-text=TEXT` and `-listen=[HOST]:PORT`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};

fn main() -> ExitCode {
    let mut text = "hello-world".to_owned();
    let mut listen = ":5678".to_owned();
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("-text", value)) => value.clone_into(&mut text),
            Some(("-listen", value)) => value.clone_into(&mut listen),
            _ => {
                return fail(&format!(
                    "unknown flag `{argument}`: expected -text=TEXT or -listen=[HOST]:PORT"
                ));
            }
        }
    }
    // No host means every address, as in Go.
    let address = if listen.starts_with(':') { format!("0.0.0.0{listen}") } else { listen };
    let listener = match TcpListener::bind(&address) {
        Ok(listener) => listener,
        Err(error) => return fail(&format!("cannot listen on {address}: {error}")),
    };
    // As process 1 of its container it would ignore a signal without this.
    let end = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    if let Err(errno) = end.thread_block() {
        return fail(&format!("cannot handle signals: {errno}"));
    }
    std::thread::spawn(move || serve(&listener, &format!("{text}\n").into()));
    match end.wait() {
        Ok(_) => ExitCode::SUCCESS,
        Err(errno) => fail(&format!("cannot wait for signals: {errno}")),
    }
}

fn serve(listener: &TcpListener, body: &Arc<str>) {
    for stream in listener.incoming().flatten() {
        let body = Arc::clone(body);
        // A client that disconnects early is not an error.
        std::thread::spawn(move || drop(answer(&stream, &body)));
    }
}

/// Answers requests until the client closes, or asks to.
fn answer(mut stream: &TcpStream, body: &str) -> std::io::Result<()> {
    let mut head = BufReader::new(stream);
    let mut line = String::new();
    let mut goes_on = true;
    while goes_on {
        loop {
            line.clear();
            if head.read_line(&mut line)? == 0 {
                return Ok(());
            }
            if line.trim_end().is_empty() {
                break;
            }
            goes_on &= !line.trim_end().eq_ignore_ascii_case("connection: close");
        }
        let (length, connection) = (body.len(), if goes_on { "keep-alive" } else { "close" });
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: {connection}\r\n\r\n{body}"
        )?;
    }
    Ok(())
}

fn fail(problem: &str) -> ExitCode {
    // There is no log here to write to.
    let _ = writeln!(std::io::stderr(), "http-echo: {problem}");
    ExitCode::FAILURE
}
