//! Problem documents (RFC 9457), as nodes answer errors.

use std::fmt;

use http::StatusCode;
use serde::Deserialize;

use crate::error::Outcome;

/// Bytes of an answer that is no problem document that a message shows.
const SHOWN_MAX: usize = 200;

/// A node's refusal.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// URI of the kind of problem; empty when the answer was no problem document.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What happened here.
    pub detail: String,
    /// Replicas that were asked for.
    pub required: Option<u64>,
    /// Replicas that answered.
    pub received: Option<u64>,
    /// The limit that was exceeded.
    pub limit: Option<u64>,
    /// What became of a write: `not-written` or `unknown`.
    pub outcome: Option<String>,
    /// Seconds after which it may be tried again.
    #[serde(skip)]
    pub retry_after: Option<u64>,
}

impl Problem {
    /// Reads an answer's body; what is no problem document becomes one, with its first bytes as `detail`.
    pub(crate) fn read(status: StatusCode, retry_after: Option<u64>, body: &[u8]) -> Self {
        let mut problem = serde_json::from_slice::<Self>(body).unwrap_or_else(|_| Self {
            detail: String::from_utf8_lossy(&body[..body.len().min(SHOWN_MAX)])
                .chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .collect(),
            ..Self::default()
        });
        problem.status = status.as_u16();
        problem.retry_after = retry_after;
        if problem.title.is_empty() {
            status
                .canonical_reason()
                .unwrap_or("refused")
                .clone_into(&mut problem.title);
        }
        problem
    }

    /// What became of the write that was refused.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        let before_work = ["not-ready", "too-many-connections"].iter().any(|kind| {
            self.kind
                .strip_suffix(kind)
                .is_some_and(|rest| rest.ends_with(':'))
        });
        match self.outcome.as_deref() {
            Some("not-written") => Outcome::NotWritten,
            // A request that a node did not accept for its form, its size or its credentials, and one shed
            // before it was begun. 408 too: the body never arrived whole.
            None if before_work || (400..=429).contains(&self.status) => Outcome::NotWritten,
            _ => Outcome::Unknown,
        }
    }

    /// Whether the cluster, not the request, is the reason.
    #[must_use]
    pub fn is_clusters_fault(&self) -> bool {
        self.status >= 500 || self.status == 429
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.status, self.title)?;
        if !self.detail.is_empty() && self.detail != self.title {
            write!(f, ": {}", self.detail)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_document_is_read_with_its_numbers() {
        let body = br#"{"type":"/problems/quorum","title":"quorum not met","status":503,
            "detail":"1 of 2 replicas","required":2,"received":1,"outcome":"unknown","more":[1]}"#;
        let problem = Problem::read(StatusCode::SERVICE_UNAVAILABLE, Some(1), body);
        assert_eq!((problem.required, problem.received), (Some(2), Some(1)));
        assert_eq!(problem.outcome(), Outcome::Unknown);
        assert_eq!(problem.to_string(), "503 quorum not met: 1 of 2 replicas");
    }

    #[test]
    fn an_answer_of_a_proxy_is_shown_on_one_line_and_proves_nothing() {
        let problem = Problem::read(StatusCode::BAD_GATEWAY, None, b"<html>\nbad gateway");
        assert_eq!(problem.to_string(), "502 Bad Gateway: <html> bad gateway");
        assert_eq!(problem.outcome(), Outcome::Unknown);
    }

    #[test]
    fn only_what_certainly_was_not_written_counts_as_such() {
        for (status, outcome, expected) in [
            (503, Some("not-written"), Outcome::NotWritten),
            (503, Some("unknown"), Outcome::Unknown),
            (503, None, Outcome::Unknown),
            (507, Some("not-written"), Outcome::NotWritten),
            (429, None, Outcome::NotWritten),
            (413, None, Outcome::NotWritten),
            (500, None, Outcome::Unknown),
        ] {
            let problem = Problem {
                status,
                outcome: outcome.map(str::to_owned),
                ..Problem::default()
            };
            assert_eq!(problem.outcome(), expected, "{status} {outcome:?}");
        }
        let not_ready = br#"{"type":"urn:torc:problem:not-ready","status":503}"#;
        let problem = Problem::read(StatusCode::SERVICE_UNAVAILABLE, None, not_ready);
        assert_eq!(problem.outcome(), Outcome::NotWritten);
    }
}
