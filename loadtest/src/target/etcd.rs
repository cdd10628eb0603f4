//! etcd through the HTTP gateway of its API v3: JSON with keys and values in base64.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use torc_client::Quorum;

use super::http::{Asked, Http};
use super::{Done, Failure, Request, Target};

/// A connection to etcd.
#[derive(Debug)]
pub(crate) struct Etcd {
    http: Http,
    body: String,
    last: Vec<u8>,
    serializable: bool,
}

/// What of an answer matters.
#[derive(Deserialize)]
struct Range<'a> {
    #[serde(borrow, default)]
    kvs: Vec<Pair<'a>>,
}

#[derive(Deserialize)]
struct Pair<'a> {
    /// Left out when it is empty.
    #[serde(default)]
    value: &'a str,
}

impl Etcd {
    pub(crate) fn new(target: &Target, first: usize) -> Self {
        Self {
            http: Http::new(target.addresses.clone(), first),
            body: String::new(),
            last: Vec::new(),
            serializable: matches!(target.asking.r, Some(Quorum::One | Quorum::Count(1))),
        }
    }

    pub(crate) async fn perform(&mut self, request: Request<'_>) -> Result<Done<'_>, Failure> {
        self.body.clear();
        let path = match request {
            Request::Get { key } => {
                self.push(r#"{"key":""#, key.as_bytes());
                self.push_serializable();
                "/v3/kv/range"
            }
            Request::Put { key, value } => {
                self.push(r#"{"key":""#, key.as_bytes());
                self.push(r#"","value":""#, value);
                "/v3/kv/put"
            }
            Request::Delete { key } => {
                self.push(r#"{"key":""#, key.as_bytes());
                "/v3/kv/deleterange"
            }
            Request::Scan { keys } => {
                // etcd's keys have an order: from the first on, to the end of all keys.
                self.push(
                    r#"{"key":""#,
                    keys.first().map_or(&[][..], |key| key.as_bytes()),
                );
                self.push(r#"","range_end":""#, &[0]);
                self.push_serializable();
                self.body.pop();
                // Writing into a String cannot fail.
                let _ = write!(self.body, r#","limit":"{}"}}"#, keys.len());
                "/v3/kv/range"
            }
        };
        if !self.body.ends_with('}') {
            self.body.push_str("\"}");
        }
        let asked = Asked {
            method: "POST",
            path: &[path],
            content_type: Some("application/json"),
            body: self.body.as_bytes(),
        };
        let answer = self.http.exchange(asked).await?;
        if answer.status != 200 {
            return Err(Failure::Status(answer.status));
        }
        if !matches!(request, Request::Get { .. } | Request::Scan { .. }) {
            return Ok(Done::Written);
        }
        let body = self.http.body(&answer.body);
        let range: Range<'_> = serde_json::from_slice(body).map_err(|_| Failure::Malformed)?;
        let Some(pair) = range.kvs.first() else {
            return Ok(Done::Missing);
        };
        self.last.clear();
        STANDARD
            .decode_vec(pair.value, &mut self.last)
            .map_err(|_| Failure::Malformed)?;
        Ok(Done::Value(&self.last))
    }

    fn push(&mut self, before: &str, bytes: &[u8]) {
        self.body.push_str(before);
        STANDARD.encode_string(bytes, &mut self.body);
    }

    fn push_serializable(&mut self) {
        let rest = if self.serializable {
            r#"","serializable":true}"#
        } else {
            "\"}"
        };
        self.body.push_str(rest);
    }
}
