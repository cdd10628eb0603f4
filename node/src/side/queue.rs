//! The write queue: accepted writes go there as persistent messages, and count as accepted only when the
//! broker has confirmed that it has them.
//!
//! Nothing waits for a broker that is away: without a connection a write is refused at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lapin::options::BasicPublishOptions;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::SideError;
use super::broker::{self, Brokers, WRITES};
use crate::config;
use crate::handle::Condition;

/// Between two looks at the queue's length; also the greatest time that a lost connection goes unnoticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Between two attempts to connect: at first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// For the queue's length.
const PATIENCE: Duration = Duration::from_secs(5);
const PERSISTENT: u8 = 2;

/// The queue as a node sees it.
pub struct Queue {
    settings: config::Queue,
    brokers: Mutex<Option<Brokers>>,
    link: RwLock<Option<Link>>,
    /// Wakes whoever connects.
    lost: Notify,
    /// Wakes whoever waits for a connection.
    connected: Notify,
    depth: AtomicU64,
    dead: AtomicU64,
}

#[derive(Clone)]
struct Link {
    channel: Channel,
    broker: String,
    // Dropping the last of it ends the connection.
    connection: Arc<Connection>,
}

/// What the queue is like, for health and metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Whether a broker is connected.
    pub connected: bool,
    /// Writes that wait, as last seen.
    pub depth: u64,
    /// Writes that were given up, as last seen.
    pub dead: u64,
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// No broker is connected; nothing was sent.
    #[error("no broker of the queue can be reached")]
    Away,
    /// The broker refuses: the queue is full.
    #[error("the queue is full")]
    Full,
    /// It was sent and not confirmed: the broker may have it.
    #[error("the broker has not confirmed the message in time")]
    Unconfirmed,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// A queue that is not connected yet; [`Self::keep`] connects it.
    ///
    /// # Errors
    /// When its password cannot be read.
    pub fn new(settings: config::Queue, name: &str) -> Result<Self, SideError> {
        Ok(Self {
            brokers: Mutex::new(Some(Brokers::new(settings.clone(), name)?)),
            settings,
            link: RwLock::new(None),
            lost: Notify::new(),
            connected: Notify::new(),
            depth: AtomicU64::new(0),
            dead: AtomicU64::new(0),
        })
    }

    /// What it is like.
    #[must_use]
    pub fn state(&self) -> QueueState {
        QueueState {
            connected: self.link.read().is_some(),
            depth: self.depth.load(Ordering::Relaxed),
            dead: self.dead.load(Ordering::Relaxed),
        }
    }

    /// How it is, for health.
    #[must_use]
    pub fn condition(&self) -> Condition {
        if self.link.read().is_some() {
            return Condition::Ok;
        }
        let reason = "no broker can be reached: asynchronous writes are refused".to_owned();
        Condition::Down { reason }
    }

    /// Age from which on a queued write is not stored any more, in milliseconds.
    #[must_use]
    pub fn lifetime_ms(&self) -> u64 {
        self.settings.lifetime.as_millis() as u64
    }

    /// Puts a write into the queue; `Ok` means that the broker has it on disk.
    ///
    /// # Errors
    /// Says whether the broker may have it all the same.
    pub async fn put(&self, message: &[u8], id: &str, time: Duration) -> Result<(), PublishError> {
        let properties = BasicProperties::default()
            .with_content_type("application/vnd.torc.write".into())
            .with_headers(of_id(id));
        self.publish(("", WRITES), message, properties, time).await
    }

    /// Publishes a persistent message and waits for the broker's confirmation.
    ///
    /// # Errors
    /// Says whether the broker may have it all the same.
    pub(super) async fn publish(
        &self,
        (exchange, key): (&str, &str),
        message: &[u8],
        properties: BasicProperties,
        time: Duration,
    ) -> Result<(), PublishError> {
        let link = self.link.read().clone().ok_or(PublishError::Away)?;
        // A message to a queue must reach it; that nobody listens to changes is nobody's fault.
        let options = BasicPublishOptions {
            mandatory: exchange.is_empty(),
            ..BasicPublishOptions::default()
        };
        let sent = async {
            let properties = properties.with_delivery_mode(PERSISTENT);
            let confirm = link
                .channel
                .basic_publish(exchange.into(), key.into(), options, message, properties)
                .await?;
            confirm.await
        };
        match timeout(time, sent).await {
            Ok(Ok(Confirmation::Ack(None))) => Ok(()),
            Ok(Ok(Confirmation::Ack(Some(_)))) => {
                // The queue is gone: it is declared again with the next connection.
                self.give_up(&link, "the queue is not there");
                Err(PublishError::Away)
            }
            Ok(Ok(Confirmation::Nack(_) | Confirmation::NotRequested)) => {
                if exchange.is_empty() && !self.is_full(&link).await {
                    self.give_up(&link, "it refuses a message though the queue is not full");
                    return Err(PublishError::Away);
                }
                Err(PublishError::Full)
            }
            Ok(Err(error)) => {
                self.give_up(&link, &error.to_string());
                Err(PublishError::Unconfirmed)
            }
            Err(_) => Err(PublishError::Unconfirmed),
        }
    }

    /// Whether a refusal means that the queue is full.
    ///
    /// A channel keeps, from the first message on, where the queue's leader is said to be. One that began
    /// when the leader had just died goes on asking the dead one, and refuses everything until that broker is
    /// back (RabbitMQ 3.10); a new channel asks the new leader.
    async fn is_full(&self, link: &Link) -> bool {
        let length = self.settings.length;
        if may_be_full(self.depth.load(Ordering::Relaxed), length) {
            return true;
        }
        match timeout(PATIENCE, broker::depth(&link.channel, WRITES)).await {
            Ok(Ok(depth)) => {
                self.depth.store(depth, Ordering::Relaxed);
                may_be_full(depth, length)
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }

    /// Waits until a broker is connected.
    pub(super) async fn wait_connected(&self) {
        loop {
            let connected = self.connected.notified();
            if self.link.read().is_some() {
                return;
            }
            connected.await;
        }
    }

    fn give_up(&self, link: &Link, reason: &str) {
        let mut present = self.link.write();
        if present
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(&present.connection, &link.connection))
        {
            *present = None;
            warn!(
                broker = link.broker,
                reason, "the queue is lost; asynchronous writes are refused until it is back"
            );
            self.lost.notify_one();
        }
    }

    /// Keeps it connected, and looks at its length.
    pub async fn keep(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let Some(mut brokers) = self.brokers.lock().take() else {
            return;
        };
        let keeping = async {
            let (mut pause, mut told) = (RETRY.0, false);
            loop {
                match brokers.connect().await {
                    Ok((connection, channel)) => {
                        let link = Link {
                            channel,
                            broker: brokers.last().to_owned(),
                            connection: Arc::new(connection),
                        };
                        info!(broker = link.broker, "the queue is connected");
                        *self.link.write() = Some(link.clone());
                        self.connected.notify_waiters();
                        told = false;
                        let began = Instant::now();
                        self.watch(&link).await;
                        if began.elapsed() > RETRY.1 {
                            pause = RETRY.0;
                        }
                        brokers.skip();
                    }
                    Err(error) if !std::mem::replace(&mut told, true) => {
                        warn!(%error, "the queue cannot be reached; asynchronous writes are refused until it is back");
                    }
                    Err(_) => {}
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            }
        };
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => {}
            () = keeping => {}
        }
        *self.link.write() = None;
    }

    /// Until the connection is lost.
    async fn watch(&self, link: &Link) {
        loop {
            let look = async {
                let depth = broker::depth(&link.channel, WRITES).await?;
                let dead = broker::depth(&link.channel, broker::DEAD).await?;
                Ok::<_, lapin::Error>((depth, dead))
            };
            match timeout(PATIENCE, look).await {
                Ok(Ok((depth, dead))) => {
                    self.depth.store(depth, Ordering::Relaxed);
                    self.dead.store(dead, Ordering::Relaxed);
                }
                Ok(Err(error)) => self.give_up(link, &error.to_string()),
                Err(_) => self.give_up(link, "the broker does not answer"),
            }
            if self.link.read().is_none() {
                return;
            }
            let _ = timeout(LOOK_EVERY, self.lost.notified()).await;
        }
    }
}

/// A queue that was full takes messages again only when it is well below its length.
fn may_be_full(depth: u64, length: u64) -> bool {
    depth >= length / 2
}

/// Message ids are at most 255 bytes in AMQP; the ids of writes may be longer.
fn of_id(id: &str) -> lapin::types::FieldTable {
    let mut headers = lapin::types::FieldTable::default();
    let id = lapin::types::AMQPValue::LongString(id.into());
    headers.insert("x-torc-write".into(), id);
    headers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_of_a_queue_that_is_half_empty_has_another_reason() {
        assert!(may_be_full(1_000, 1_000));
        // It was full a moment ago, and takes nothing yet.
        assert!(may_be_full(801, 1_000));
        assert!(!may_be_full(0, 1_000));
        // A queue of one is never called half empty.
        assert!(may_be_full(0, 1));
    }
}
