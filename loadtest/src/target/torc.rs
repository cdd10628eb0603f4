//! torc over HTTP, and through its own client.

use std::fmt::Write as _;
use std::ops::Range;

use bytes::Bytes;
use serde::Deserialize;
use torc_client::{
    BatchOp, Cause, Client, ClientConfig, Error as ClientError, ReadOptions, WriteOptions,
};

use super::http::{Asked, Http};
use super::{Asking, Done, Failure, Request, Target};
use crate::error::Error;

/// A connection to torc.
#[derive(Debug)]
pub(crate) struct Torc {
    http: Http,
    path: String,
    batch: String,
    read_query: String,
    write_query: String,
    /// Lines of a scan.
    lines: String,
    r: Option<String>,
}

impl Torc {
    pub(crate) fn new(target: &Target, first: usize) -> Self {
        let asking = &target.asking;
        let query = |name: &str, value: Option<torc_client::Quorum>| {
            value.map_or_else(String::new, |value| format!("?{name}={value}"))
        };
        Self {
            http: Http::new(target.addresses.clone(), first),
            path: format!("/kv/{}/", asking.bucket),
            batch: format!("/kv/{}/_batch", asking.bucket),
            read_query: query("r", asking.r),
            write_query: query("w", asking.w),
            lines: String::new(),
            r: asking.r.map(|r| r.to_string()),
        }
    }

    pub(crate) async fn perform(&mut self, request: Request<'_>) -> Result<Done<'_>, Failure> {
        let (method, key, query, body) = match request {
            Request::Get { key } => ("GET", key, &self.read_query, &[][..]),
            Request::Put { key, value } => ("PUT", key, &self.write_query, &value[..]),
            Request::Delete { key } => ("DELETE", key, &self.write_query, &[][..]),
            Request::Scan { keys } => return self.scan(keys).await,
        };
        let asked = Asked {
            method,
            path: &[&self.path, key, query],
            content_type: None,
            body,
        };
        let answer = self.http.exchange(asked).await?;
        match answer.status {
            200 => Ok(Done::Value(self.http.body(&answer.body))),
            204 => Ok(Done::Written),
            404 if says(self.http.body(&answer.body), b"no-such-key") => Ok(Done::Missing),
            status => Err(Failure::Status(status)),
        }
    }

    /// torc has no order of keys: the records of a scan are read by their names, in one batch.
    async fn scan(&mut self, keys: &[String]) -> Result<Done<'_>, Failure> {
        self.lines.clear();
        for key in keys {
            // Writing into a String cannot fail.
            let _ = match &self.r {
                Some(r) => writeln!(self.lines, r#"{{"op":"get","key":"{key}","r":"{r}"}}"#),
                None => writeln!(self.lines, r#"{{"op":"get","key":"{key}"}}"#),
            };
        }
        let asked = Asked {
            method: "POST",
            path: &[&self.batch],
            content_type: Some("application/x-ndjson"),
            body: self.lines.as_bytes(),
        };
        let answer = self.http.exchange(asked).await?;
        if answer.status != 200 {
            return Err(Failure::Status(answer.status));
        }
        self.check_lines(&answer.body, keys.len())?;
        Ok(Done::Value(self.http.body(&answer.body)))
    }

    fn check_lines(&self, body: &Range<usize>, count: usize) -> Result<(), Failure> {
        #[derive(Deserialize)]
        struct Line {
            status: u16,
        }
        let lines = self.http.body(body).split(|byte| *byte == b'\n');
        let mut seen = 0;
        for line in lines.filter(|line| !line.is_empty()) {
            let line: Line = serde_json::from_slice(line).map_err(|_| Failure::Malformed)?;
            seen += 1;
            if !matches!(line.status, 200 | 404) {
                return Err(Failure::Status(line.status));
            }
        }
        if seen == count {
            Ok(())
        } else {
            Err(Failure::Malformed)
        }
    }
}

fn says(body: &[u8], word: &[u8]) -> bool {
    body.windows(word.len()).any(|window| window == word)
}

/// A client that routes by the ring.
pub(crate) fn client(target: &Target) -> Result<Client, Error> {
    let mut config = ClientConfig::new(target.addresses.iter().map(|address| address.text.clone()));
    config.deadline = target.asking.deadline;
    Client::new(config).map_err(|_| Error::BadAddress {
        given: target
            .addresses
            .first()
            .map_or_else(String::new, |address| address.text.clone()),
    })
}

/// Data addresses of all members, where the client may be sent.
pub(crate) async fn members(target: &Target) -> Result<Vec<String>, ClientError> {
    let config = ClientConfig::new(target.addresses.iter().map(|address| address.text.clone()));
    let ring = Client::new(config)?.ring().await?;
    Ok(ring.members.into_iter().map(|member| member.http).collect())
}

/// One user of a client that others use too.
#[derive(Debug)]
pub(crate) struct Routed {
    client: Client,
    bucket: String,
    read: ReadOptions,
    write: WriteOptions,
    last: Bytes,
}

impl Routed {
    pub(crate) fn new(client: Client, asking: &Asking) -> Self {
        Self {
            client,
            bucket: asking.bucket.clone(),
            read: ReadOptions {
                r: asking.r,
                deadline: None,
            },
            write: WriteOptions {
                w: asking.w,
                ..WriteOptions::default()
            },
            last: Bytes::new(),
        }
    }

    pub(crate) async fn perform(&mut self, request: Request<'_>) -> Result<Done<'_>, Failure> {
        let (client, bucket) = (&self.client, self.bucket.as_str());
        match request {
            Request::Get { key } => {
                let read = client.get(bucket, key.as_bytes(), &self.read).await;
                let Some(value) = read.map_err(|error| failure(&error))?.value else {
                    return Ok(Done::Missing);
                };
                self.last = value.bytes;
                Ok(Done::Value(&self.last))
            }
            Request::Put { key, value } => {
                let put = client.put(bucket, key.as_bytes(), value.clone(), &self.write);
                put.await.map_err(|error| failure(&error))?;
                Ok(Done::Written)
            }
            Request::Delete { key } => {
                let deleted = client.delete(bucket, key.as_bytes(), &self.write).await;
                deleted.map_err(|error| failure(&error))?;
                Ok(Done::Written)
            }
            Request::Scan { keys } => {
                let operations: Vec<BatchOp> = keys
                    .iter()
                    .map(|key| BatchOp::Get {
                        key: Bytes::copy_from_slice(key.as_bytes()),
                    })
                    .collect();
                let replies = client.batch(bucket, &operations).await;
                for reply in replies.map_err(|error| failure(&error))? {
                    if !matches!(reply.status, 200 | 404) {
                        return Err(Failure::Status(reply.status));
                    }
                }
                Ok(Done::Value(&[]))
            }
        }
    }
}

fn failure(error: &ClientError) -> Failure {
    let of_cause = |cause: &Cause| match cause {
        Cause::Connect(_) => Failure::NotConnected,
        Cause::Broken(_) => Failure::ConnectionLost,
        Cause::Deadline(_) => Failure::Timeout,
        Cause::TooLarge { .. } | Cause::NotUnderstood { .. } => Failure::Malformed,
    };
    match error {
        ClientError::Refused { problem, .. } => Failure::Status(problem.status),
        ClientError::Unreachable { cause, .. } | ClientError::Unknown { cause, .. } => {
            of_cause(cause)
        }
        _ => Failure::Refused,
    }
}
