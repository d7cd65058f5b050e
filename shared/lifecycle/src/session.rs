//! The ACL token of a registration: had by login, kept in a file, given back by
//! logout.
//!
//! The file is the truth: a token that is in it was logged in and not yet
//! logged out, whichever process of the pod did it. A login that is under way
//! is not cut short by whoever waits for it: a token that nobody took note of
//! would stay on the servers for good.

mod bearer;

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use consul::acl::{self, LoggedOut};
use consul::error::Cause;
use consul::{Agent, Error};
use handoff::{Handoff, Login};
use runtime::deadline::Cut;
use runtime::file::{WriteError, write_whole};
use runtime::{Deadline, Exit, Failure, retry};
use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;
use tokio::sync::Mutex;

use self::bearer::Subject;

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

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
enum LoginError {
    #[error("{0}")]
    Agent(Error),
    #[error("cannot read the bearer token: {0}")]
    BearerToken(String),
    #[error("the login broke off: {0}")]
    Broken(#[from] tokio::task::JoinError),
    #[error("{0}")]
    Write(#[from] WriteError),
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
    pub async fn open(&self, deadline: Deadline) -> Result<(), Failure> {
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
    pub async fn reopen(&self, deadline: Deadline) -> Result<bool, Failure> {
        if self.agent.token().is_some() {
            if self.is_known(deadline).await? {
                return Ok(false);
            }
            // What a lagging server does not know, the leader may.
            if let Err(error) = self.agent.log_out().await {
                tracing::debug!("the ACL token that is not known: {error}");
            }
        }
        self.log_in(deadline).await?;
        self.await_known(deadline).await?;
        Ok(true)
    }

    /// As [`Self::reopen`], for a pod whose Envoy has had the token already: the
    /// one that starts next is to have the new one.
    pub async fn renew(&self, deadline: Deadline) -> Result<bool, Failure> {
        let is_another = self.reopen(deadline).await?;
        if is_another {
            self.settle()?;
        }
        Ok(is_another)
    }

    /// Logs in again although the token is good: it is about to end. The old one
    /// is logged out by [`Self::log_out_replaced`], once nothing uses it.
    pub async fn replace(&self, deadline: Deadline) -> Result<(), Failure> {
        let old = self.agent.token();
        self.log_in(deadline).await?;
        self.replaced.write().unwrap_or_else(PoisonError::into_inner).extend(old);
        self.await_known(deadline).await?;
        self.settle()
    }

    /// Logs out tokens that were replaced. One that can't be ends by itself.
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
                    "the ACL token that was replaced is left until it ends: {}",
                    stopped.failure(deadline)
                ),
            }
        }
    }

    /// Gives the token to Envoy.
    pub fn settle(&self) -> Result<(), Failure> {
        settle(&self.handoff, &self.agent)
    }

    /// Closes it: logs out, and removes the token. One that is gone is fine.
    pub async fn close(&self, deadline: Deadline) -> Result<(), Failure> {
        // A login under way would have its token after we have looked.
        let waited = tokio::select! {
            biased;
            _done = self.under_way.lock() => Ok(()),
            () = deadline.passed() => Err(Failure::new(
                Exit::Deadline,
                format_args!("the login with auth method `{}` was still under way", self.login.auth_method),
            )),
        };
        self.log_out_replaced(deadline).await;
        if self.agent.token().is_none() {
            return waited;
        }
        let attempt = || self.agent.log_out();
        match retry::until(deadline, retry::NODE_AGENT, Error::is_transient, attempt).await {
            Ok(LoggedOut::Done) => tracing::info!("logged out"),
            Ok(LoggedOut::WasUnknown) => tracing::info!("the ACL token was gone already"),
            Err(stopped) => {
                return Err(stopped
                    .failure(deadline)
                    .while_doing("the ACL token is left behind")
                    .hint(format_args!(
                        "find it by its description, {:?}, and delete it; a MaxTokenTTL of auth method `{}` would do so by itself",
                        self.login.meta, self.login.auth_method
                    )));
            }
        }
        self.agent.set_token(None);
        self.handoff.remove_token()?;
        waited
    }

    /// What to say of a registration that the token may not make.
    pub fn explain(&self, failure: Failure, service: &str) -> Failure {
        if failure.exit() != Exit::Denied {
            return failure;
        }
        let Self { login: Login { auth_method, .. }, .. } = self;
        let who = self.subject();
        failure.hint(format_args!(
            "the token that auth method `{auth_method}` gave to {who} lacks service:write on `{service}` and `{service}-sidecar-proxy`: {}",
            who.likely_rule(auth_method, service),
        ))
    }

    async fn is_known(&self, deadline: Deadline) -> Result<bool, Failure> {
        let attempt = || self.agent.knows_token();
        retry::until(deadline, retry::NODE_AGENT, Error::is_transient, attempt).await.map_err(
            |stopped| stopped.failure(deadline).while_doing("cannot look at the ACL token"),
        )
    }

    /// Waits until servers know the token.
    async fn await_known(&self, deadline: Deadline) -> Result<(), Failure> {
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
            .map_err(|stopped| stopped.failure(deadline))
    }

    async fn log_in(&self, deadline: Deadline) -> Result<(), Failure> {
        let attempt = || self.attempt();
        let passes = |error: &LoginError| match error {
            LoginError::Agent(error) => error.is_transient(),
            LoginError::BearerToken(_) | LoginError::Broken(_) | LoginError::Write(_) => false,
        };
        match retry::until(deadline, retry::NODE_AGENT, passes, attempt).await {
            Ok(()) => {
                tracing::info!(
                    auth_method = self.login.auth_method,
                    "logged in as {}",
                    self.subject()
                );
                Ok(())
            }
            Err(retry::Stopped::Final(error)) => Err(self.failure(error)),
            Err(retry::Stopped::Deadline(Some(error))) => {
                Err(self.failure(error).while_doing(format_args!("gave up after {deadline}")))
            }
            Err(retry::Stopped::Deadline(None)) => Err(Cut::Deadline.failure(deadline)),
        }
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

    fn failure(&self, error: LoginError) -> Failure {
        let Login { auth_method, bearer_token_file, .. } = &self.login;
        let file = bearer_token_file.display();
        let who = self.subject();
        let failure = match error {
            LoginError::Agent(error) => {
                let hint = match &error.cause {
                    Cause::Denied(_) if error.is_unknown_token() => format!(
                        "Consul has no auth method `{auth_method}`: compare `consul acl auth-method list`, and --namespace and --partition"
                    ),
                    Cause::Denied(words) if words.contains("Permission denied") => format!(
                        "no binding rule of auth method `{auth_method}` fits {who}: compare `consul acl binding-rule list -method={auth_method}`; {}",
                        who.likely_rule(auth_method, "<service>")
                    ),
                    Cause::Denied(_) => format!(
                        "auth method `{auth_method}` does not accept the bearer token in {file}: compare its issuer, audience and keys (or Kubernetes host and CA) with the token's, and the clocks"
                    ),
                    Cause::Refusal(401, _) => {
                        "ACLs are off on the agent: leave --acl-auth-method away".to_owned()
                    }
                    _ => error.hint(),
                };
                Failure::from(error).hint(hint)
            }
            LoginError::BearerToken(_) => Failure::usage(error)
                .hint("check --bearer-token-file, and that the pod's service account token is mounted there"),
            LoginError::Broken(_) => Failure::new(Exit::Failure, error),
            LoginError::Write(error) => error.into(),
        };
        failure.while_doing(format_args!("cannot log in with auth method `{auth_method}` as {who}"))
    }

    fn subject(&self) -> Subject {
        Subject::of(&self.login.bearer_token_file)
    }
}

/// How long servers may take to tell each other of a token without a warning.
const REPLICATED: Duration = Duration::from_secs(1);

/// Gives the agent's token to Envoy: into the file that Envoy watches, if there
/// is one, else into the bootstrap, for the Envoy that starts next.
pub fn settle(handoff: &Handoff, agent: &Agent) -> Result<(), Failure> {
    let token = agent.token().unwrap_or_default();
    if handoff.has_envoy_token() {
        handoff.write_envoy_token(&bootstrap::token_secret(token.expose_secret()))?;
        return Ok(());
    }
    let path = handoff.bootstrap();
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(
            Exit::Failure,
            format_args!("cannot put the new ACL token into {}: {error}", path.display()),
        )
        .hint("let connect-init write it again")
    };
    let text = std::fs::read(&path).map_err(|error| unusable(&error))?;
    let mut document: Value = serde_json::from_slice(&text).map_err(|error| unusable(&error))?;
    let before = document.clone();
    bootstrap::replace_token(&mut document, token.expose_secret());
    if document != before {
        handoff.write_bootstrap(&document)?;
    }
    Ok(())
}

/// Servers do not know the token.
#[derive(Debug, thiserror::Error)]
enum NotKnown {
    #[error("the servers do not know the new ACL token yet")]
    Yet,
    #[error("{0}")]
    Agent(#[from] Error),
}

impl From<NotKnown> for Failure {
    fn from(error: NotKnown) -> Self {
        match error {
            NotKnown::Yet => Self::new(Exit::Denied, error)
                .hint("check that ACL replication between the servers works"),
            NotKnown::Agent(error) => error.into(),
        }
    }
}

/// The token in a file; none if there is no such file, or nothing in it.
fn read(file: &Path) -> Result<Option<SecretString>, Failure> {
    match file.try_exists() {
        Ok(false) => Ok(None),
        _ => consul::token::read(file),
    }
}
