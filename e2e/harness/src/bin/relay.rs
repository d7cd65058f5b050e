//! Relays connections from one address to another: `relay LISTEN TO`. A test
//! stops it by a signal to keep what is sent from arriving.

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
    // Whoever started it waits for this line.
    let _ = writeln!(std::io::stderr(), "relays to {to}");
    for stream in listener.incoming().flatten() {
        // A target that is away is what the client is to see.
        let Ok(target) = TcpStream::connect(to) else { continue };
        for (from, into) in [(&stream, &target), (&target, &stream)] {
            if let (Ok(from), Ok(into)) = (from.try_clone(), into.try_clone()) {
                thread::spawn(move || pass_on(from, into));
            }
        }
    }
    ExitCode::SUCCESS
}

/// Passes one direction on until either side ends, and then ends both.
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
