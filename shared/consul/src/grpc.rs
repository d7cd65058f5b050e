//! Where an agent serves xDS, by what it says of itself. Pure.

use crate::answer::AgentSelf;

/// Where xDS is served, if neither a flag nor the agent says it.
pub const DEFAULT_GRPC: (&str, u16) = ("localhost", 8502);

/// The gRPC port and whether it speaks TLS; negative: off.
pub fn grpc_port(answer: &AgentSelf) -> Option<(bool, i64)> {
    let ports = answer.xds.as_ref().and_then(|xds| xds.ports.as_ref());
    if let Some(ports) = ports {
        if ports.tls > 0 {
            return Some((true, ports.tls));
        }
        if ports.plaintext > 0 {
            return Some((false, ports.plaintext));
        }
    }
    answer.debug.grpc_port.filter(|port| *port != 0).map(|port| (false, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grpc_port_of_old_and_new_agents() {
        let port = |json: &str| grpc_port(&serde_json::from_str(json).unwrap());
        assert_eq!(port(r#"{"xDS":{"Ports":{"Plaintext":8502,"TLS":8503}}}"#), Some((true, 8503)));
        assert_eq!(port(r#"{"xDS":{"Ports":{"Plaintext":8502,"TLS":-1}}}"#), Some((false, 8502)));
        assert_eq!(port(r#"{"DebugConfig":{"GRPCPort":8502}}"#), Some((false, 8502)));
        assert_eq!(port(r#"{"DebugConfig":{"GRPCPort":-1}}"#), Some((false, -1)));
        assert_eq!(port("{}"), None);
    }
}
