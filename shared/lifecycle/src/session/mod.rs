//! The ACL token of a registration: from login, in a file, until logout.
//!
//! The file decides: a token in it was logged in and not logged out, by whichever
//! process of the pod. A login in flight is never interrupted: a token that nobody
//! recorded would stay on the servers for good.

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
use tokio::time::Instant;

use self::bearer::Subject;
use super::Unused;

/// The ACL token from a login.
#[derive(Debug)]
pub struct Session {
    agent: Agent,
    handoff: Handoff,
    login: Login,
    /// Held during a login.
    under_way: Arc<Mutex<()>>,
    /// Replaced tokens, to be logged out once nothing uses them.
    replaced: Arc<RwLock<Vec<SecretString>>>,
    /// The last login of this process; `None` if there was none.
    last: Arc<RwLock<Option<Last>>>,
}

/// A login that got a token.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    /// Whether [`Session::settle`] has handed the token on.
    is_settled: bool,
}

/// Why a session has no valid token, or could not log out.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The file with the token of an earlier run can't be read.
    #[error("{0}")]
    Read(#[from] SetupError),
    /// The agent does not answer whether the servers know the token.
    #[error("cannot look at the ACL token: {0}")]
    Look(Box<Stopped<Error>>),
    /// The login failed.
    #[error("cannot log in with auth method `{auth_method}` as {subject}: {cause}")]
    Login {
        /// The auth method.
        auth_method: String,
        /// Who tried to log in.
        subject: String,
        /// Why there is none.
        cause: Box<Stopped<LoginError>>,
        /// What to do next.
        hint: Option<String>,
    },
    /// The servers do not know the new token.
    #[error("{0}")]
    NotKnown(Box<Stopped<NotKnown>>),
    /// The new token can't be handed to Envoy.
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
    /// There was no time to wait for a login in flight, whose token is left behind.
    #[error("the login with auth method `{0}` was still under way")]
    UnderWay(String),
    /// The agent may have entries that were registered with the token.
    #[error(
        "the ACL token is left behind: the agent needs it to tell the servers that this pod is gone"
    )]
    Needed {
        /// The auth method.
        auth_method: String,
        /// Identifies the pod in the token's description.
        meta: BTreeMap<String, String>,
    },
    /// The logout failed.
    #[error("the ACL token is left behind: {cause}")]
    Left {
        /// The auth method.
        auth_method: String,
        /// Identifies the pod in the token's description.
        meta: BTreeMap<String, String>,
        /// Why.
        cause: Box<Stopped<Error>>,
    },
}

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The agent returned no token.
    #[error("{0}")]
    Agent(Error),
    /// There is no bearer token.
    #[error("cannot read the bearer token: {0}")]
    BearerToken(String),
    /// The login task ended prematurely.
    #[error("the login broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
    /// The token can't be written to its file.
    #[error("{0}")]
    Write(#[from] WriteError),
}

/// The servers do not know the token.
#[derive(Debug, thiserror::Error)]
pub enum NotKnown {
    /// They have not heard of it yet.
    #[error("the servers do not know the new ACL token yet")]
    Yet,
    /// The agent does not answer.
    #[error("{0}")]
    Agent(#[from] Error),
}

// === impl SessionError ===

impl SessionError {
    /// Whether the agent does not answer whether the servers know the token.
    pub(super) fn is_unanswered(&self) -> bool {
        matches!(self, Self::Look(stopped) if matches!(**stopped, Stopped::Deadline(..)))
    }
}

// === impl Session ===

impl Session {
    /// A session with its token in the directory. Nothing is requested yet.
    pub fn new(agent: &Agent, handoff: &Handoff, login: Login) -> Self {
        Self {
            agent: agent.clone(),
            handoff: handoff.clone(),
            login,
            under_way: Arc::default(),
            replaced: Arc::default(),
            last: Arc::default(),
        }
    }

    /// The parameters of the login.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// Uses the token of an earlier run if it is still valid, else logs in. Afterwards
    /// the agent has the token and the servers know it: an agent caches "not found" for
    /// 30 s.
    pub async fn open(&self, deadline: Deadline) -> Result<(), SessionError> {
        self.agent.set_token(read(&self.handoff.token())?);
        if !self.reopen(deadline).await? {
            tracing::info!("reusing the ACL token of the previous run");
        }
        Ok(())
    }

    /// Opens the session again after the agent answered that the token does not exist.
    /// If the servers do not know it either, somebody may have deleted it: logs in
    /// again. Otherwise the agent's cached answer has to expire.
    ///
    /// Returns whether there is a new token.
    pub async fn reopen(&self, deadline: Deadline) -> Result<bool, SessionError> {
        let old = self.agent.token();
        if old.is_some() && self.look(deadline).await? {
            return Ok(false);
        }
        self.log_in(old, deadline).await?;
        self.await_known(deadline).await?;
        Ok(true)
    }

    /// Like [`Self::reopen`], and hands the new token to Envoy.
    pub async fn renew(&self, deadline: Deadline) -> Result<bool, SessionError> {
        let is_another = self.reopen(deadline).await? || self.is_unsettled();
        if is_another {
            self.settle()?;
        }
        Ok(is_another)
    }

    /// Logs in again because the token is about to expire. [`Self::log_out_replaced`]
    /// logs the old one out, once nothing uses it.
    pub async fn replace(&self, deadline: Deadline) -> Result<(), SessionError> {
        let old = self.agent.token();
        self.log_in(old, deadline).await?;
        self.await_known(deadline).await?;
        self.settle()
    }

    /// Logs out replaced tokens, once service and proxy were registered with the
    /// current one. A token whose logout fails expires by itself.
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

    /// Hands the token to Envoy, and to other processes of the pod if the login could not.
    pub fn settle(&self) -> Result<(), SessionError> {
        if self.is_unsettled()
            && let Some(token) = self.agent.token()
        {
            write_whole(&self.handoff.token(), 0o600, token.expose_secret().as_bytes())?;
        }
        settle(&self.handoff, &self.agent)?;
        if let Some(last) = &mut *self.last.write().unwrap_or_else(PoisonError::into_inner) {
            last.is_settled = true;
        }
        Ok(())
    }

    /// Whether a login got a token that was not handed on: something failed after that, or
    /// nobody waited for it.
    pub fn is_unsettled(&self) -> bool {
        self.last().is_some_and(|last| !last.is_settled)
    }

    /// How long ago this process logged in; `None` if it did not.
    pub fn age(&self) -> Option<Duration> {
        self.last().map(|last| last.at.elapsed())
    }

    fn last(&self) -> Option<Last> {
        *self.last.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs out and removes the token, if it exists. `unused` proves that the agent no
    /// longer needs it; without the proof, token and file stay.
    pub async fn close(
        &self,
        unused: Option<Unused>,
        deadline: Deadline,
    ) -> Result<(), SessionError> {
        // A login in flight could write its token after we have looked.
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
            Some(Unused { by_hearsay: true }) => !self.look(deadline).await.unwrap_or(true),
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

    /// What to do if the token may not register the service.
    pub fn advice(&self, service: &str) -> String {
        let Self { login: Login { auth_method, .. }, .. } = self;
        let who = self.subject();
        format!(
            "the token that auth method `{auth_method}` gave to {who} lacks service:write on `{service}` and `{service}-sidecar-proxy`: {}",
            who.likely_rule(auth_method, service),
        )
    }

    /// Whether a token was replaced with which the agent may still have entries.
    pub fn has_replaced(&self) -> bool {
        !self.replaced.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Whether the servers know the token, asked before a deregistration: it takes at most a
    /// second, and at most a quarter of the time that is left.
    pub async fn look_first(&self, left: Duration) -> Result<bool, SessionError> {
        self.look(Deadline::after(LOOK.min(left / 4))).await
    }

    /// Whether the servers know the token.
    async fn look(&self, deadline: Deadline) -> Result<bool, SessionError> {
        let attempt = || self.agent.knows_token();
        retry::until(deadline, retry::NODE_AGENT, Error::is_transient, attempt)
            .await
            .map_err(|stopped| SessionError::Look(Box::new(stopped)))
    }

    /// Waits until the servers know the token.
    async fn await_known(&self, deadline: Deadline) -> Result<(), SessionError> {
        // "Not known" is transient, too.
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

    /// Logs in, unless the `old` token was replaced already.
    async fn log_in(
        &self,
        old: Option<SecretString>,
        deadline: Deadline,
    ) -> Result<(), SessionError> {
        let attempt = || self.attempt(old.clone());
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

    /// One login, until its token is in the file. It goes on even if nobody waits for
    /// it.
    async fn attempt(&self, old: Option<SecretString>) -> Result<(), LoginError> {
        let Self { agent, handoff, login, under_way, replaced, last } = self;
        let (agent, file, login) = (agent.clone(), handoff.token(), login.clone());
        let (replaced, last) = (Arc::clone(replaced), Arc::clone(last));
        let guard = Arc::clone(under_way).lock_owned().await;
        let work = tokio::spawn(async move {
            let _guard = guard;
            if !is_same(agent.token().as_ref(), old.as_ref()) {
                // By a login that nobody waited for.
                return Ok(());
            }
            let Login { auth_method, bearer_token_file, meta } = &login;
            let bearer_token = &bearer::read(bearer_token_file).map_err(LoginError::BearerToken)?;
            let login = acl::Login { auth_method, bearer_token, meta };
            let token = agent.log_in(&login).await.map_err(LoginError::Agent)?;
            // First, so that the token is logged out if its file can't be written.
            agent.set_token(Some(token.clone()));
            *last.write().unwrap_or_else(PoisonError::into_inner) =
                Some(Last { at: Instant::now(), is_settled: false });
            // It may exist nevertheless: the leader may know a token that a lagging server
            // does not.
            replaced.write().unwrap_or_else(PoisonError::into_inner).extend(old);
            write_whole(&file, 0o600, token.expose_secret().as_bytes())?;
            Ok(())
        });
        work.await?
    }

    /// What to do about a refused login, if the auth method is the cause.
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
                Some("ACLs are off on the agent: omit --acl-auth-method".to_owned())
            }
            _ => None,
        }
    }

    fn subject(&self) -> Subject {
        Subject::of(&self.login.bearer_token_file)
    }
}

/// How long [`Session::look_first`] may take.
const LOOK: Duration = Duration::from_secs(1);

/// Time after which slow replication of a token is logged as a warning.
const REPLICATED: Duration = Duration::from_secs(1);

/// Hands the agent's token to Envoy: in the file that Envoy watches, if there is one,
/// else in the bootstrap for the next start of Envoy.
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

fn is_same(one: Option<&SecretString>, other: Option<&SecretString>) -> bool {
    one.map(SecretString::expose_secret) == other.map(SecretString::expose_secret)
}

/// The token in a file; `None` if the file is missing or empty.
fn read(file: &Path) -> Result<Option<SecretString>, SetupError> {
    match file.try_exists() {
        Ok(false) => Ok(None),
        _ => consul::token::read(file),
    }
}
