//! The queue's consumer: takes queued writes and hands each to a node until one has stored it.
//!
//! It decides nothing about keys: a message is opaque to it, and the node that it is handed to checks,
//! stores and says what came of it. A message is acknowledged only after that, so a worker that is killed
//! leaves it to the next one; storing it twice changes nothing, for it carries its version.
//!
//! What an answer means: stored; try again, for the cluster cannot do it now (that is never the message's
//! fault, and lasts as long as it lasts); try again a few times; or give up at once. What is given up is
//! noted by a node, so that `/writes/{id}` says so, and goes to the dead letters.

mod face;
mod link;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{StatusCode, header};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions,
    BasicPublishOptions, BasicQosOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Confirmation, Connection};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{info, warn};

use self::link::{Answer, Nodes};
use super::SideError;
use super::broker::{self, Brokers, WRITES};
use crate::config;
use crate::metrics::Counter;

/// How a worker works.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// The brokers.
    pub queue: config::Queue,
    /// Data addresses of the nodes, `host:port`; at least one.
    pub nodes: Vec<String>,
    /// Where health and metrics are served.
    pub http: SocketAddr,
    /// Greatest number of messages in work.
    pub prefetch: u16,
    /// Attempts after which a message that a node refuses is given up.
    pub tries: u32,
}

/// Why a worker cannot work.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// Its password cannot be read.
    #[error(transparent)]
    Side(#[from] SideError),
    /// No broker does what is asked of it.
    #[error("no broker can be used: {0}")]
    Broker(String),
    /// It cannot listen.
    #[error("cannot listen on {address} for health and metrics: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Puts what is in the dead letters back into the queue, each under its old version; answers how many.
///
/// # Errors
/// When no broker answers, or one takes a write no more; what was put back until then stays there.
pub async fn redrive(queue: config::Queue) -> Result<u64, WorkerError> {
    let count = queue.brokers.len();
    let mut brokers = Brokers::new(queue, "redrive")?;
    let mut attempt = 0;
    let (connection, channel) = loop {
        attempt += 1;
        match brokers.connect().await {
            Ok(open) => break open,
            Err(error) if attempt >= count => return Err(WorkerError::Broker(error.to_string())),
            Err(_) => {}
        }
    };
    let broken = |error: lapin::Error| WorkerError::Broker(error.to_string());
    let mut moved = 0;
    while let Some(dead) = channel
        .basic_get(broker::DEAD.into(), BasicGetOptions::default())
        .await
        .map_err(broken)?
    {
        let properties = BasicProperties::default()
            .with_delivery_mode(2)
            .with_content_type(MEDIA_TYPE.into());
        let options = BasicPublishOptions {
            mandatory: true,
            ..BasicPublishOptions::default()
        };
        let sent = channel.basic_publish("".into(), WRITES.into(), options, &dead.data, properties);
        let confirmed = sent.await.map_err(broken)?.await.map_err(broken)?;
        if confirmed != Confirmation::Ack(None) {
            return Err(WorkerError::Broker(format!(
                "the queue takes no more writes; {moved} were put back"
            )));
        }
        // Not before: a write that stands in both queues is no harm, one in neither is lost.
        dead.ack(BasicAckOptions::default()).await.map_err(broken)?;
        moved += 1;
    }
    let _ = connection.close(200, "done".into()).await;
    Ok(moved)
}

/// Between two attempts: at first, and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Between two attempts to connect: at first, and at most.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Time that messages in work have to end when the worker stops; the others are left to the next one.
const STOP_MAX: Duration = Duration::from_secs(8);
/// Between two looks at the queue's length.
const LOOK_EVERY: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(5);

/// What a worker has done.
#[derive(Debug, Default)]
pub(super) struct Book {
    connected: AtomicBool,
    stopping: AtomicBool,
    in_work: AtomicUsize,
    depth: AtomicU64,
    dead: AtomicU64,
    applied: Counter,
    superseded: Counter,
    failed: Counter,
    poison: Counter,
    retried: Counter,
    waited: Counter,
    redelivered: Counter,
}

/// What is to be done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It is done with.
    Acknowledge,
    /// It goes to the dead letters.
    Bury,
    /// It stays in the queue: the worker stops.
    Leave,
}

/// Works until `stop` is ready, then ends what is in work.
///
/// # Errors
/// When it cannot begin; that brokers or nodes are away is no reason.
pub async fn run(
    settings: WorkerSettings,
    stop: impl Future<Output = ()>,
) -> Result<(), WorkerError> {
    let mut brokers = Brokers::new(settings.queue.clone(), "worker")?;
    let book = Arc::new(Book::default());
    let (stop_all, stopping) = watch::channel(false);
    let address = torc_face::serve(settings.http, Arc::clone(&book), stopping.clone())
        .await
        .map_err(|source| WorkerError::Listen {
            address: settings.http,
            source,
        })?;
    info!(http = %address, nodes = settings.nodes.join(","), "worker started");
    let worker = Arc::new(Worker {
        nodes: Nodes::new(&settings.nodes),
        tries: settings.tries,
        book,
        stopping,
    });
    let working = worker.clone().work(&mut brokers, settings.prefetch);
    tokio::pin!(working, stop);
    tokio::select! {
        () = &mut working => {}
        () = stop => {
            info!("stopping");
            worker.book.stopping.store(true, Ordering::Relaxed);
            let _ = stop_all.send(true);
            // It ends by itself; the margin is for a broker that does not answer.
            if timeout(STOP_MAX + PATIENCE, working).await.is_err() {
                warn!("the broker does not answer; what was in work is delivered again");
            }
        }
    }
    info!("stopped");
    Ok(())
}

struct Worker {
    nodes: Nodes,
    tries: u32,
    book: Arc<Book>,
    stopping: watch::Receiver<bool>,
}

impl Worker {
    async fn work(self: Arc<Self>, brokers: &mut Brokers, prefetch: u16) {
        let mut stopping = self.stopping.clone();
        let (mut pause, mut told) = (RECONNECT.0, false);
        while !*stopping.borrow() {
            match brokers.connect().await {
                Ok((connection, channel)) => {
                    (pause, told) = (RECONNECT.0, false);
                    let broker = brokers.last().to_owned();
                    match self.consume(&connection, &channel, prefetch).await {
                        Ok(()) => return,
                        Err(error) => warn!(broker, %error, "the broker is lost"),
                    }
                    self.book.connected.store(false, Ordering::Relaxed);
                    brokers.skip();
                }
                Err(error) if !std::mem::replace(&mut told, true) => {
                    warn!(%error, "no broker can be reached yet");
                }
                Err(_) => {}
            }
            let _ = timeout(pause, stopping.wait_for(|stop| *stop)).await;
            pause = (pause * 2).min(RECONNECT.1);
        }
    }

    /// Until the connection is lost (an error) or the worker stops.
    async fn consume(
        self: &Arc<Self>,
        connection: &Connection,
        channel: &Channel,
        prefetch: u16,
    ) -> Result<(), lapin::Error> {
        let tag = "torc-worker";
        // A broker that has just started may take the connection and then never answer.
        let begin = async {
            channel
                .basic_qos(prefetch, BasicQosOptions::default())
                .await?;
            let figures = connection.create_channel().await?;
            let options = BasicConsumeOptions::default();
            let deliveries = channel
                .basic_consume(WRITES.into(), tag.into(), options, FieldTable::default())
                .await?;
            Ok::<_, lapin::Error>((figures, deliveries))
        };
        let silent = lapin::ErrorKind::MissingHeartbeatError;
        let (figures, mut deliveries) = timeout(PATIENCE, begin)
            .await
            .unwrap_or(Err(silent.into()))?;
        info!("taking queued writes");
        self.book.connected.store(true, Ordering::Relaxed);
        let mut stopping = self.stopping.clone();
        let mut work = JoinSet::new();
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => break,
                // At most `prefetch` of them: the broker sends no more before one is acknowledged.
                delivery = deliveries.next() => match delivery {
                    Some(delivery) => {
                        let (worker, delivery) = (Arc::clone(self), delivery?);
                        work.spawn(async move { worker.handle(delivery).await });
                    }
                    None => return Err(lapin::ErrorKind::MissingHeartbeatError.into()),
                },
                Some(_) = work.join_next(), if !work.is_empty() => {}
                _ = look.tick() => self.look(&figures).await?,
            }
        }
        let _ = timeout(
            PATIENCE,
            channel.basic_cancel(tag.into(), BasicCancelOptions::default()),
        )
        .await;
        let until = Instant::now() + STOP_MAX;
        while let Ok(Some(_)) = timeout_at(until, work.join_next()).await {}
        // What is still in work goes back to the queue with the connection.
        let _ = timeout(PATIENCE, connection.close(200, "the worker stops".into())).await;
        Ok(())
    }

    async fn look(&self, channel: &Channel) -> Result<(), lapin::Error> {
        let silent = lapin::ErrorKind::MissingHeartbeatError;
        let both = async {
            let depth = broker::depth(channel, WRITES).await?;
            Ok::<_, lapin::Error>((depth, broker::depth(channel, broker::DEAD).await?))
        };
        let (depth, dead) = timeout(PATIENCE, both)
            .await
            .unwrap_or(Err(silent.into()))?;
        self.book.depth.store(depth, Ordering::Relaxed);
        self.book.dead.store(dead, Ordering::Relaxed);
        Ok(())
    }

    async fn handle(&self, delivery: Delivery) {
        if delivery.redelivered {
            self.book.redelivered.add(1);
        }
        self.book.in_work.fetch_add(1, Ordering::Relaxed);
        let Delivery { data, acker, .. } = delivery;
        let outcome = match self.store(&data.into()).await {
            End::Acknowledge => acker.ack(BasicAckOptions::default()).await,
            End::Bury => {
                let options = BasicNackOptions {
                    requeue: false,
                    ..BasicNackOptions::default()
                };
                acker.nack(options).await
            }
            End::Leave => Ok(true),
        };
        if let Err(error) = outcome {
            // It is delivered again, and changes nothing then.
            warn!(%error, "a message could not be acknowledged");
        }
        self.book.in_work.fetch_sub(1, Ordering::Relaxed);
    }

    /// Hands a message to nodes until one has stored it, or it is given up.
    async fn store(&self, message: &Bytes) -> End {
        let (mut refused, mut waits) = (0, 0);
        loop {
            let reason = match self.nodes.store(message).await {
                Answer::Stored { superseded } => {
                    let counter = if superseded {
                        &self.book.superseded
                    } else {
                        &self.book.applied
                    };
                    counter.add(1);
                    return End::Acknowledge;
                }
                Answer::Unavailable => {
                    self.book.waited.add(1);
                    waits += 1;
                    if self.pause(waits).await {
                        return End::Leave;
                    }
                    continue;
                }
                Answer::Poison(reason) => {
                    self.book.poison.add(1);
                    warn!(
                        reason,
                        "a message is no queued write of this cluster, and goes to the dead letters"
                    );
                    return End::Bury;
                }
                Answer::Refused(reason) => {
                    refused += 1;
                    if refused < self.tries {
                        self.book.retried.add(1);
                        if self.pause(refused).await {
                            return End::Leave;
                        }
                        continue;
                    }
                    reason
                }
                Answer::Never(reason) => reason,
            };
            return self.give_up(message, &reason).await;
        }
    }

    /// Has a node note that the write is given up. Until that is noted it is not.
    async fn give_up(&self, message: &Bytes, reason: &str) -> End {
        let mut waits = 0;
        loop {
            if self.nodes.give_up(message, reason).await == Answer::Unavailable {
                waits += 1;
                if self.pause(waits).await {
                    return End::Leave;
                }
            } else {
                // Whatever else it says: nothing more can be done about it.
                self.book.failed.add(1);
                warn!(
                    reason,
                    "a queued write is given up, and goes to the dead letters"
                );
                return End::Bury;
            }
        }
    }

    /// Waits longer with each attempt, never alike; answers whether the worker stops.
    async fn pause(&self, attempt: u32) -> bool {
        let longest = (BACKOFF.0 * 2_u32.saturating_pow(attempt.min(10))).min(BACKOFF.1);
        let time = longest.mul_f64(0.5 + 0.5 * rand::random::<f64>());
        let mut stopping = self.stopping.clone();
        let stopped = timeout(time, stopping.wait_for(|stop| *stop)).await;
        stopped.is_ok()
    }
}

/// What an answer of a node means for a message.
fn judge(status: StatusCode, superseded: bool, detail: impl FnOnce() -> String) -> Answer {
    match status {
        StatusCode::NO_CONTENT | StatusCode::OK => Answer::Stored { superseded },
        // Overloaded, no quorum, not ready, full: another time.
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT
        | StatusCode::INSUFFICIENT_STORAGE
        | StatusCode::REQUEST_TIMEOUT => Answer::Unavailable,
        StatusCode::BAD_REQUEST => Answer::Poison(detail()),
        StatusCode::GONE => Answer::Never(detail()),
        _ => Answer::Refused(detail()),
    }
}

/// Media type of a queued write.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.torc.write";

fn content_type() -> (header::HeaderName, header::HeaderValue) {
    let value = header::HeaderValue::from_static(MEDIA_TYPE);
    (header::CONTENT_TYPE, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_cluster_cannot_do_now_is_never_the_messages_fault() {
        let of = |status| judge(status, false, || "why".to_owned());
        for status in [429, 502, 503, 504, 507, 408] {
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(of(status), Answer::Unavailable, "{status}");
        }
        let why = || "why".to_owned();
        assert_eq!(of(StatusCode::GONE), Answer::Never(why()));
        assert_eq!(of(StatusCode::BAD_REQUEST), Answer::Poison(why()));
        assert_eq!(of(StatusCode::NOT_FOUND), Answer::Refused(why()));
        assert_eq!(
            of(StatusCode::INTERNAL_SERVER_ERROR),
            Answer::Refused(why())
        );
        assert_eq!(
            of(StatusCode::NO_CONTENT),
            Answer::Stored { superseded: false }
        );
    }
}
