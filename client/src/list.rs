//! Listing keys, page by page.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::call::Repeat;
use crate::client::{Client, found};
use crate::error::Error;
use crate::text::{Text, encode};
use crate::transport::Call;

/// What is to be listed.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Only keys that begin so; UTF-8, since a query is text. Empty: all.
    pub prefix: String,
    /// Keys on one page; the node's default otherwise.
    pub page: Option<usize>,
    /// Where an earlier listing stopped.
    pub cursor: Option<String>,
    /// Time for each page; the client's default otherwise.
    pub deadline: Option<Duration>,
}

/// A key in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedKey {
    /// The key, as text or base64.
    pub key: String,
    /// `base64` where the key is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding: Option<String>,
    /// Version of the key.
    #[serde(default)]
    pub etag: String,
    /// Length of the value in bytes.
    #[serde(default)]
    pub size: u64,
    /// When it expires, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
}

impl ListedKey {
    /// The key.
    #[must_use]
    pub fn key(&self) -> Text {
        Text::from_json(self.key.clone(), self.encoding.as_deref())
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Keys, each once over all pages.
    pub keys: Vec<ListedKey>,
    /// Where the next page begins; `None` on the last.
    #[serde(default)]
    pub cursor: Option<String>,
}

/// A listing under way.
#[derive(Debug)]
pub struct Pages {
    client: Client,
    bucket: String,
    options: ListOptions,
    is_over: bool,
}

impl Client {
    /// Lists the keys of a bucket. Nothing is asked before the first page is.
    pub fn list(&self, bucket: &str, options: ListOptions) -> Pages {
        Pages {
            client: self.clone(),
            bucket: bucket.to_owned(),
            options,
            is_over: false,
        }
    }
}

impl Pages {
    /// The next page; `None` after the last. After an error the same page can be asked for again.
    ///
    /// # Errors
    /// When no node could be asked, or the one asked refused.
    pub async fn next_page(&mut self) -> Result<Option<Page>, Error> {
        if self.is_over {
            return Ok(None);
        }
        let call = Call::get(format!("/kv/{}", encode(self.bucket.as_bytes())));
        let mut operation = self.client.operation(call, Repeat::Freely);
        let prefix = Some(&self.options.prefix).filter(|prefix| !prefix.is_empty());
        operation.query.push_some("prefix", prefix);
        operation.query.push_some("limit", self.options.page);
        operation
            .query
            .push_some("cursor", self.options.cursor.as_ref());
        operation.deadline = self.options.deadline.unwrap_or(operation.deadline);
        let answer = found(self.client.run(&operation, None).await?)?;
        let page: Page = answer.json("a list of keys")?;
        self.is_over = page.cursor.is_none();
        self.options.cursor.clone_from(&page.cursor);
        Ok(Some(page))
    }
}
