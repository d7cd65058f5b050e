//! Registrations, requests and faults, which the agent and its server share.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::fault::{Effect, Scripted};
use crate::model::Model;
use crate::request::Request;

#[derive(Debug)]
pub struct State {
    pub model: Model,
    pub requests: Vec<Request>,
    pub(crate) connections: usize,
    /// Number of the connections, from the first on, that transfer nothing.
    pub(super) silent: usize,
    pub(super) script: Vec<Scripted>,
    pub(super) longest_wait: Duration,
}

/// The state, and notifications of its changes.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) state: Mutex<State>,
    pub(super) changed: Condvar,
    news: watch::Sender<()>,
}

// === impl Shared ===

impl Shared {
    pub(super) fn new() -> Self {
        let state = State {
            model: Model::new(),
            requests: Vec::new(),
            connections: 0,
            silent: 0,
            script: Vec::new(),
            longest_wait: Duration::MAX,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), news: watch::Sender::new(()) }
    }

    /// Records a request and returns its fault, if any.
    pub(crate) fn receive(&self, request: &Request) -> Option<Effect> {
        self.change(|state| {
            state.requests.push(request.clone());
            Scripted::meet(&mut state.script, request)
        })
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&lock(&self.state))
    }

    /// Changes the state, and notifies all waiting tests and requests.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut lock(&self.state));
        self.changed.notify_all();
        self.news.send_replace(());
        result
    }

    pub(crate) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    pub(crate) fn is_silent(&self, connection: usize) -> bool {
        self.look(|state| connection <= state.silent)
    }

    pub(crate) fn longest_wait(&self) -> Duration {
        self.look(|state| state.longest_wait)
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A test that failed while it held the lock has reported that.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
