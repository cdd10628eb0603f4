//! From a worker to the nodes: one that answers is asked, and the next one when it does not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use super::{content_type, judge};

/// For one node to answer; above the nodes' own deadline.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Below the time for which nodes keep an idle connection, so that it is the worker that hangs up.
const IDLE_MAX: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// What came of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is stored, or something newer is.
    Stored {
        /// Something newer is.
        superseded: bool,
    },
    /// No node can do it now.
    Unavailable,
    /// A node refuses it; it might not another time.
    Refused(String),
    /// It never will be stored.
    Never(String),
    /// It is no queued write.
    Poison(String),
}

pub(super) struct Nodes {
    addresses: Vec<String>,
    client: Client<HttpConnector, Full<Bytes>>,
    next: AtomicUsize,
}

impl Nodes {
    pub(super) fn new(addresses: &[String]) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_MAX));
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .build(connector);
        let bare = |address: &String| {
            let address = address.trim_start_matches("http://");
            address.trim_end_matches('/').to_owned()
        };
        Self {
            addresses: addresses.iter().map(bare).collect(),
            client,
            next: AtomicUsize::new(0),
        }
    }

    pub(super) async fn store(&self, message: &Bytes) -> Answer {
        self.ask("/writes", message).await
    }

    pub(super) async fn give_up(&self, message: &Bytes, reason: &str) -> Answer {
        // Short, and without anything that a query would have to escape.
        let fit = |c: char| if c.is_ascii_alphanumeric() { c } else { '+' };
        let reason: String = reason.chars().take(200).map(fit).collect();
        self.ask(&format!("/writes?give_up={reason}"), message)
            .await
    }

    /// Each node in turn, once, until one gives an answer that is worth something.
    async fn ask(&self, target: &str, message: &Bytes) -> Answer {
        let first = self.next.fetch_add(1, Ordering::Relaxed);
        for at in 0..self.addresses.len() {
            let at = first.wrapping_add(at) % self.addresses.len();
            let Some(address) = self.addresses.get(at) else {
                continue;
            };
            match timeout(PATIENCE, self.ask_one(address, target, message)).await {
                Ok(Some(Answer::Unavailable) | None) | Err(_) => {}
                Ok(Some(answer)) => return answer,
            }
        }
        Answer::Unavailable
    }

    async fn ask_one(&self, address: &str, target: &str, message: &Bytes) -> Option<Answer> {
        let (name, value) = content_type();
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{address}{target}"))
            .header(name, value)
            .body(Full::new(message.clone()))
            .ok()?;
        let response = self.client.request(request).await.ok()?;
        let status = response.status();
        let superseded = response.headers().contains_key("x-torc-superseded");
        let detail = detail(response).await;
        Some(judge(status, superseded, || {
            detail.unwrap_or_else(|| format!("a node answered {status}"))
        }))
    }
}

/// What a problem document says.
async fn detail(response: Response<Incoming>) -> Option<String> {
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = body.collect().await.ok()?.to_bytes();
    let document: serde_json::Value = serde_json::from_slice(&body).ok()?;
    Some(document.get("detail")?.as_str()?.to_owned())
}
