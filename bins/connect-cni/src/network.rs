//! The pod's network namespace, and the redirect rules in it.

use std::fs::File;
use std::os::linux::fs::MetadataExt;

use netfilter::Netlink;
use nix::sched::{CloneFlags, setns};
use redirect::{Plan, Transaction};

use crate::failure::{Code, Failure};

/// A network namespace other than the node's.
pub(crate) struct Network {
    file: File,
    path: String,
}

const NETWORK_HINT: &str =
    "delete the pod if this repeats: the container runtime creates the network";

// === impl Network ===

impl Network {
    /// Opens the network namespace at `path`.
    ///
    /// # Errors
    /// It can't be opened, or is the node's own, which rules would cut off.
    pub(crate) fn open(path: &str) -> Result<Self, Failure> {
        let cannot = |error| {
            let problem = format_args!("cannot open the pod's network {path} (CNI_NETNS): {error}");
            Failure::new(Code::Io, problem, NETWORK_HINT)
        };
        let file = File::open(path).map_err(cannot)?;
        let id = |file: &File| file.metadata().map(|of| (of.st_dev(), of.st_ino()));
        let own = File::open("/proc/self/ns/net").and_then(|own| id(&own)).map_err(cannot)?;
        if id(&file).map_err(cannot)? == own {
            let problem = format_args!(
                "cannot redirect the pod's network {path} (CNI_NETNS): it is the node's own network"
            );
            let hint = "pods with hostNetwork cannot be transparent: remove the annotation";
            return Err(Failure::new(Code::Environment, problem, hint));
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Loads the rules and reads them back. Moves the calling thread into the pod's
    /// network.
    pub(crate) fn redirect(&self, plan: &Plan) -> Result<(), Failure> {
        self.enter()?;
        let transaction = Transaction::from(plan);
        let load = || {
            let mut netlink = Netlink::open()?;
            netlink.load(&transaction)?;
            Ok(netlink)
        };
        let netlink = load().map_err(|error| refused(&error, "cannot load the redirect rules"))?;
        netlink
            .verify(&transaction)
            .map_err(|error| refused(&error, "cannot verify the redirect rules after loading them"))
    }

    /// Compares the loaded rules with the plan. Moves the calling thread into the pod's
    /// network.
    pub(crate) fn verify(&self, plan: &Plan) -> Result<(), Failure> {
        self.enter()?;
        Netlink::open()
            .and_then(|netlink| netlink.verify(&Transaction::from(plan)))
            .map_err(|error| refused(&error, "the pod's redirect rules are not as expected"))
    }

    fn enter(&self) -> Result<(), Failure> {
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|errno| {
            let path = &self.path;
            let problem =
                format_args!("cannot enter the pod's network {path} (CNI_NETNS): {errno}");
            Failure::new(Code::Io, problem, NETWORK_HINT)
        })
    }
}

fn refused(error: &netfilter::Error, doing: &str) -> Failure {
    let code = match error {
        netfilter::Error::Different(_) => Code::Different,
        _ => Code::Rules,
    };
    Failure::new(code, format_args!("{doing}: {error}"), error.hint())
}
