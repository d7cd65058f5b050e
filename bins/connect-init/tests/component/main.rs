//! The whole program against a scripted agent on real sockets.
//!
//! - [`pod`]: a pod's init container, run as often as a test likes
//! - [`registers`]: all goes well: what is sent, what is written
//! - [`dry_run`]: what would be done is told, and nothing is done
//! - [`waits`]: an agent that is not there yet, or can't at the moment
//! - [`refused`]: an agent that says no, at each step
//! - [`folder`]: a directory or a helper that is invalid
//! - [`flags`]: a command line that is invalid
//! - [`transport`]: TLS and unix sockets
//! - [`acl`]: a token by login
//! - [`ends`]: ended by a signal, and run again

#![expect(clippy::unwrap_used, reason = "fixtures are tests, too: the panic is the report")]

mod acl;
mod dry_run;
mod ends;
mod flags;
mod folder;
mod pod;
mod refused;
mod registers;
mod transport;
mod waits;
