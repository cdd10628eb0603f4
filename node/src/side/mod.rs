//! Side services: a read cache, a write queue, a change feed. A node without them is whole, and a node
//! whose side services are away serves keys as if it had none.

mod broker;
pub mod cache;
pub mod changes;
pub mod queue;
pub mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use torc_storage::{Committer, Store};

use self::cache::Cache;
use self::changes::Outbox;
use self::queue::Queue;
use crate::config::Settings;
use crate::handle::Handle;
use crate::metrics::Metrics;

/// Why a side service cannot be set up. (That it is away is no reason.)
#[derive(Debug, thiserror::Error)]
pub enum SideError {
    /// Its password cannot be read.
    #[error("the password in {path} cannot be read: {source}")]
    Password {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The client library refuses the settings.
    #[error("the cache's settings are refused: {0}")]
    Cache(#[from] redis::RedisError),
    /// Waiting notes of changes cannot be counted.
    #[error(transparent)]
    Storage(#[from] torc_storage::StorageError),
}

/// The side services of a node.
#[derive(Clone, Debug, Default)]
pub struct Side {
    /// The read cache.
    pub cache: Option<Arc<Cache>>,
    /// The write queue.
    pub queue: Option<Arc<Queue>>,
    /// Notes of changes that others are to be told of.
    pub outbox: Option<Arc<Outbox>>,
}

impl Side {
    /// None at all.
    pub const NONE: Self = Self {
        cache: None,
        queue: None,
        outbox: None,
    };

    /// Sets up what the settings name and begins to connect in the background, until `stopping`.
    ///
    /// # Errors
    /// When a password cannot be read, or waiting notes cannot be counted.
    pub async fn start(
        settings: &Settings,
        metrics: &Arc<Metrics>,
        store: &Store,
        stopping: &watch::Receiver<bool>,
    ) -> Result<Self, SideError> {
        let mut side = Self::default();
        if let Some(of_cache) = &settings.cache {
            let cache = Arc::new(Cache::new(of_cache.clone(), Arc::clone(metrics))?);
            tokio::spawn(Arc::clone(&cache).keep(stopping.clone()));
            side.cache = Some(cache);
        }
        if let Some(of_queue) = &settings.queue {
            let queue = Arc::new(Queue::new(of_queue.clone(), &settings.name)?);
            tokio::spawn(Arc::clone(&queue).keep(stopping.clone()));
            side.queue = Some(queue);
            if of_queue.changes {
                let store = store.clone();
                let limit = of_queue.changes_max;
                let counted =
                    tokio::task::spawn_blocking(move || Outbox::open(&store, limit)).await;
                if let Ok(outbox) = counted {
                    side.outbox = Some(Arc::new(outbox?));
                }
            }
        }
        Ok(side)
    }
}

/// Sets up the side services of a node and begins to connect; whether they are there is found out later.
/// They go on until what this answers with is dropped.
///
/// # Errors
/// As [`Side::start`].
pub async fn start(
    settings: &Settings,
    handle: &Handle,
    (store, committer): (&Store, &Committer),
) -> Result<watch::Sender<bool>, SideError> {
    let (stop, stopping) = watch::channel(false);
    let side = Side::start(settings, &handle.shared_metrics(), store, &stopping).await?;
    if let (Some(queue), Some(outbox)) = (&side.queue, &side.outbox) {
        let tells = (handle.clone(), Arc::clone(queue), Arc::clone(outbox));
        let from = (store.clone(), committer.clone());
        tokio::spawn(changes::tell(tells, from, stopping));
    }
    handle.set_side(side);
    Ok(stop)
}

/// What the file holds, without the line's end that editors leave.
fn password(path: &Path) -> Result<String, SideError> {
    let text = std::fs::read_to_string(path).map_err(|source| SideError::Password {
        path: path.to_owned(),
        source,
    })?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}
