//! Many operations in one request. Not a transaction: each has its own answer.

use bytes::Bytes;
use http::HeaderValue;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, Method};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::call::Repeat;
use crate::client::{Client, found};
use crate::error::Error;
use crate::text::{Text, encode};
use crate::transport::Call;

/// Greatest number of operations in a batch.
pub const BATCH_OPERATIONS_MAX: usize = 1_000;

/// One operation of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchOp {
    /// Store a value.
    Put {
        /// Key.
        key: Bytes,
        /// Value.
        value: Bytes,
    },
    /// Read a value.
    Get {
        /// Key.
        key: Bytes,
    },
    /// Delete a key.
    Delete {
        /// Key.
        key: Bytes,
    },
}

/// What became of one operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchReply {
    /// HTTP status that the operation would have had on its own.
    pub status: u16,
    /// A read value, as text or base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// `base64` where the value is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Everything else in the answer: entity tag, the members of a problem document.
    #[serde(flatten)]
    pub more: Map<String, Json>,
}

impl BatchReply {
    /// The value that was read.
    #[must_use]
    pub fn value(&self) -> Option<Bytes> {
        Text::from_json(self.value.clone()?, self.encoding.as_deref()).bytes()
    }
}

impl BatchOp {
    fn line(&self) -> String {
        let (name, key, value) = match self {
            Self::Put { key, value } => ("put", key, Some(value)),
            Self::Get { key } => ("get", key, None),
            Self::Delete { key } => ("delete", key, None),
        };
        // One `encoding` speaks of key and value.
        let mut texts = vec![Text::of(key)];
        texts.extend(value.map(|value| Text::of(value)));
        let is_base64 = texts.iter().any(|text| text.is_base64);
        let json = |bytes: &Bytes| {
            if is_base64 {
                Text::base64(bytes).text
            } else {
                Text::of(bytes).text
            }
        };
        let mut line = Map::new();
        line.insert("op".to_owned(), name.into());
        line.insert("key".to_owned(), json(key).into());
        if let Some(value) = value {
            line.insert("value".to_owned(), json(value).into());
        }
        if is_base64 {
            line.insert("encoding".to_owned(), "base64".into());
        }
        Json::Object(line).to_string()
    }
}

impl Client {
    /// Does all of `operations`, in any order; answers in theirs.
    ///
    /// # Errors
    /// When there are too many, or the batch as a whole was not answered: [`Error::outcome`] then says
    /// whether some of its writes may have been stored.
    pub async fn batch(
        &self,
        bucket: &str,
        operations: &[BatchOp],
    ) -> Result<Vec<BatchReply>, Error> {
        let lines: Vec<String> = operations.iter().map(BatchOp::line).collect();
        self.batch_lines(bucket, &lines).await
    }

    /// The same with operations that are lines of JSON already.
    ///
    /// # Errors
    /// Like [`Client::batch`].
    pub async fn batch_lines(
        &self,
        bucket: &str,
        lines: &[String],
    ) -> Result<Vec<BatchReply>, Error> {
        if lines.len() > BATCH_OPERATIONS_MAX {
            return Err(Error::BatchTooLong {
                given: lines.len(),
                limit: BATCH_OPERATIONS_MAX,
            });
        }
        let mut body = lines.join("\n");
        body.push('\n');
        let mut headers = HeaderMap::new();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/x-ndjson"),
        );
        let call = Call {
            method: Method::POST,
            target: format!("/kv/{}/_batch", encode(bucket.as_bytes())),
            headers,
            body: body.into(),
        };
        let operation = self.operation(call, Repeat::IfNotWritten);
        let answer = found(self.run(&operation, None).await?)?;
        let malformed = || Error::Malformed {
            node: answer.node.clone(),
            what: "a line of JSON for each operation",
        };
        let replies: Result<Vec<BatchReply>, _> = answer
            .body
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(serde_json::from_slice)
            .collect();
        replies
            .ok()
            .filter(|replies| replies.len() == lines.len())
            .ok_or_else(malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_lines_of_json() {
        let text = BatchOp::Put {
            key: "k\n".into(),
            value: "v".into(),
        };
        assert_eq!(text.line(), r#"{"key":"k\n","op":"put","value":"v"}"#);
        let bytes = BatchOp::Put {
            key: "k".into(),
            value: Bytes::from_static(&[255]),
        };
        assert_eq!(
            bytes.line(),
            r#"{"encoding":"base64","key":"aw==","op":"put","value":"/w=="}"#
        );
        assert_eq!(
            BatchOp::Delete { key: "k".into() }.line(),
            r#"{"key":"k","op":"delete"}"#
        );
    }

    #[test]
    fn replies_keep_what_they_carry() {
        let line = r#"{"status":200,"value":"/w==","encoding":"base64","etag":"\"1\""}"#;
        let reply: BatchReply = serde_json::from_str(line).expect("json");
        assert_eq!(reply.value().as_deref(), Some(&[255][..]));
        assert_eq!(reply.more["etag"], "\"1\"");
    }
}
