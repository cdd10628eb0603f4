//! `torc autoscale`: watches the load in Prometheus, and adds or removes nodes and workers, which are
//! containers beside those of Compose.
//!
//! What is to be done is decided by pure machines ([`decide`], `chores`); this crate's shell asks Prometheus
//! and the nodes, and has the Docker engine and the ring do it. A node joins by a change of the ring, and
//! leaves the ring by another before its container is stopped. Nothing is remembered here: what exists is
//! what the engine and the ring say, so that an autoscaler that is killed goes on where it was.
//!
//! What it does not do: touch containers that it has not made, or scale while the cluster lacks somebody.

mod chores;
pub mod decide;
mod engine;
mod face;
mod prometheus;
mod ring;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

pub use crate::engine::EngineError;
pub use crate::ring::RingError;

use crate::chores::{Chore, Place, chore};
use crate::decide::{Block, Decision, Rule, Scaler, Seen, Step};
use crate::engine::{Added, Engine};
use crate::face::{Book, Kind};
use crate::prometheus::Prometheus;
use crate::ring::{Ring, Sight};

/// Between two looks at a change that is under way.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between the word that a node takes no more requests (`/draining`) and its leave: Nginx asks every 2 s, and
/// ends what it has begun.
const DRAIN: Duration = Duration::from_secs(6);
/// For a change of the ring to be over; later ones are only noticed in a later round.
const CHANGE_MAX: Duration = Duration::from_secs(15 * 60);

/// What is scaled by what.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Prometheus, `host:port`.
    pub prometheus: String,
    /// Admin addresses of the nodes that are always there.
    pub admin: Vec<String>,
    /// The engine's socket; `None`: only explain.
    pub docker: Option<String>,
    /// Compose project; `None`: that of the container it runs in.
    pub project: Option<String>,
    /// Services whose containers are the patterns of new nodes and workers.
    pub templates: (String, String),
    /// Nodes.
    pub nodes: Target,
    /// Workers.
    pub workers: Target,
    /// Between two rounds.
    pub interval: Duration,
    /// Where health and metrics are served.
    pub http: SocketAddr,
    /// Only explain.
    pub dry_run: bool,
    /// One round only.
    pub once: bool,
}

/// Something that is scaled.
#[derive(Clone, Debug)]
pub struct Target {
    /// Query of its load. Of nodes: the load of each; of workers: of all together.
    pub query: String,
    /// When.
    pub rule: Rule,
}

/// Query of how many workers there are, where there is no engine to ask.
const WORKERS_QUERY: &str = "count(up{job=\"torc-workers\"} == 1)";

/// Why an autoscaler cannot work.
#[derive(Debug, thiserror::Error)]
pub enum AutoscaleError {
    /// It cannot listen.
    #[error("cannot listen on {address} for health and metrics: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// An admin address is none.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// Scales until `stop` is ready. A change of the ring that is under way then goes on without it.
///
/// # Errors
/// When it cannot begin; that Prometheus, nodes or engine are away is no reason.
pub async fn run(settings: Settings, stop: impl Future<Output = ()>) -> Result<(), AutoscaleError> {
    let book = Arc::new(Book::default());
    let (_stopped, stopping) = watch::channel(false);
    if !settings.once {
        let address = torc_face::serve(settings.http, Arc::clone(&book), stopping)
            .await
            .map_err(|source| AutoscaleError::Listen {
                address: settings.http,
                source,
            })?;
        info!(http = %address, dry_run = settings.dry_run, "autoscaler started");
    }
    let mut autoscaler = Autoscaler {
        prometheus: Prometheus::new(&settings.prometheus),
        ring: Ring::new(&settings.admin)?,
        engine: None,
        nodes: Scaler::new(settings.nodes.rule),
        workers: Scaler::new(settings.workers.rule),
        began: Instant::now(),
        said: [None, None],
        book,
        settings,
    };
    tokio::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = autoscaler.round() => {}
        }
        if autoscaler.settings.once {
            break;
        }
        tokio::select! {
            () = &mut stop => break,
            () = tokio::time::sleep(autoscaler.settings.interval) => {}
        }
    }
    info!("stopped");
    Ok(())
}

struct Autoscaler {
    settings: Settings,
    prometheus: Prometheus,
    ring: Ring,
    engine: Option<Engine>,
    nodes: Scaler,
    workers: Scaler,
    began: Instant,
    /// What was said last, so that the same is not said every few seconds.
    said: [Option<(Step, std::mem::Discriminant<decide::Why>)>; 2],
    book: Arc<Book>,
}

impl Autoscaler {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    async fn round(&mut self) {
        let mut trouble = Vec::new();
        if let Err(error) = self.connect().await {
            trouble.push(error.to_string());
        }
        let sight = match self.ring.look().await {
            Ok(sight) => Some(sight),
            Err(error) => {
                trouble.push(error.to_string());
                None
            }
        };
        self.scale_nodes(sight.as_ref(), &mut trouble).await;
        self.scale_workers(&mut trouble).await;
        for reason in &trouble {
            warn!(reason, "the autoscaler cannot do its work");
        }
        self.book.on_round(trouble);
    }

    /// The engine is there, unless this one only explains and has none.
    async fn connect(&mut self) -> Result<(), EngineError> {
        let (Some(socket), None) = (&self.settings.docker, &self.engine) else {
            return Ok(());
        };
        let (node, worker) = &self.settings.templates;
        let project = self.settings.project.as_deref();
        self.engine = Some(Engine::connect(socket, project, (node, worker)).await?);
        Ok(())
    }

    async fn number(&self, query: &str, trouble: &mut Vec<String>) -> Option<f64> {
        match self.prometheus.number(query).await {
            Ok(number) => number,
            Err(error) => {
                trouble.push(error.to_string());
                None
            }
        }
    }

    // ---- nodes ---------------------------------------------------------------------------------------

    async fn scale_nodes(&mut self, sight: Option<&Sight>, trouble: &mut Vec<String>) {
        let added = match &self.engine {
            Some(engine) => match engine.nodes().await {
                Ok(added) => added,
                Err(error) => {
                    trouble.push(error.to_string());
                    return;
                }
            },
            None => Vec::new(),
        };
        let load = self.number(&self.settings.nodes.query, trouble).await;
        let (mut members, mut coming) = (Vec::new(), false);
        if let Some(sight) = sight {
            for node in &added {
                coming |= self.tend(node, sight).await;
            }
            let is_member = |node: &&Added| sight.place(&node.name) == Place::Member;
            members.extend(added.iter().filter(is_member));
        }
        let seen = Seen {
            count: sight.map_or(0, |sight| sight.members.len() as u32),
            added: members.len() as u32,
            load,
            blocked: match sight {
                None => Some(Block::Unknown),
                Some(sight) if sight.changing || coming => Some(Block::ChangeRunning),
                Some(sight) if sight.members.iter().any(|member| !member.alive) => {
                    Some(Block::MemberMissing)
                }
                Some(_) => None,
            },
        };
        let now = self.now();
        let decision = self.nodes.decide(&seen, now);
        self.tell(Kind::Node, &seen, &decision);
        if self.settings.dry_run || decision.step == Step::Hold {
            return;
        }
        self.nodes.on_change(now);
        let done = match (decision.step, members.last(), sight) {
            (Step::Add, _, Some(sight)) => self.add_node(sight).await,
            (Step::Remove, Some(node), _) => self.remove_node(&node.name.clone()).await,
            _ => return,
        };
        self.end(Kind::Node, decision.step, done);
        // What a change costs is no load to decide by.
        let now = self.now();
        self.nodes.on_change(now);
    }

    /// Does what has to be done with an added node, whatever happened; answers whether it is on its way into
    /// the ring.
    async fn tend(&self, node: &Added, sight: &Sight) -> bool {
        let place = sight.place(&node.name);
        let todo = chore(place, node.container, node.age, CHANGE_MAX);
        let Some(engine) = self.engine.as_ref().filter(|_| !self.settings.dry_run) else {
            return false;
        };
        let outcome = match todo {
            Chore::Nothing => return place != Place::Member,
            Chore::Start => {
                warn!(
                    node = node.name,
                    "a node that was added does not run, and is started"
                );
                engine.start_node(&node.name, None).await
            }
            Chore::Remove => {
                info!(
                    node = node.name,
                    "a node that was added is no member, and its container goes"
                );
                engine.remove(&node.name).await
            }
        };
        if let Err(error) = outcome {
            warn!(node = node.name, %error, "an added node could not be tended");
        }
        todo == Chore::Start
    }

    async fn add_node(&self, sight: &Sight) -> Result<(), Failed> {
        let Some(engine) = &self.engine else {
            return Ok(());
        };
        let name = new_name("node");
        info!(node = name, "a node is added");
        engine.add_node(&name, sight.emptiest_zone()).await?;
        // It asks the members to take it in, and they do; that may take as long as its share takes to copy.
        let until = Instant::now() + CHANGE_MAX;
        while Instant::now() < until {
            if let Ok(sight) = self.ring.look().await
                && sight.place(&name) == Place::Member
                && !sight.changing
            {
                info!(
                    node = name,
                    members = sight.members.len(),
                    "the node has its share of the ring"
                );
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Err(Failed::Late)
    }

    async fn remove_node(&self, name: &str) -> Result<(), Failed> {
        let Some(engine) = &self.engine else {
            return Ok(());
        };
        // Who sends it requests has to stop before it does: a write that meets a node that stops is answered
        // with an error.
        info!(node = name, "no more requests for a node that is to leave");
        self.book.drain(Some(name));
        tokio::time::sleep(DRAIN).await;
        info!(node = name, "the node leaves the ring");
        let left = self.ring.leave(name, Instant::now() + CHANGE_MAX).await;
        if left.is_err() {
            self.book.drain(None);
        }
        left?;
        info!(
            node = name,
            "the node has left the ring; its container is stopped"
        );
        engine.remove(name).await?;
        self.book.drain(None);
        Ok(())
    }

    // ---- workers -------------------------------------------------------------------------------------

    /// Names of those that were added, and how many there are.
    async fn count_workers(
        &self,
        trouble: &mut Vec<String>,
    ) -> Result<(Vec<String>, u32), EngineError> {
        if let Some(engine) = &self.engine {
            return engine.workers().await;
        }
        let count = self.number(WORKERS_QUERY, trouble).await;
        Ok((Vec::new(), count.map_or(0, |count| count as u32)))
    }

    async fn scale_workers(&mut self, trouble: &mut Vec<String>) {
        let (added, count) = match self.count_workers(trouble).await {
            Ok(found) => found,
            Err(error) => {
                trouble.push(error.to_string());
                return;
            }
        };
        let waiting = self.number(&self.settings.workers.query, trouble).await;
        let seen = Seen {
            count,
            added: added.len() as u32,
            load: waiting.map(|waiting| waiting / f64::from(count.max(1))),
            blocked: None,
        };
        let now = self.now();
        let decision = self.workers.decide(&seen, now);
        self.tell(Kind::Worker, &seen, &decision);
        let Some(engine) = self.engine.as_ref().filter(|_| !self.settings.dry_run) else {
            return;
        };
        let done = match (decision.step, added.last()) {
            (Step::Add, _) => {
                let name = new_name("worker");
                info!(worker = name, "a worker is added");
                engine.add_worker(&name).await
            }
            (Step::Remove, Some(name)) => {
                info!(worker = name, "a worker is stopped");
                engine.remove(name).await
            }
            _ => return,
        };
        self.workers.on_change(now);
        self.end(Kind::Worker, decision.step, done.map_err(Failed::Engine));
    }

    fn tell(&mut self, kind: Kind, seen: &Seen, decision: &Decision) {
        self.book.on_decision(kind, seen, decision);
        let said = Some((decision.step, std::mem::discriminant(&decision.why)));
        let same = self.said[kind as usize] == said;
        self.said[kind as usize] = said;
        if self.settings.dry_run || !same {
            let (what, why) = (kind.name(), decision.why.to_string());
            info!(what, count = seen.count, decision = %decision.step, why, "decided");
        }
    }

    fn end(&self, kind: Kind, step: Step, done: Result<(), Failed>) {
        let ok = done.is_ok();
        if let Err(error) = done {
            warn!(what = kind.name(), %step, %error, "a change failed");
        }
        self.book.on_changed(kind, step == Step::Add, ok);
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("it is not over after {CHANGE_MAX:?}")]
    Late,
}

/// A name that nobody has had: the ring remembers those that have left.
fn new_name(kind: &str) -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    format!("{kind}-{now:x}")
}
