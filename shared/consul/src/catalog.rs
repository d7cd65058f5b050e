//! The servers' view of all nodes: the catalog, intentions and the tokens of an auth
//! method.
//!
//! Source: Consul's "Catalog HTTP API", "Health HTTP API", "Intentions - Connect HTTP
//! API" and "ACL HTTP API" pages.

use std::collections::BTreeMap;

use registration::Service;
use reqwest::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::agent::{Agent, Call, segment};
use crate::answer::{AgentCheck, AgentService, HealthyInstance};
use crate::error::{Cause, Error};

/// A list that may be incomplete for lack of rights.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Listed<T> {
    pub items: T,
    /// Whether the ACL token may not see all of it. Agents say so from Consul 1.11 on.
    pub is_filtered: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Node {
    pub node: String,
    pub address: String,
}

/// An agent, as gossip reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Member {
    /// The name of its node.
    pub name: String,
    /// 1 means alive.
    pub status: i64,
    /// Properties of the agent, its release among them.
    pub tags: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Intention {
    /// Name of the service that connects, or `*`.
    pub source_name: String,
    /// Cluster peer of that service; empty for the own cluster.
    pub source_peer: String,
    /// Name of the service that is connected to, or `*`.
    pub destination_name: String,
    /// `allow` or `deny`; empty if `permissions` decide.
    pub action: String,
    /// Rules for HTTP requests.
    pub permissions: Option<Vec<Value>>,
}

/// An ACL token created by a login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct LoginToken {
    /// Identifies the token without being a secret.
    #[serde(rename = "AccessorID")]
    pub accessor_id: String,
    /// Free text; contains the meta of the login.
    pub description: String,
    pub auth_method: String,
    /// In RFC 3339.
    pub create_time: String,
    /// In RFC 3339; `None`: the token never expires.
    pub expiration_time: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct AuthMethod {
    pub name: String,
    /// Such as `kubernetes`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// Lifetime of its tokens as a Go duration; empty or `0s`: unlimited.
    #[serde(rename = "MaxTokenTTL")]
    pub max_token_ttl: String,
}

/// The rights that an auth method gives to a login.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct BindingRule {
    #[serde(rename = "ID")]
    pub id: String,
    /// Which logins it matches; empty: all.
    pub selector: String,
    /// The service, role, node or policy that the token is bound to.
    pub bind_name: String,
}

/// What Consul writes before a login's meta.
const LOGIN: &str = "token created via login: ";

// === impl LoginToken ===

impl LoginToken {
    /// The meta given at the login; empty if there was none.
    pub fn meta(&self) -> BTreeMap<String, String> {
        let meta = self.description.strip_prefix(LOGIN);
        meta.and_then(|meta| serde_json::from_str(meta).ok()).unwrap_or_default()
    }

    /// Creation time in seconds since 1970.
    pub fn created(&self) -> Option<i64> {
        crate::acl::seconds(&self.create_time)
    }
}

// === impl Agent ===

impl Agent {
    /// Whether the servers list the registration without a critical check, so that
    /// clients use it. `None` if the ACL token lacks `node:read`.
    pub async fn is_listed(&self, service: &Service) -> Result<Option<bool>, Error> {
        let is_hidden =
            |error: &Error| matches!(error.cause, Cause::Denied(_)) && !error.is_unknown_token();
        match self.instances(service).await {
            Ok(Listed { items, is_filtered }) => Ok(match items.first() {
                Some(HealthyInstance { checks, .. }) => {
                    Some(checks.iter().all(|check| check.status != "critical"))
                }
                None => (!is_filtered).then_some(false),
            }),
            Err(error) if is_hidden(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether the servers have the registration, as far as the ACL token may see.
    pub async fn is_in_catalog(&self, service: &Service) -> Result<bool, Error> {
        Ok(!self.instances(service).await?.items.is_empty())
    }

    /// What the servers list of the registration.
    async fn instances(&self, service: &Service) -> Result<Listed<Vec<HealthyInstance>>, Error> {
        let path = format!("/v1/health/service/{}", segment(&service.name));
        let (id, address) = (service.id(), &service.address);
        // Another node may have a service of that id.
        let filter = format!("Service.ID == {id:?} and Service.Address == {address:?}");
        self.call(Method::GET, &path).query("filter", &filter).listed().await
    }

    /// The nodes of the catalog. With ACLs on, it requires `node:read`.
    pub async fn nodes(&self) -> Result<Listed<Vec<Node>>, Error> {
        self.call(Method::GET, "/v1/catalog/nodes").listed().await
    }

    /// The services of a node in the catalog. With ACLs on, it requires `node:read` and
    /// `service:read`.
    pub async fn services_of_node(&self, node: &str) -> Result<Listed<Vec<AgentService>>, Error> {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "PascalCase", default)]
        struct OfNode {
            services: Vec<AgentService>,
        }
        let path = format!("/v1/catalog/node-services/{}", segment(node));
        // The answer for an unknown node is null.
        let Listed { items, is_filtered } =
            self.call(Method::GET, &path).listed::<Option<OfNode>>().await?;
        Ok(Listed { items: items.unwrap_or_default().services, is_filtered })
    }

    /// The checks of a node and its services in the catalog.
    pub async fn checks_of_node(&self, node: &str) -> Result<Listed<Vec<AgentCheck>>, Error> {
        self.call(Method::GET, &format!("/v1/health/node/{}", segment(node))).listed().await
    }

    /// The names of all services, with their tags.
    pub async fn service_names(&self) -> Result<Listed<BTreeMap<String, Vec<String>>>, Error> {
        self.call(Method::GET, "/v1/catalog/services").listed().await
    }

    /// All agents that gossip reports.
    pub async fn members(&self) -> Result<Listed<Vec<Member>>, Error> {
        self.call(Method::GET, "/v1/agent/members").listed().await
    }

    /// All intentions. With ACLs on, it requires `intentions:read` for each service.
    pub async fn intentions(&self) -> Result<Listed<Vec<Intention>>, Error> {
        self.call(Method::GET, "/v1/connect/intentions").listed().await
    }

    /// Whether intentions allow one service to connect to another, ignoring rules for
    /// HTTP requests.
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

    /// An auth method; `None` if it does not exist. It requires `acl:read`.
    pub async fn auth_method(&self, name: &str) -> Result<Option<AuthMethod>, Error> {
        let path = format!("/v1/acl/auth-method/{}", segment(name));
        found(self.call(Method::GET, &path).answer().await)
    }

    /// The existing tokens of an auth method. It requires `acl:read`.
    pub async fn tokens_of(&self, auth_method: &str) -> Result<Vec<LoginToken>, Error> {
        self.call(Method::GET, "/v1/acl/tokens").query("authmethod", auth_method).answer().await
    }

    /// A token by its accessor id; `None` if it does not exist. It requires `acl:read`.
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

    /// Removes a service from the catalog. If its node's agent still has it, that agent
    /// restores it.
    pub async fn deregister_from_catalog(&self, node: &str, id: &str) -> Result<(), Error> {
        let body = serde_json::json!({"Node": node, "ServiceID": id});
        self.call(Method::PUT, "/v1/catalog/deregister").json(&body).done().await
    }
}

/// `None` for what does not exist: servers answer 404, and before 1.15 403 or null.
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
    /// Sends the request. Returns the parsed answer, and whether the ACL token may not
    /// see all of it.
    async fn listed<T: DeserializeOwned + Default>(self) -> Result<Listed<T>, Error> {
        let request = self.request();
        let answered = self.answered().await?;
        let is_filtered = answered.is_filtered;
        let items: Option<T> = answered.parsed(request)?;
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
