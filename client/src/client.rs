//! The client: one method for each thing that a node does with keys.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;

use crate::call::{Operation, Repeat};
use crate::error::Error;
use crate::nodes::Nodes;
use crate::options::{ClientConfig, Query, ReadOptions, Routing, WriteOptions, millis};
use crate::problem::Problem;
use crate::ring::{RingView, Routes};
use crate::text::encode;
use crate::transport::{Answer, Call, Transport};

/// The causal context of what was read or written.
const CONTEXT: HeaderName = HeaderName::from_static("x-torc-context");
/// `true` when a newer version was there already.
const SUPERSEDED: HeaderName = HeaderName::from_static("x-torc-superseded");
/// Least time between two fetches of the ring, also after errors.
const RING_PAUSE: Duration = Duration::from_secs(1);

/// A client of one cluster. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClientConfig,
    nodes: Nodes,
    transport: Transport,
    routes: Mutex<RoutesState>,
}

#[derive(Default)]
struct RoutesState {
    routes: Option<Arc<Routes>>,
    /// When the last fetch was begun.
    fetched: Option<Instant>,
    is_fetching: bool,
    /// An answer suggested that the ring has changed.
    is_doubtful: bool,
}

/// What goes with a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Its version, as an entity tag with its quotes.
    pub etag: Option<String>,
    /// What was sent with it when it was put.
    pub content_type: Option<String>,
    /// As HTTP writes dates, to the second.
    pub last_modified: Option<String>,
    /// Length of the value in bytes.
    pub length: Option<u64>,
}

/// A stored value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The bytes.
    pub bytes: Bytes,
    /// What goes with it.
    pub meta: Meta,
}

/// The state of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read<T = Value> {
    /// The value; `None` when there is none (any more).
    pub value: Option<T>,
    /// For [`WriteOptions::context`]; also there when the key was deleted.
    pub context: Option<String>,
}

/// An acknowledged write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Version of the key now.
    pub etag: Option<String>,
    /// For [`WriteOptions::context`] of a later write.
    pub context: Option<String>,
    /// A newer version was there already: this write is not what a reader sees.
    pub superseded: bool,
}

/// What a watch saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// Another state than the one known.
    Changed(Read),
    /// None until the time was over.
    Unchanged,
}

impl Client {
    /// A client of these nodes. Connects to none of them yet.
    ///
    /// # Errors
    /// When no node is given, or an address is none.
    pub fn new(config: ClientConfig) -> Result<Self, Error> {
        let nodes = Nodes::new(&config.nodes)?;
        let transport = Transport::new(&config);
        Ok(Self {
            inner: Arc::new(Inner {
                config,
                nodes,
                transport,
                routes: Mutex::default(),
            }),
        })
    }

    /// The settings that this client was made with.
    pub fn config(&self) -> &ClientConfig {
        &self.inner.config
    }

    /// Reads a key.
    ///
    /// # Errors
    /// When no node could be asked, or the one asked refused.
    pub async fn get(
        &self,
        bucket: &str,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Read, Error> {
        let operation = self.read_operation(Method::GET, bucket, key, options);
        let answer = self.run(&operation, Some((bucket, key))).await?;
        read(answer)
    }

    /// Reads what goes with a key's value, without the value.
    ///
    /// # Errors
    /// Like [`Client::get`].
    pub async fn head(
        &self,
        bucket: &str,
        key: &[u8],
        options: &ReadOptions,
    ) -> Result<Read<Meta>, Error> {
        let operation = self.read_operation(Method::HEAD, bucket, key, options);
        let answer = self.run(&operation, Some((bucket, key))).await?;
        let context = answer.header(CONTEXT.as_str());
        // The answer to HEAD has no body that could tell a missing key from a missing bucket.
        let value = (answer.status != StatusCode::NOT_FOUND).then(|| meta(&answer));
        Ok(Read { value, context })
    }

    /// Waits until the state of a key is another one than `etag`, but not longer than `wait`.
    ///
    /// # Errors
    /// Like [`Client::get`].
    pub async fn watch(
        &self,
        bucket: &str,
        key: &[u8],
        known: (&str, Duration),
        options: &ReadOptions,
    ) -> Result<Watched, Error> {
        let (etag, wait) = known;
        let mut operation = self.read_operation(Method::GET, bucket, key, options);
        operation.query.push("wait", millis(wait));
        operation.patience = wait;
        operation.hedge_after = None;
        operation
            .call
            .headers
            .insert(IF_NONE_MATCH, header_value(etag)?);
        let answer = self.run(&operation, Some((bucket, key))).await?;
        if answer.status == StatusCode::NOT_MODIFIED {
            return Ok(Watched::Unchanged);
        }
        read(answer).map(Watched::Changed)
    }

    /// Stores a value.
    ///
    /// # Errors
    /// [`Error::outcome`] says whether it may have been stored all the same.
    pub async fn put(
        &self,
        bucket: &str,
        key: &[u8],
        value: impl Into<Bytes>,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        self.write((Method::PUT, value.into()), (bucket, key), options)
            .await
    }

    /// Deletes a key, whether or not it is there.
    ///
    /// # Errors
    /// Like [`Client::put`].
    pub async fn delete(
        &self,
        bucket: &str,
        key: &[u8],
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        self.write((Method::DELETE, Bytes::new()), (bucket, key), options)
            .await
    }

    /// The ring, as one of the nodes shows it.
    ///
    /// # Errors
    /// When no node could be asked.
    pub async fn ring(&self) -> Result<RingView, Error> {
        let operation = self.operation(Call::get("/ring".to_owned()), Repeat::Freely);
        let answer = found(self.run(&operation, None).await?)?;
        answer.json("the ring")
    }

    async fn write(
        &self,
        what: (Method, Bytes),
        place: (&str, &[u8]),
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let (method, body) = what;
        let (bucket, key) = place;
        let mut headers = HeaderMap::new();
        if let Some(content_type) = options
            .content_type
            .as_deref()
            .filter(|_| method == Method::PUT)
        {
            headers.insert(CONTENT_TYPE, header_value(content_type)?);
        }
        if let Some(context) = &options.context {
            headers.insert(CONTEXT, header_value(context)?);
        }
        let call = Call {
            method,
            target: key_target(bucket, key),
            headers,
            body,
        };
        let mut operation = self.operation(call, Repeat::IfNotWritten);
        if self.inner.config.retry_unknown {
            operation.repeat = Repeat::Freely;
        }
        operation.query = options.query();
        operation.deadline = options.deadline.unwrap_or(self.inner.config.deadline);
        let answer = found(self.run(&operation, Some(place)).await?)?;
        Ok(Written {
            etag: answer.header(ETAG.as_str()),
            context: answer.header(CONTEXT.as_str()),
            superseded: answer
                .headers
                .get(SUPERSEDED)
                .is_some_and(|value| value == "true"),
        })
    }

    fn read_operation(
        &self,
        method: Method,
        bucket: &str,
        key: &[u8],
        options: &ReadOptions,
    ) -> Operation {
        let call = Call {
            method,
            ..Call::get(key_target(bucket, key))
        };
        let mut operation = self.operation(call, Repeat::Freely);
        operation.query = options.query();
        operation.deadline = options.deadline.unwrap_or(self.inner.config.deadline);
        operation.hedge_after = self.inner.config.hedge_after;
        operation
    }

    pub(crate) fn operation(&self, call: Call, repeat: Repeat) -> Operation {
        Operation {
            call,
            query: Query::default(),
            deadline: self.inner.config.deadline,
            patience: Duration::ZERO,
            repeat,
            hedge_after: None,
            attempts_max: self.inner.config.attempts_max.max(1),
        }
    }

    pub(crate) async fn run(
        &self,
        operation: &Operation,
        place: Option<(&str, &[u8])>,
    ) -> Result<Answer, Error> {
        let routes = place.and_then(|_| self.routes());
        let owners = match (&routes, place) {
            (Some(routes), Some((bucket, key))) => routes.owners(bucket, key),
            _ => Vec::new(),
        };
        let candidates = self.inner.nodes.candidates(owners, operation.attempts_max);
        let result = operation.run(&self.inner.transport, &candidates).await;
        if result.as_ref().is_err_and(Error::is_clusters_fault) {
            self.inner.routes.lock().is_doubtful = true;
        }
        result
    }

    /// The tables as they were fetched last; a new fetch is begun in the background when it is time.
    fn routes(&self) -> Option<Arc<Routes>> {
        if self.inner.config.routing == Routing::InTurn {
            return None;
        }
        let mut state = self.inner.routes.lock();
        let age = state.fetched.map(|at| at.elapsed());
        let due = match age {
            None => true,
            Some(age) if state.is_doubtful || state.routes.is_none() => age >= RING_PAUSE,
            Some(age) => age >= self.inner.config.ring_refresh,
        };
        if due && !state.is_fetching {
            state.is_fetching = true;
            state.fetched = Some(Instant::now());
            state.is_doubtful = false;
            let client = self.clone();
            tokio::spawn(async move { client.refresh_routes().await });
        }
        state.routes.clone()
    }

    /// Bounded by the operation's deadline; errors leave the present tables in place, and the next request
    /// after a pause tries again.
    async fn refresh_routes(&self) {
        let fetched = self.ring().await;
        let mut state = self.inner.routes.lock();
        state.is_fetching = false;
        let Ok(view) = fetched else {
            state.is_doubtful = true;
            return;
        };
        // A node that lags behind does not take the client back.
        let present = state
            .routes
            .as_ref()
            .map_or(0, |routes| routes.config().version.0);
        if view.config_version > present
            && let Ok(routes) = Routes::compute(&view)
        {
            state.routes = Some(Arc::new(routes));
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("config", &self.inner.config)
            .finish_non_exhaustive()
    }
}

fn key_target(bucket: &str, key: &[u8]) -> String {
    format!("/kv/{}/{}", encode(bucket.as_bytes()), encode(key))
}

fn header_value(text: &str) -> Result<HeaderValue, Error> {
    HeaderValue::from_str(text).map_err(|error| Error::BadRequest(error.into()))
}

/// A 404 that speaks of something else than a key is a refusal.
pub(crate) fn found(answer: Answer) -> Result<Answer, Error> {
    if answer.status != StatusCode::NOT_FOUND {
        return Ok(answer);
    }
    let problem = Problem::read(answer.status, None, &answer.body);
    Err(Error::Refused {
        node: answer.node,
        problem: Box::new(problem),
    })
}

fn read(answer: Answer) -> Result<Read, Error> {
    let context = answer.header(CONTEXT.as_str());
    if answer.status == StatusCode::NOT_FOUND {
        let problem = Problem::read(answer.status, None, &answer.body);
        if problem.kind.ends_with("no-such-key") {
            return Ok(Read {
                value: None,
                context,
            });
        }
        return Err(Error::Refused {
            node: answer.node,
            problem: Box::new(problem),
        });
    }
    let meta = meta(&answer);
    Ok(Read {
        value: Some(Value {
            bytes: answer.body,
            meta,
        }),
        context,
    })
}

fn meta(answer: &Answer) -> Meta {
    Meta {
        etag: answer.header(ETAG.as_str()),
        content_type: answer.header(CONTENT_TYPE.as_str()),
        last_modified: answer.header(LAST_MODIFIED.as_str()),
        length: answer
            .header(CONTENT_LENGTH.as_str())
            .and_then(|length| length.parse().ok()),
    }
}
