//! What the servers know of all nodes: the catalog, intentions and the tokens of
//! an auth method. For those who look at a whole cluster.
//!
//! Source: Consul's "Catalog HTTP API", "Health HTTP API", "Intentions - Connect HTTP
//! API" and "ACL HTTP API" pages.

use std::collections::BTreeMap;

use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::agent::{Agent, Call, segment};
use crate::answer::{AgentCheck, AgentService};
use crate::error::{Cause, Error};

/// A list, and whether the ACL token may see all of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed<T> {
    pub items: T,
    /// Whether something is left out that the ACL token may not see. Agents say it from
    /// Consul 1.11 on.
    pub is_filtered: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    pub node: String,
    pub address: String,
}

/// A member of the cluster: an agent, as gossip knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Member {
    /// The name of its node.
    pub name: String,
    /// 1: alive.
    pub status: i64,
    /// What it says of itself, its release among it.
    pub tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Intention {
    /// The service that connects, or `*`.
    pub source_name: String,
    /// The cluster peer that it is of; empty: none.
    pub source_peer: String,
    /// The service that is connected to, or `*`.
    pub destination_name: String,
    /// `allow` or `deny`; empty if it depends on the request.
    pub action: String,
    /// Rules for each request of HTTP.
    pub permissions: Option<Vec<Value>>,
}

/// A token that somebody got by login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LoginToken {
    /// Its public id.
    #[serde(rename = "AccessorID")]
    pub accessor_id: String,
    /// Free text; a login writes its meta into it.
    pub description: String,
    pub auth_method: String,
    /// When it was made (RFC 3339).
    pub create_time: String,
    /// When it ends (RFC 3339); none: never.
    pub expiration_time: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AuthMethod {
    pub name: String,
    /// Its type, such as `kubernetes`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// How long its tokens live, as a Go duration; empty or `0s`: without end.
    #[serde(rename = "MaxTokenTTL")]
    pub max_token_ttl: String,
}

/// Whom an auth method gives which rights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindingRule {
    #[serde(rename = "ID")]
    pub id: String,
    /// Whom it matches; empty: everybody.
    pub selector: String,
    /// The service, role, node or policy that they are bound to.
    pub bind_name: String,
}

/// What Consul writes in front of a login's meta.
const LOGIN: &str = "token created via login: ";

// === impl LoginToken ===

impl LoginToken {
    /// The meta that was given at the login; empty if there is none.
    pub fn meta(&self) -> BTreeMap<String, String> {
        let meta = self.description.strip_prefix(LOGIN);
        meta.and_then(|meta| serde_json::from_str(meta).ok()).unwrap_or_default()
    }

    /// When it was made, in seconds since 1970.
    pub fn created(&self) -> Option<i64> {
        crate::acl::seconds(&self.create_time)
    }
}

// === impl Agent ===

impl Agent {
    /// The nodes of the catalog. With ACLs on, it requires `node:read`.
    pub async fn nodes(&self) -> Result<Listed<Vec<Node>>, Error> {
        self.call(Method::GET, "/v1/catalog/nodes").listed().await
    }

    /// The services that the catalog has of a node. With ACLs on, it requires
    /// `node:read` and `service:read`.
    pub async fn services_of_node(&self, node: &str) -> Result<Listed<Vec<AgentService>>, Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct OfNode {
            services: Vec<AgentService>,
        }
        let path = format!("/v1/catalog/node-services/{}", segment(node));
        // A node that is gone is null.
        let Listed { items, is_filtered } =
            self.call(Method::GET, &path).listed::<Option<OfNode>>().await?;
        Ok(Listed { items: items.unwrap_or_default().services, is_filtered })
    }

    /// The checks that the catalog has of a node and its services.
    pub async fn checks_of_node(&self, node: &str) -> Result<Listed<Vec<AgentCheck>>, Error> {
        self.call(Method::GET, &format!("/v1/health/node/{}", segment(node))).listed().await
    }

    /// The names of all services, with their tags.
    pub async fn service_names(&self) -> Result<Listed<BTreeMap<String, Vec<String>>>, Error> {
        self.call(Method::GET, "/v1/catalog/services").listed().await
    }

    /// The agents that gossip knows.
    pub async fn members(&self) -> Result<Listed<Vec<Member>>, Error> {
        self.call(Method::GET, "/v1/agent/members").listed().await
    }

    /// All intentions. With ACLs on, it requires `intentions:read` for each service.
    pub async fn intentions(&self) -> Result<Listed<Vec<Intention>>, Error> {
        self.call(Method::GET, "/v1/connect/intentions").listed().await
    }

    /// Whether intentions let one service connect to another, those with rules for
    /// each request left aside.
    pub async fn allows(&self, source: &str, destination: &str) -> Result<bool, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Checked {
            allowed: bool,
        }
        let call = self.call(Method::GET, "/v1/connect/intentions/check");
        let call = call.query("source", source).query("destination", destination);
        call.answer().await.map(|Checked { allowed }| allowed)
    }

    pub async fn config_entry_names(&self, kind: &str) -> Result<Listed<Vec<String>>, Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct Entry {
            name: String,
        }
        let path = format!("/v1/config/{}", segment(kind));
        let Listed { items, is_filtered } =
            self.call(Method::GET, &path).listed::<Vec<Entry>>().await?;
        Ok(Listed { items: items.into_iter().map(|entry| entry.name).collect(), is_filtered })
    }

    /// An auth method; none if there is none of that name. It requires `acl:read`.
    pub async fn auth_method(&self, name: &str) -> Result<Option<AuthMethod>, Error> {
        let path = format!("/v1/acl/auth-method/{}", segment(name));
        found(self.call(Method::GET, &path).answer().await)
    }

    /// The tokens that an auth method gave and nobody took back. It requires `acl:read`.
    pub async fn tokens_of(&self, auth_method: &str) -> Result<Vec<LoginToken>, Error> {
        self.call(Method::GET, "/v1/acl/tokens").query("authmethod", auth_method).answer().await
    }

    /// A token by its public id; none if it is gone. It requires `acl:read`.
    pub async fn login_token(&self, accessor_id: &str) -> Result<Option<LoginToken>, Error> {
        let path = format!("/v1/acl/token/{}", segment(accessor_id));
        found(self.call(Method::GET, &path).answer().await)
    }

    /// Deletes a token. It requires `acl:write`.
    pub async fn delete_token(&self, accessor_id: &str) -> Result<(), Error> {
        let path = format!("/v1/acl/token/{}", segment(accessor_id));
        self.call(Method::DELETE, &path).done().await
    }

    /// The binding rules of an auth method. It requires `acl:read`.
    pub async fn binding_rules(&self, auth_method: &str) -> Result<Vec<BindingRule>, Error> {
        let call = self.call(Method::GET, "/v1/acl/binding-rules");
        call.query("authmethod", auth_method).answer().await
    }

    /// Takes a service out of the catalog, whatever the agent of its node thinks: an
    /// agent that has it puts it back.
    pub async fn deregister_from_catalog(&self, node: &str, id: &str) -> Result<(), Error> {
        let body = serde_json::json!({"Node": node, "ServiceID": id});
        self.call(Method::PUT, "/v1/catalog/deregister").json(&body).done().await
    }
}

/// None of what does not exist: servers say 404, and those before 1.15 answer 403 or
/// null.
fn found<T: DeserializeOwned>(answer: Result<Option<T>, Error>) -> Result<Option<T>, Error> {
    match answer {
        Err(Error { cause: Cause::NotFound(_), .. }) => Ok(None),
        Err(Error { cause: Cause::Denied(words) | Cause::Unavailable(500, words), .. })
            if words.contains("ACL not found") || words.contains("does not exist") =>
        {
            Ok(None)
        }
        answer => answer,
    }
}

// === impl Call ===

impl Call<'_> {
    /// Sends it and reads the answer, and whether something is left out of it.
    async fn listed<T: DeserializeOwned + Default>(self) -> Result<Listed<T>, Error> {
        let request = self.request();
        let (status, body, is_filtered) = self.filtered().await?;
        let failed = |cause| Error { request, cause };
        if status != 200 {
            return Err(failed(Cause::of_status(status, &String::from_utf8_lossy(&body))));
        }
        let items: Option<T> = serde_json::from_slice(&body)
            .map_err(|error| failed(Cause::Garbage(error.to_string())))?;
        Ok(Listed { items: items.unwrap_or_default(), is_filtered })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_logins_meta_is_read_from_the_description() {
        let token = |description: &str| LoginToken {
            description: description.to_owned(),
            ..LoginToken::default()
        };
        let meta = token(r#"token created via login: {"pod":"shop/web-0"}"#).meta();
        assert_eq!(meta.get("pod").map(String::as_str), Some("shop/web-0"));
        for other in ["", "token created via login", "token created via login: x", "{}"] {
            assert_eq!(token(other).meta(), BTreeMap::new(), "{other}");
        }
    }

    #[test]
    fn reads_the_catalog_as_agents_write_it() {
        let node: Node = serde_json::from_str(
            r#"{"ID":"x","Node":"n1","Address":"10.0.0.1","Meta":null,"TaggedAddresses":null}"#,
        )
        .unwrap();
        assert_eq!((node.node.as_str(), node.address.as_str()), ("n1", "10.0.0.1"));
        let method: AuthMethod =
            serde_json::from_str(r#"{"Name":"k8s","Type":"kubernetes","MaxTokenTTL":"1h0m0s"}"#)
                .unwrap();
        assert_eq!(method.max_token_ttl, "1h0m0s");
    }
}
