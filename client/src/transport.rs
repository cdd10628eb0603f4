//! One request to one node over pooled connections, with a deadline and a limit on the answer.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::error::{Cause, Error};
use crate::nodes::Node;
use crate::options::ClientConfig;

/// What is to be sent; each attempt makes its own request of it.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) target: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn get(target: String) -> Self {
        Self {
            method: Method::GET,
            target,
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

/// An answer, whatever it says.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) node: String,
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name)?.to_str().ok().map(str::to_owned)
    }

    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        what: &'static str,
    ) -> Result<T, Error> {
        serde_json::from_slice(&self.body).map_err(|_| Error::Malformed {
            node: self.node.clone(),
            what,
        })
    }
}

/// Pooled connections to all nodes.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    http: HyperClient<HttpConnector, Full<Bytes>>,
    answer_bytes_max: usize,
}

impl Transport {
    pub(crate) fn new(config: &ClientConfig) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect_timeout));
        connector.set_nodelay(true);
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.idle_timeout)
            .pool_max_idle_per_host(config.idle_connections_max)
            // Only for requests of which nothing was written, on a pooled connection that had been closed.
            .retry_canceled_requests(true)
            .build(connector);
        Self {
            http,
            answer_bytes_max: config.answer_bytes_max,
        }
    }

    /// Sends and reads the whole answer.
    pub(crate) async fn send(
        &self,
        node: &Node,
        call: &Call,
        time: Duration,
    ) -> Result<Answer, SendError> {
        let uri = format!("http://{}{}", node.authority(), call.target);
        let mut request = Request::builder()
            .method(call.method.clone())
            .uri(uri)
            .body(Full::new(call.body.clone()))
            .map_err(SendError::Unsendable)?;
        request.headers_mut().extend(call.headers.clone());
        let exchange = async {
            let response = self.http.request(request).await.map_err(|error| {
                if error.is_connect() {
                    Cause::Connect(error)
                } else {
                    Cause::Broken(Box::new(error))
                }
            })?;
            self.collect(node, response).await
        };
        let result = tokio::time::timeout(time, exchange)
            .await
            .unwrap_or(Err(Cause::Deadline(time)));
        match &result {
            Ok(_) => node.on_answer(),
            Err(_) => node.on_failure(Instant::now()),
        }
        result.map_err(SendError::Failed)
    }

    async fn collect(
        &self,
        node: &Node,
        response: Response<hyper::body::Incoming>,
    ) -> Result<Answer, Cause> {
        let (head, body) = response.into_parts();
        let limit = self.answer_bytes_max;
        let body = Limited::new(body, limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Cause::TooLarge { limit }
            } else {
                Cause::Broken(error)
            }
        })?;
        Ok(Answer {
            node: node.authority().to_owned(),
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum SendError {
    /// No node could be sent this.
    Unsendable(http::Error),
    /// This node did not answer.
    Failed(Cause),
}
