//! Relays connections from one address to another: `relay LISTEN TO`. A test stops it with
//! SIGSTOP to hold back data.

use std::io::{Write, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::thread;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, to] = args.as_slice() else {
        return fail("expected two addresses: LISTEN TO");
    };
    match TcpListener::bind(listen) {
        Ok(listener) => relay(&listener, to),
        Err(error) => fail(&format!("cannot listen on {listen}: {error}")),
    }
}

fn relay(listener: &TcpListener, to: &str) -> ExitCode {
    // The process that started it waits for this line.
    let _ = writeln!(std::io::stderr(), "relays to {to}");
    for stream in listener.incoming().flatten() {
        // If the target is down, the client's connection is closed.
        let Ok(target) = TcpStream::connect(to) else { continue };
        for (from, into) in [(&stream, &target), (&target, &stream)] {
            if let (Ok(from), Ok(into)) = (from.try_clone(), into.try_clone()) {
                thread::spawn(move || pass_on(from, into));
            }
        }
    }
    ExitCode::SUCCESS
}

/// Copies one direction until either side closes, and then closes both.
fn pass_on(mut from: TcpStream, mut into: TcpStream) {
    let _ = copy(&mut from, &mut into);
    for stream in [from, into] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn fail(problem: &str) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "relay: {problem}");
    ExitCode::FAILURE
}
