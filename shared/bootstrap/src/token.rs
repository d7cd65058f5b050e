//! Another ACL token in a document that is there.

use serde_json::Value;

/// The metadata by which Envoy gives its token to the agent.
pub(crate) const METADATA_KEY: &str = "x-consul-token";

/// Puts another ACL token in the place of each that a document has; how many
/// there were. A document by a template of the user's may have it anywhere.
pub fn replace_token(document: &mut Value, token: &str) -> usize {
    match document {
        Value::Object(members) => {
            let is_token = members.get("key").is_some_and(|key| key == METADATA_KEY);
            match members.get_mut("value") {
                Some(value) if is_token => {
                    *value = token.into();
                    1
                }
                _ => members.values_mut().map(|value| replace_token(value, token)).sum(),
            }
        }
        Value::Array(list) => list.iter_mut().map(|value| replace_token(value, token)).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Input, Token, XdsAddress};

    #[test]
    fn another_token_is_all_that_changes() {
        let rendered = |token: &str| {
            let agent = XdsAddress::Tcp(([10, 0, 0, 1], 8502).into());
            let mut input = Input::new("web-sidecar-proxy", "web", agent);
            input.xds.token = Token::new(token);
            crate::render(&input, &|_| None).unwrap()
        };
        let mut document = rendered("old");
        assert_eq!(replace_token(&mut document, "new"), 1);
        assert_eq!(document, rendered("new"));
    }
}
