//! An agent with ACLs and the default policy "deny", and an auth method of type `jwt` in
//! place of `kubernetes`: bearer tokens are JSON web tokens with the same claims, signed
//! with a key of our own.
//!
//! Sources: Consul's "JWT Auth Method" page, RFC 7519 (JSON Web Token).

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use reqwest::Method;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use crate::node::Node;
use crate::process::Process;
use crate::{Result, until};

/// The auth method's name.
pub const METHOD: &str = "pods";

/// The initial management token, known to the tests only.
const MANAGEMENT: &str = "7d6e1a54-0000-4000-8000-5eed5eed5eed";

const ISSUER: &str = "https://kubernetes.default.svc";
const AUDIENCE: &str = "consul";

/// The agent's ACLs and auth method.
pub struct Acls<'n> {
    node: &'n Node,
    key: EcdsaKeyPair,
    random: SystemRandom,
}

// === impl Acls ===

impl<'n> Acls<'n> {
    /// Starts the server and the node's agent with ACLs, without an auth method.
    ///
    /// # Errors
    /// Server or agent does not become ready.
    pub fn start(node: &'n Node) -> Result<(Self, Process)> {
        Self::start_with(node, &json!({}))
    }

    /// Like [`Self::start`], with additional settings of the agent.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(node: &'n Node, further: &Value) -> Result<(Self, Process)> {
        let mut settings = settings();
        node.start_server_with(&settings)?;
        json_patch::merge(&mut settings, further);
        let agent = node.start_agent_with(&settings)?;
        let random = SystemRandom::new();
        let unusable = |error: &dyn std::fmt::Display| format!("cannot make a key: {error}");
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
            .map_err(|error| unusable(&error))?;
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random)
                .map_err(|error| unusable(&error))?;
        let acls = Self { node, key, random };
        acls.await_management()?;
        Ok((acls, agent))
    }

    /// Starts the node's agent again, with ACLs and its old data.
    ///
    /// # Errors
    /// It does not become ready.
    pub fn start_agent(&self) -> Result<Process> {
        self.node.start_agent_with(&settings())
    }

    /// Settings of server and agent.
    pub fn server_settings(&self) -> Value {
        settings()
    }

    fn await_management(&self) -> Result<()> {
        until("the agent's ACLs", || self.ask(Method::GET, "/v1/acl/tokens", None).is_ok())
    }

    /// Creates the auth method, which accepts bearer tokens signed with our key.
    ///
    /// # Errors
    /// The agent rejects it.
    pub fn have_method(&self) -> Result<()> {
        self.have_method_with(&json!({}))
    }

    /// Like [`Self::have_method`], with additional settings of the auth method.
    ///
    /// # Errors
    /// As [`Self::have_method`].
    pub fn have_method_with(&self, further: &Value) -> Result<()> {
        let mut method = json!({
            "Name": METHOD,
            "Type": "jwt",
            "Config": {
                "BoundIssuer": ISSUER,
                "BoundAudiences": [AUDIENCE],
                "JWTSupportedAlgs": ["ES256"],
                "JWTValidationPubKeys": [self.public_key_pem()],
                "ClaimMappings": {"account": "account"},
            },
        });
        json_patch::merge(&mut method, further);
        self.ask(Method::PUT, "/v1/acl/auth-method", Some(&method)).map(drop)
    }

    /// Creates a binding rule that gives each login the identity of a service;
    /// `${value.account}` is the name of the service account.
    ///
    /// # Errors
    /// The agent rejects it.
    pub fn bind(&self, service: &str) -> Result<()> {
        let rule = json!({"AuthMethod": METHOD, "BindType": "service", "BindName": service});
        self.ask(Method::PUT, "/v1/acl/binding-rule", Some(&rule)).map(drop)
    }

    /// A bearer token of a service account, as the kubelet projects it, valid for that many
    /// seconds.
    ///
    /// # Errors
    /// It can't be signed.
    pub fn bearer_token(&self, account: &str, good_for: i64) -> Result<String> {
        let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())?;
        let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "iat": now - 3600, "exp": now + good_for,
            "sub": format!("system:serviceaccount:shop:{account}"), "account": account,
        });
        let signed =
            format!("{}.{}", encode(&json!({"alg": "ES256", "typ": "JWT"})), encode(&claims));
        let signature = self.key.sign(&self.random, signed.as_bytes());
        let signature = signature.map_err(|error| format!("cannot sign: {error}"))?;
        Ok(format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
    }

    /// Descriptions of the tokens created by login.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn logins(&self) -> Result<Vec<String>> {
        self.of_logins("Description")
    }

    /// Accessor ids of the tokens created by login.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn accessors(&self) -> Result<Vec<String>> {
        self.of_logins("AccessorID")
    }

    fn of_logins(&self, field: &str) -> Result<Vec<String>> {
        let tokens = self.ask(Method::GET, "/v1/acl/tokens", None)?;
        let tokens = tokens.as_array().cloned().unwrap_or_default();
        let logins = tokens.iter().filter(|token| token["AuthMethod"] == METHOD);
        Ok(logins.map(|token| token[field].as_str().unwrap_or_default().to_owned()).collect())
    }

    /// Deletes the tokens created by login, without telling the pods.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn revoke(&self) -> Result<()> {
        for accessor in self.accessors()? {
            self.ask(Method::DELETE, &format!("/v1/acl/token/{accessor}"), None)?;
        }
        Ok(())
    }

    /// The ids of the agent's services.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn services(&self) -> Result<Vec<String>> {
        let services = self.ask(Method::GET, "/v1/agent/services", None)?;
        Ok(services.as_object().into_iter().flat_map(|all| all.keys().cloned()).collect())
    }

    /// Sends a request to the agent, with the management token.
    ///
    /// # Errors
    /// There is no response, or its status is not a success.
    pub fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        self.node.as_holder(Some(MANAGEMENT), method, path, body)
    }

    /// The public key as PEM: the point, after the fixed bytes that name its curve
    /// (RFC 5480).
    fn public_key_pem(&self) -> String {
        const P256: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
            0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        let der = [&P256, self.key.public_key().as_ref()].concat();
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64_STANDARD.encode(der)
        )
    }
}

fn settings() -> Value {
    json!({
        "acl": {
            "enabled": true,
            "default_policy": "deny",
            "tokens": {"initial_management": MANAGEMENT, "agent": MANAGEMENT},
        },
    })
}
