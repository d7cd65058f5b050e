//! A service from flags.

use definition::{Definition, Format, Problem};
use registration::Service;
use runtime::Failure;

use crate::args::ServiceArgs;

/// The service that the flags define; `None` without `--name`.
pub(crate) fn definition(args: ServiceArgs) -> Option<Definition> {
    let ServiceArgs { name, id, address, port, tags, meta, tagged_addresses, socket, kind } = args;
    let service = Service {
        kind: kind.unwrap_or_default(),
        id: id.unwrap_or_default(),
        name: name?,
        tags,
        address: address.unwrap_or_default(),
        port: port.unwrap_or_default(),
        meta: meta.into_iter().collect(),
        tagged_addresses: tagged_addresses.into_iter().collect(),
        socket_path: socket.unwrap_or_default(),
        ..Service::default()
    };
    Some(Definition { service, ..Definition::default() })
}

/// Checks a service from flags like one from a file.
///
/// # Errors
/// The agent could not work with it.
pub(crate) fn check(definition: &Definition) -> Result<(), Failure> {
    let text = definition::print([&definition.service], Format::Json);
    match definition::parse("flags", Format::Json, &text) {
        Ok(_) => Ok(()),
        Err(problems) => {
            let problems = problems.iter().map(|Problem { path, message, .. }| {
                let key = path.strip_prefix("service.").unwrap_or(path);
                format!("{key}: {message}")
            });
            let problems = problems.collect::<Vec<_>>().join("; ");
            Err(Failure::usage(format_args!("{problems}: nothing was sent")))
        }
    }
}
