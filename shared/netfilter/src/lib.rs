//! Loads redirect rules by netlink into the network namespace of the calling thread, and
//! reads them back. Requires the capability NET_ADMIN.

use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use redirect::answer::answers;
use redirect::message::List;
use redirect::{Answer, Difference, Transaction};

/// Why the kernel did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The process has not the right.
    #[error("{0}: the kernel denies it")]
    Denied(&'static str),
    /// There is no netlink for netfilter.
    #[error("{0}: there is no netfilter here: {1}")]
    NoNetfilter(&'static str, Errno),
    /// A part of `nf_tables` is missing.
    #[error("{0}: this kernel lacks a part of nf_tables: {1}")]
    NoPart(String, Errno),
    /// Something else.
    #[error("{0}: {1}")]
    Other(String, Errno),
    /// The rules are not those that were loaded.
    #[error(transparent)]
    Different(#[from] Difference),
}

/// How long the kernel may take for an answer.
const PATIENCE: TimeVal = TimeVal::new(5, 0);

/// The kernel answers a list in pieces of at most this.
const PIECE: usize = 64 << 10;

/// A way to the kernel's `nf_tables`.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

// === impl Netlink ===

impl Netlink {
    /// # Errors
    /// There is none here.
    pub fn open() -> Result<Self, Error> {
        open().map(Self)
    }

    /// Loads a transaction: all of it or nothing.
    ///
    /// # Errors
    /// It was refused. What was loaded before is as it was.
    pub fn load(&mut self, transaction: &Transaction) -> Result<(), Error> {
        match self.give(&transaction.encode_first(), transaction) {
            Err(Error::Other(_, Errno::EEXIST)) => {
                // Further refusals of the same transaction wait in the old one.
                *self = Self::open()?;
                self.give(&transaction.encode(), transaction)
            }
            other => other,
        }
    }

    fn give(&self, bytes: &[u8], transaction: &Transaction) -> Result<(), Error> {
        let Self(socket) = self;
        // By default 200 kB fit. That it can't be raised shows when it is sent.
        let _ = setsockopt(socket, sockopt::SndBufForce, &(2 * bytes.len()));
        send(socket, bytes, "sending the rules")?;
        let mut piece = vec![0; PIECE];
        loop {
            for answer in answers(receive(socket, &mut piece)?) {
                match answer {
                    Answer::Refused { number, errno } => {
                        return Err(refused(transaction.what(number), Errno::from_raw(errno)));
                    }
                    Answer::Done => return Ok(()),
                    Answer::Item { .. } => {}
                }
            }
        }
    }

    /// Reads the rules back.
    ///
    /// # Errors
    /// They are others, or can't be read.
    pub fn verify(&self, transaction: &Transaction) -> Result<(), Error> {
        for list in [List::Chains, List::Rules] {
            transaction.compare(list, &self.read(list)?)?;
        }
        Ok(())
    }

    fn read(&self, list: List) -> Result<Vec<Vec<u8>>, Error> {
        let Self(socket) = self;
        send(socket, &list.encode(), "reading the rules")?;
        let mut ours = Vec::new();
        let mut piece = vec![0; PIECE];
        loop {
            let read = receive(socket, &mut piece)?;
            ours.extend(list.ours(read));
            for answer in answers(read) {
                match answer {
                    Answer::Refused { errno, .. } => {
                        return Err(refused("reading the rules", Errno::from_raw(errno)));
                    }
                    Answer::Done => return Ok(ours),
                    Answer::Item { .. } => {}
                }
            }
        }
    }
}

fn open() -> Result<OwnedFd, Error> {
    let what = "opening a netlink socket";
    let failed = |errno| match errno {
        Errno::EPERM | Errno::EACCES => Error::Denied(what),
        // By a kernel without it, or by a sandbox that shows none.
        Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::ESOCKTNOSUPPORT => {
            Error::NoNetfilter(what, errno)
        }
        errno => Error::Other(what.to_owned(), errno),
    };
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .map_err(failed)?;
    bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &PATIENCE).map_err(failed)?;
    Ok(socket)
}

fn send(socket: &OwnedFd, bytes: &[u8], what: &str) -> Result<(), Error> {
    let kernel = NetlinkAddr::new(0, 0);
    match sendto(socket.as_raw_fd(), bytes, &kernel, MsgFlags::empty()) {
        Ok(_) => Ok(()),
        Err(errno) => Err(refused(what, errno)),
    }
}

fn receive<'b>(socket: &OwnedFd, piece: &'b mut [u8]) -> Result<&'b [u8], Error> {
    loop {
        match recv(socket.as_raw_fd(), piece, MsgFlags::empty()) {
            Ok(length) => return Ok(piece.get(..length).unwrap_or_default()),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                return Err(Error::Other("no answer within 5 s".to_owned(), Errno::ETIMEDOUT));
            }
            Err(errno) => return Err(Error::Other("waiting for the kernel".to_owned(), errno)),
        }
    }
}

/// What a refusal means.
fn refused(what: &str, errno: Errno) -> Error {
    match errno {
        Errno::EPERM => Error::Denied("changing or reading the rules"),
        // Another subsystem answers in place of nf_tables; or a kind of chain or of
        // expression is not known.
        Errno::EOPNOTSUPP | Errno::ENOENT | Errno::EINVAL => Error::NoPart(what.to_owned(), errno),
        errno => Error::Other(what.to_owned(), errno),
    }
}

// === impl Error ===

impl Error {
    /// What to do next, as an error's hint says it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Denied(_) => "run it as user 0 with the capability NET_ADMIN",
            Self::NoNetfilter(..) => {
                "the node's kernel or the pod's sandbox (gVisor, for instance) has no \
                 netfilter: give this pod no transparent proxy"
            }
            Self::NoPart(..) => {
                "transparent proxy needs Linux 5.2 or newer with the modules nf_tables, \
                 nft_chain_nat, nft_nat and nft_redir: load them on the node"
            }
            Self::Other(..) => "see the kernel's log on the node",
            Self::Different(_) => {
                "something else changes the table connect_redirect in the pod's network"
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use redirect::Plan;

    use super::*;

    /// In a network of its own.
    #[test]
    fn a_rule_that_is_refused_leaves_the_old_ones() {
        let root = nix::unistd::Uid::effective().is_root();
        let root = root.then_some(()).ok_or_else(|| "this takes root".to_owned());
        if testkit::or_skip(root).is_none() {
            return;
        }
        std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            let plan = |uid| Plan {
                inbound: 20000,
                outbound: 15001,
                exclude_uids: vec![uid],
                exclude_inbound_ports: Vec::new(),
                exclude_outbound_ports: Vec::new(),
                exclude_outbound_cidrs: Vec::new(),
                services: [].into(),
                dns: None,
            };
            let (old, new) = (Transaction::from(&plan(1)), Transaction::from(&plan(2)));
            let mut netlink = Netlink::open().unwrap();
            netlink.load(&old).unwrap();
            // An expression in the last rule that no kernel knows.
            let mut bytes = new.encode();
            let at = bytes.windows(5).rposition(|bytes| bytes == b"redir").unwrap();
            bytes[at] = b'x';
            let error = netlink.give(&bytes, &new).unwrap_err().to_string();
            assert!(error.contains("redirect to :20000` of chain prerouting"), "{error}");
            netlink.verify(&old).unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_refusal_says_what_is_missing() {
        let message = |errno| {
            let error = refused("chain output", errno);
            format!("{error}; {}", error.hint())
        };
        assert!(message(Errno::EPERM).contains("NET_ADMIN"));
        let no_part = message(Errno::ENOENT);
        assert!(no_part.contains("chain output") && no_part.contains("nft_chain_nat"), "{no_part}");
        assert!(message(Errno::EOPNOTSUPP).contains("nf_tables"));
        assert!(message(Errno::ENOMEM).contains("ENOMEM"));
    }
}
