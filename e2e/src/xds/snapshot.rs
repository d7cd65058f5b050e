//! Watches, one for each thing that is asked of the agent, folded into one
//! snapshot of all that a proxy's configuration depends on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::agent::{
    Agent, Authorization, Cursor, Endpoints, Error, Leaf, Registration, Roots, Target,
};

/// How often that is asked for which the agent can't make us wait.
const POLL: Duration = Duration::from_secs(2);

/// All that a proxy's configuration depends on.
#[derive(Clone, PartialEq)]
pub struct Snapshot {
    /// The proxy itself.
    pub registration: Registration,
    /// What certificates are checked against.
    pub roots: Roots,
    /// The certificate of its service.
    pub leaf: Leaf,
    /// Who may connect to its service.
    pub authorization: Authorization,
    /// Where its upstreams are; every upstream has an entry.
    pub endpoints: BTreeMap<Target, Endpoints>,
}

/// Follows one proxy on the agent. Dropping it ends all its watches.
pub struct Follower {
    agent: Agent,
    watches: BTreeMap<Topic, AbortOnDropHandle<()>>,
    updates: (mpsc::Sender<Update>, mpsc::Receiver<Update>),
    failing: BTreeSet<Topic>,
    known: Known,
    last: Option<Snapshot>,
}

/// One thing that is watched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Topic {
    Registration(String),
    Roots,
    Leaf(String),
    Authorization(String),
    Endpoints(Target),
}

/// What a watch has learned.
enum Value {
    Registration(Registration),
    Roots(Roots),
    Leaf(Leaf),
    Authorization(Authorization),
    Endpoints(Target, Endpoints),
}

type Update = (Topic, Result<Value, Error>);

/// A snapshot in the making: the newest value of each topic.
#[derive(Default)]
struct Known {
    registration: Option<Registration>,
    roots: Option<Roots>,
    leaf: Option<Leaf>,
    authorization: Option<Authorization>,
    endpoints: BTreeMap<Target, Endpoints>,
}

// === impl Follower ===

impl Follower {
    /// Starts to follow the proxy `id`.
    pub fn new(agent: Agent, id: String) -> Self {
        let mut it = Self {
            agent,
            watches: BTreeMap::new(),
            updates: mpsc::channel(16),
            failing: BTreeSet::new(),
            known: Known::default(),
            last: None,
        };
        it.watch(Topic::Registration(id));
        it.watch(Topic::Roots);
        it
    }

    /// The next snapshot that differs from the one before, as soon as all of it
    /// is known. It may be dropped and called again: nothing gets lost.
    pub async fn next(&mut self) -> Result<Snapshot, Error> {
        loop {
            let Some((topic, value)) = self.updates.1.recv().await else {
                unreachable!("we hold a sender ourselves")
            };
            // An update of a watch that has ended since.
            if !self.watches.contains_key(&topic) {
                continue;
            }
            match value {
                Ok(value) => {
                    self.failing.remove(&topic);
                    self.learn(value);
                }
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    // Once, not for every attempt.
                    if self.failing.insert(topic.clone()) {
                        warn!(?topic, %error, "no answer, asking until there is one");
                    }
                    // An upstream that can't be looked up has no endpoints; it must
                    // not hold up everything else.
                    if let Topic::Endpoints(target) = topic {
                        self.known.endpoints.entry(target).or_default();
                    }
                }
            }
            if let Some(snapshot) = self.known.snapshot()
                && self.last.as_ref() != Some(&snapshot)
            {
                self.last = Some(snapshot.clone());
                return Ok(snapshot);
            }
        }
    }

    fn learn(&mut self, value: Value) {
        match value {
            Value::Registration(registration) => self.follow(registration),
            Value::Roots(roots) => self.known.roots = Some(roots),
            Value::Leaf(leaf) => self.known.leaf = Some(leaf),
            Value::Authorization(it) => self.known.authorization = Some(it),
            Value::Endpoints(target, it) => drop(self.known.endpoints.insert(target, it)),
        }
    }

    /// Watches what the registration depends on, and nothing else any more.
    fn follow(&mut self, registration: Registration) {
        let service = &registration.proxy.destination_service_name;
        let targets = registration.proxy.upstreams.iter().map(|it| &it.target);
        let topics = [Topic::Leaf(service.clone()), Topic::Authorization(service.clone())]
            .into_iter()
            .chain(targets.cloned().map(Topic::Endpoints))
            .collect::<Vec<_>>();

        let known = &mut self.known;
        self.watches.retain(|topic, _| {
            let keep = match topic {
                Topic::Registration(_) | Topic::Roots => true,
                topic => topics.contains(topic),
            };
            match topic {
                Topic::Leaf(_) if !keep => known.leaf = None,
                Topic::Authorization(_) if !keep => known.authorization = None,
                Topic::Endpoints(target) if !keep => drop(known.endpoints.remove(target)),
                _ => (),
            }
            keep
        });
        for topic in topics {
            self.watch(topic);
        }
        self.known.registration = Some(registration);
    }

    fn watch(&mut self, topic: Topic) {
        let (agent, updates) = (&self.agent, &self.updates.0);
        self.watches.entry(topic).or_insert_with_key(|topic| {
            let watch = watch(agent.clone(), topic.clone(), updates.clone());
            AbortOnDropHandle::new(tokio::spawn(watch))
        });
    }
}

// === impl Known ===

impl Known {
    /// The snapshot, if all of it is known.
    fn snapshot(&self) -> Option<Snapshot> {
        let registration = self.registration.clone()?;
        let mut upstreams = registration.proxy.upstreams.iter();
        if !upstreams.all(|it| self.endpoints.contains_key(&it.target)) {
            return None;
        }
        Some(Snapshot {
            registration,
            roots: self.roots.clone()?,
            leaf: self.leaf.clone()?,
            authorization: self.authorization.clone()?,
            endpoints: self.endpoints.clone(),
        })
    }
}

// === watches ===

/// Asks for `topic` over and over, and sends what it learns. It ends with the
/// follower, or with an error after which asking makes no sense.
async fn watch(agent: Agent, topic: Topic, updates: mpsc::Sender<Update>) {
    let backoff = || {
        let delays = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .without_max_times()
            .with_jitter();
        delays.build()
    };
    let mut delays = backoff();
    let mut cursor = Cursor::Start;
    loop {
        let pause;
        let value = match read(&agent, &topic, &cursor).await {
            Ok((value, next)) => {
                // Without a cursor to wait at, time must pass in another way.
                pause = (next == Cursor::Start && cursor == Cursor::Start).then_some(POLL);
                cursor = next;
                delays = backoff();
                Ok(value)
            }
            Err(error) => {
                // The agent may have been replaced: its indexes mean nothing now.
                cursor = Cursor::Start;
                pause = delays.next();
                Err(error)
            }
        };
        let last = value.as_ref().is_err_and(Error::is_final);
        if updates.send((topic.clone(), value)).await.is_err() || last {
            return;
        }
        if let Some(pause) = pause {
            tokio::time::sleep(pause).await;
        }
    }
}

async fn read(agent: &Agent, topic: &Topic, cursor: &Cursor) -> Result<(Value, Cursor), Error> {
    Ok(match topic {
        Topic::Registration(id) => {
            let (it, next) = agent.registration(id, cursor).await?;
            (Value::Registration(it), next)
        }
        Topic::Roots => {
            let (it, next) = agent.roots(cursor).await?;
            (Value::Roots(it), next)
        }
        Topic::Leaf(service) => {
            let (it, next) = agent.leaf(service, cursor).await?;
            (Value::Leaf(it), next)
        }
        Topic::Authorization(service) => {
            let (it, next) = agent.authorization(service, cursor).await?;
            (Value::Authorization(it), next)
        }
        Topic::Endpoints(target) => {
            let (it, next) = agent.endpoints(target, cursor).await?;
            (Value::Endpoints(target.clone(), it), next)
        }
    })
}
