//! The ACL token of a registration: had by login, kept in a file, given back by
//! logout.
//!
//! The file is the truth: a token that is in it was logged in and not yet
//! logged out, whichever process of the pod did it. A login that is under way
//! is not cut short by whoever waits for it: a token that nobody took note of
//! would stay on the servers for good.

mod bearer;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use consul::acl::{self, LoggedOut};
use consul::error::Cause;
use consul::{Agent, Error, SetupError};
use handoff::{Handoff, Login};
use runtime::Deadline;
use runtime::file::{WriteError, write_whole};
use runtime::retry::{self, Stopped};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::Mutex;

use self::bearer::Subject;
use super::Unused;

/// The token that an agent is spoken to with, by login.
#[derive(Debug)]
pub struct Session {
    agent: Agent,
    handoff: Handoff,
    login: Login,
    /// Held while a login is under way.
    under_way: Arc<Mutex<()>>,
    /// Tokens that were replaced, and are to be logged out once nothing uses them.
    replaced: Arc<RwLock<Vec<SecretString>>>,
}

/// Why a session has no good token, or did not give one back.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The file with the token of an earlier life can't be read.
    #[error("{0}")]
    Read(#[from] SetupError),
    /// The agent does not tell whether servers know the token.
    #[error("cannot look at the ACL token: {0}")]
    Look(Box<Stopped<Error>>),
    /// There is no login.
    #[error("cannot log in with auth method `{auth_method}` as {subject}: {cause}")]
    Login {
        /// The auth method.
        auth_method: String,
        /// Who logs in.
        subject: String,
        /// Why there is none.
        cause: Box<Stopped<LoginError>>,
        /// What to do next.
        hint: Option<String>,
    },
    /// Servers do not know the new token.
    #[error("{0}")]
    NotKnown(Box<Stopped<NotKnown>>),
    /// Envoy can't be given the new token.
    #[error("cannot put the new ACL token into {}: {source}", path.display())]
    Bootstrap {
        /// Envoy's bootstrap.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the session can't be written.
    #[error("{0}")]
    Write(#[from] WriteError),
    /// No time was left to await a login: its token is left.
    #[error("the login with auth method `{0}` was still under way")]
    UnderWay(String),
    /// The agent may have entries that were registered with the token.
    #[error(
        "the ACL token is left behind: the agent needs it to tell the servers that this pod is gone"
    )]
    Needed {
        /// The auth method.
        auth_method: String,
        /// What the token's description says of its owner.
        meta: BTreeMap<String, String>,
    },
    /// The token is not logged out.
    #[error("the ACL token is left behind: {cause}")]
    Left {
        /// The auth method.
        auth_method: String,
        /// What the token's description says of its owner.
        meta: BTreeMap<String, String>,
        /// Why.
        cause: Box<Stopped<Error>>,
    },
}

/// Why there is no login.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The agent did not give a token.
    #[error("{0}")]
    Agent(Error),
    /// There is nothing to prove who logs in.
    #[error("cannot read the bearer token: {0}")]
    BearerToken(String),
    /// The login ended unfinished.
    #[error("the login broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
    /// The token can't be written down.
    #[error("{0}")]
    Write(#[from] WriteError),
}

/// Servers do not know the token.
#[derive(Debug, thiserror::Error)]
pub enum NotKnown {
    /// They have not heard of it.
    #[error("the servers do not know the new ACL token yet")]
    Yet,
    /// The agent does not tell.
    #[error("{0}")]
    Agent(#[from] Error),
}

// === impl Session ===

impl Session {
    /// A session with that agent, whose token is in the folder. Nothing is
    /// asked yet.
    pub fn new(agent: &Agent, handoff: &Handoff, login: Login) -> Self {
        Self {
            agent: agent.clone(),
            handoff: handoff.clone(),
            login,
            under_way: Arc::default(),
            replaced: Arc::default(),
        }
    }

    /// How its token is had.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Opens it: with the token of an earlier life, if it is still good, else by
    /// a login. In the end the agent has the token, and servers know it: an
    /// agent that asks one that does not remembers that for 30 s.
    pub async fn open(&self, deadline: Deadline) -> Result<(), SessionError> {
        self.agent.set_token(read(&self.handoff.token())?);
        if !self.reopen(deadline).await? {
            tracing::info!("the ACL token of an earlier life is still good");
        }
        Ok(())
    }

    /// Opens it again after the agent answered that there is no such token: logs
    /// in anew, because somebody may have deleted it, unless servers know it. Then
    /// it is the agent that has to forget that it did not.
    ///
    /// Returns whether there is another token now.
    pub async fn reopen(&self, deadline: Deadline) -> Result<bool, SessionError> {
        let old = self.agent.token();
        if old.is_some() && self.is_known(deadline).await? {
            return Ok(false);
        }
        self.log_in(deadline).await?;
        // What a lagging server does not know, the leader may.
        self.note_replaced(old);
        self.await_known(deadline).await?;
        Ok(true)
    }

    /// As [`Self::reopen`], for a pod whose Envoy has had the token already: the
    /// one that starts next is to have the new one.
    pub async fn renew(&self, deadline: Deadline) -> Result<bool, SessionError> {
        let is_another = self.reopen(deadline).await?;
        if is_another {
            self.settle()?;
        }
        Ok(is_another)
    }

    /// Logs in again although the token is good: it is about to end. The old one
    /// is logged out by [`Self::log_out_replaced`], once nothing uses it.
    pub async fn replace(&self, deadline: Deadline) -> Result<(), SessionError> {
        let old = self.agent.token();
        self.log_in(deadline).await?;
        self.note_replaced(old);
        self.await_known(deadline).await?;
        self.settle()
    }

    /// Logs out tokens that were replaced, once both halves were registered with the
    /// one of now. A token that can't be logged out ends by itself.
    pub async fn log_out_replaced(&self, deadline: Deadline) {
        let replaced =
            std::mem::take(&mut *self.replaced.write().unwrap_or_else(PoisonError::into_inner));
        for token in replaced {
            let agent = self.agent.apart();
            agent.set_token(Some(token));
            let attempt = || agent.log_out();
            match retry::until(deadline, retry::NODE_AGENT, Error::is_transient, attempt).await {
                Ok(_) => tracing::debug!("logged out the ACL token that was replaced"),
                Err(stopped) => tracing::warn!(
                    "the ACL token that was replaced is left until it ends: {stopped}"
                ),
            }
        }
    }

    /// Gives the token to Envoy.
    pub fn settle(&self) -> Result<(), SessionError> {
        settle(&self.handoff, &self.agent)
    }

    /// Closes it: logs out, and removes the token. One that is gone is fine. What the
    /// agent may need stays, token and file: `unused` shows that it needs nothing.
    pub async fn close(
        &self,
        unused: Option<Unused>,
        deadline: Deadline,
    ) -> Result<(), SessionError> {
        // A login under way would have its token after we have looked.
        let waited = tokio::select! {
            biased;
            _done = self.under_way.lock() => Ok(()),
            () = deadline.passed() => {
                Err(SessionError::UnderWay(self.login.auth_method.clone()))
            }
        };
        if self.agent.token().is_none() {
            return waited;
        }
        let is_unused = match unused {
            Some(Unused { by_hearsay: true }) => !self.is_known(deadline).await.unwrap_or(true),
            Some(Unused { by_hearsay: false }) => true,
            None => false,
        };
        let Login { auth_method, meta, .. } = self.login.clone();
        if !is_unused {
            return Err(SessionError::Needed { auth_method, meta });
        }
        self.log_out_replaced(deadline).await;
        let attempt = || self.agent.log_out();
        match retry::until(deadline, retry::NODE_AGENT, Error::is_transient, attempt).await {
            Ok(LoggedOut::Done) => tracing::info!("logged out"),
            Ok(LoggedOut::WasUnknown) => tracing::info!("the ACL token was gone already"),
            Err(stopped) => {
                return Err(SessionError::Left { auth_method, meta, cause: Box::new(stopped) });
            }
        }
        self.agent.set_token(None);
        self.handoff.remove_token()?;
        waited
    }

    /// What to do about a registration that the token may not make.
    pub fn advice(&self, service: &str) -> String {
        let Self { login: Login { auth_method, .. }, .. } = self;
        let who = self.subject();
        format!(
            "the token that auth method `{auth_method}` gave to {who} lacks service:write on `{service}` and `{service}-sidecar-proxy`: {}",
            who.likely_rule(auth_method, service),
        )
    }

    fn note_replaced(&self, old: Option<SecretString>) {
        self.replaced.write().unwrap_or_else(PoisonError::into_inner).extend(old);
    }

    async fn is_known(&self, deadline: Deadline) -> Result<bool, SessionError> {
        let attempt = || self.agent.knows_token();
        retry::until(deadline, retry::NODE_AGENT, Error::is_transient, attempt)
            .await
            .map_err(|stopped| SessionError::Look(Box::new(stopped)))
    }

    /// Waits until servers know the token.
    async fn await_known(&self, deadline: Deadline) -> Result<(), SessionError> {
        // That it is not known passes, too.
        let attempt = || async {
            match self.agent.knows_token().await {
                Ok(true) => Ok(()),
                Ok(false) => Err(NotKnown::Yet),
                Err(error) => Err(NotKnown::Agent(error)),
            }
        };
        let passes = |error: &NotKnown| match error {
            NotKnown::Yet => true,
            NotKnown::Agent(error) => error.is_transient(),
        };
        retry::until_quietly(deadline, retry::REPLICATION, REPLICATED, passes, attempt)
            .await
            .map_err(|stopped| SessionError::NotKnown(Box::new(stopped)))
    }

    async fn log_in(&self, deadline: Deadline) -> Result<(), SessionError> {
        let attempt = || self.attempt();
        let passes = |error: &LoginError| match error {
            LoginError::Agent(error) => error.is_transient(),
            LoginError::BearerToken(_) | LoginError::Broken(_) | LoginError::Write(_) => false,
        };
        let auth_method = &self.login.auth_method;
        let logged_in = retry::until(deadline, retry::NODE_AGENT, passes, attempt).await;
        let subject = self.subject();
        logged_in.map_err(|stopped| {
            let hint = match &stopped {
                Stopped::Final(LoginError::Agent(error))
                | Stopped::Deadline(_, Some(LoginError::Agent(error))) => {
                    self.hint(error, &subject)
                }
                _ => None,
            };
            let (auth_method, subject) = (auth_method.clone(), subject.to_string());
            SessionError::Login { auth_method, subject, cause: Box::new(stopped), hint }
        })?;
        tracing::info!(auth_method, "logged in as {subject}");
        Ok(())
    }

    /// One login, up to the token's being in its file. It goes on if nobody
    /// waits for it any more.
    async fn attempt(&self) -> Result<(), LoginError> {
        let Self { agent, handoff, login, under_way, .. } = self;
        let (agent, file, login) = (agent.clone(), handoff.token(), login.clone());
        let guard = Arc::clone(under_way).lock_owned().await;
        let work = tokio::spawn(async move {
            let _guard = guard;
            let Login { auth_method, bearer_token_file, meta } = &login;
            let bearer_token = &bearer::read(bearer_token_file).map_err(LoginError::BearerToken)?;
            let login = acl::Login { auth_method, bearer_token, meta };
            let token = agent.log_in(&login).await.map_err(LoginError::Agent)?;
            // First, so that it is logged out if it can't be written down.
            agent.set_token(Some(token.clone()));
            write_whole(&file, 0o600, token.expose_secret().as_bytes())?;
            Ok(())
        });
        work.await?
    }

    /// What to do about a login that the agent refuses, as far as it is a matter of
    /// the auth method.
    fn hint(&self, error: &Error, who: &Subject) -> Option<String> {
        let Login { auth_method, bearer_token_file, .. } = &self.login;
        let file = bearer_token_file.display();
        match &error.cause {
            Cause::Denied(_) if error.is_unknown_token() => Some(format!(
                "Consul has no auth method `{auth_method}`: compare `consul acl auth-method list`, and --namespace and --partition"
            )),
            Cause::Denied(words) if words.contains("Permission denied") => Some(format!(
                "no binding rule of auth method `{auth_method}` fits {who}: compare `consul acl binding-rule list -method={auth_method}`; {}",
                who.likely_rule(auth_method, "<service>")
            )),
            Cause::Denied(_) => Some(format!(
                "auth method `{auth_method}` does not accept the bearer token in {file}: compare its issuer, audience and keys (or Kubernetes host and CA) with the token's, and the clocks"
            )),
            Cause::Refusal(401, _) => {
                Some("ACLs are off on the agent: leave --acl-auth-method away".to_owned())
            }
            _ => None,
        }
    }

    fn subject(&self) -> Subject {
        Subject::of(&self.login.bearer_token_file)
    }
}

/// How long servers may take to tell each other of a token without a warning.
const REPLICATED: Duration = Duration::from_secs(1);

/// Gives the agent's token to Envoy: into the file that Envoy watches, if there
/// is one, else into the bootstrap, for the Envoy that starts next.
pub fn settle(handoff: &Handoff, agent: &Agent) -> Result<(), SessionError> {
    let token = agent.token().unwrap_or_default();
    if handoff.has_envoy_token() {
        handoff.write_envoy_token(&bootstrap::token_secret(token.expose_secret()))?;
        return Ok(());
    }
    let path = handoff.bootstrap();
    let unusable = |source| SessionError::Bootstrap { path: path.clone(), source };
    let text = std::fs::read(&path).map_err(unusable)?;
    let mut document: Value =
        serde_json::from_slice(&text).map_err(|error| unusable(error.into()))?;
    let before = document.clone();
    bootstrap::replace_token(&mut document, token.expose_secret());
    if document != before {
        handoff.write_bootstrap(&document)?;
    }
    Ok(())
}

/// The token in a file; none if there is no such file, or nothing in it.
fn read(file: &Path) -> Result<Option<SecretString>, SetupError> {
    match file.try_exists() {
        Ok(false) => Ok(None),
        _ => consul::token::read(file),
    }
}
