//! The HTTP facade: what clients and people see of a node.
//!
//! Order of a request: `server` accepts, `conn` guards the socket, `router` finds the resource and wraps
//! the answer (request id, metrics, log), one room per resource does the work. Everything refused becomes
//! a document of `problem`. Nothing here decides anything about keys: that is asked of the core through
//! [`Handle::submit`].
//!
//! Not here: TLS, tokens.

mod admin;
mod batch;
mod body;
mod compat;
mod conn;
mod console;
mod health;
mod keys;
mod list;
mod openapi;
mod operate;
pub mod path;
mod problem;
mod query;
mod range;
mod request;
mod router;
mod server;
mod tags;
#[cfg(test)]
mod tests;
mod verify;
mod writes;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use torc_protocol::client::{ClientOp, ClientReply, ClientRequest};
use torc_protocol::context::ContextKey;
use torc_protocol::queued::QueueKey;
use torc_protocol::shard_io::View;
use torc_ring::BucketId;

pub use self::server::{BoundAddresses, HttpError, Servers, serve};

use self::conn::Conn;
use self::problem::{Problem, Refused};
use self::request::{Heads, Ids};
use crate::handle::{Handle, NotReady};
use crate::metrics::Shed;
use crate::quiet::Quiet;

/// Which of the two listeners a request came in at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Data,
    Admin,
}

/// Warnings about single requests.
const WARNINGS_A_SECOND: u64 = 10;

/// What all requests of a node share.
#[derive(Debug)]
struct Facade {
    handle: Handle,
    ids: Ids,
    in_flight: AtomicUsize,
    watches: AtomicUsize,
    /// Of warnings about single requests.
    quiet: Quiet,
    contexts: OnceLock<ContextKey>,
    queue_keys: OnceLock<QueueKey>,
}

impl Facade {
    fn new(handle: Handle) -> Self {
        Self {
            handle,
            ids: Ids::new(),
            in_flight: AtomicUsize::new(0),
            watches: AtomicUsize::new(0),
            quiet: Quiet::of(WARNINGS_A_SECOND),
            contexts: OnceLock::new(),
            queue_keys: OnceLock::new(),
        }
    }

    /// What makes and checks causal contexts. A cluster draws its secret once, for ever.
    fn contexts(&self, view: &View) -> &ContextKey {
        self.contexts
            .get_or_init(|| ContextKey::new(&view.config.secret))
    }

    /// What makes and checks queued writes and their ids.
    fn queue_keys(&self, view: &View) -> &QueueKey {
        self.queue_keys
            .get_or_init(|| QueueKey::new(&view.config.secret))
    }
}

/// A request in work, from its head until the last byte of its answer is handed over.
#[derive(Debug)]
struct Guard {
    facade: Arc<Facade>,
    conn: Arc<Conn>,
    /// Whether it holds one of the places for requests in work.
    placed: AtomicBool,
    /// Whether it holds one of the places for watches.
    watching: AtomicBool,
}

impl Guard {
    fn new(facade: Arc<Facade>, conn: Arc<Conn>) -> Self {
        conn.request_begins();
        Self {
            facade,
            conn,
            placed: AtomicBool::new(false),
            watching: AtomicBool::new(false),
        }
    }

    /// Takes one of the places for requests in work; refuses early when there is none.
    fn place(&self) -> Result<(), Refused> {
        let limit = self.facade.handle.settings().limits.requests;
        if self.facade.in_flight.fetch_add(1, Ordering::Relaxed) >= limit {
            self.facade.in_flight.fetch_sub(1, Ordering::Relaxed);
            self.facade.handle.metrics().on_shed(Shed::Requests);
            return Err(Problem::too_many_requests(limit));
        }
        self.placed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the place back and takes one of the places for watches instead: a watch lasts long and costs
    /// little, so it must not keep others out.
    fn watch(&self) -> Result<(), Refused> {
        let limit = self.facade.handle.settings().limits.requests;
        if self.facade.watches.fetch_add(1, Ordering::Relaxed) >= limit {
            self.facade.watches.fetch_sub(1, Ordering::Relaxed);
            self.facade.handle.metrics().on_shed(Shed::Watches);
            return Err(Problem::too_many_requests(limit));
        }
        self.watching.store(true, Ordering::Relaxed);
        self.leave();
        Ok(())
    }

    fn leave(&self) {
        if self.placed.swap(false, Ordering::Relaxed) {
            self.facade.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.leave();
        if self.watching.load(Ordering::Relaxed) {
            self.facade.watches.fetch_sub(1, Ordering::Relaxed);
        }
        self.conn.request_ends();
    }
}

/// A request as the rooms see it.
struct Call<'a> {
    side: Side,
    facade: &'a Arc<Facade>,
    guard: &'a Guard,
    parts: &'a Parts,
    heads: Heads<'a>,
    /// Id in logs.
    trace: Bytes,
}

impl Call<'_> {
    fn handle(&self) -> &Handle {
        &self.facade.handle
    }

    /// The config that is applied, or why there is none.
    fn view(&self) -> Result<Arc<View>, Refused> {
        self.handle().view().ok_or_else(|| {
            let reason = self.handle().ready().err().unwrap_or(NotReady::NoConfig);
            Problem::not_ready(&reason)
        })
    }

    /// How long the work may take, when the query asks for `asked`.
    fn deadline(&self, asked: Option<Duration>) -> Result<Duration, Refused> {
        let settings = self.handle().settings();
        self.heads
            .deadline(asked, settings.deadline, settings.deadline_max)
    }

    /// The same for a read that the cache may answer; says whether it has.
    async fn submit_to_cache(
        &self,
        bucket: BucketId,
        op: ClientOp,
        time: Duration,
    ) -> (ClientReply, bool) {
        let request = ClientRequest {
            deadline: self.handle().now().mono.plus(time.as_micros() as u64),
            trace: self.trace.clone(),
            bucket,
            op,
        };
        self.handle().submit_to_cache(request).await
    }

    /// Has the core do it within `time` from now.
    async fn submit(&self, bucket: BucketId, op: ClientOp, time: Duration) -> ClientReply {
        submit(self.handle(), self.trace.clone(), bucket, op, time).await
    }
}

async fn submit(
    handle: &Handle,
    trace: Bytes,
    bucket: BucketId,
    op: ClientOp,
    time: Duration,
) -> ClientReply {
    let deadline = handle.now().mono.plus(time.as_micros() as u64);
    handle
        .submit(ClientRequest {
            deadline,
            trace,
            bucket,
            op,
        })
        .await
}
