//! One operation: attempts on several nodes, one verdict on each.
//!
//! Invariant: a write is sent a second time only when the first certainly stored nothing, unless the caller
//! asked for more. Source of hedging: Dean and Barroso, "The Tail at Scale" (2013).

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::header::RETRY_AFTER;
use http::{HeaderName, HeaderValue, StatusCode};

use crate::error::{Cause, Error, Outcome};
use crate::nodes::Node;
use crate::options::{Query, millis};
use crate::problem::Problem;
use crate::transport::{Answer, Call, SendError, Transport};

/// How long the node may take.
const DEADLINE: HeaderName = HeaderName::from_static("x-torc-deadline");
/// Time beyond the deadline that a node has to say that it passed.
const GRACE: Duration = Duration::from_millis(250);
/// Pause before all candidates are asked once more; doubled each time, and half of it is drawn at random.
const PAUSE_FIRST: Duration = Duration::from_millis(40);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a repetition may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Nothing: a read.
    Freely,
    /// Harm, unless the attempt before stored nothing.
    IfNotWritten,
}

/// An operation.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) call: Call,
    pub(crate) query: Query,
    pub(crate) deadline: Duration,
    /// Time that the node is asked to wait beyond the deadline, for watches.
    pub(crate) patience: Duration,
    pub(crate) repeat: Repeat,
    pub(crate) hedge_after: Option<Duration>,
    pub(crate) attempts_max: usize,
}

/// What one attempt means for the operation.
enum Verdict {
    /// The answer.
    Done(Answer),
    /// No other node would say anything else, or asking might do harm.
    Final(Error),
    /// Another node may be asked.
    Elsewhere {
        error: Error,
        retry_after: Option<Duration>,
    },
}

type Attempt = (Arc<Node>, Result<Answer, SendError>);

impl Operation {
    /// Runs it on `candidates`, best first; there is at least one.
    pub(crate) async fn run(
        &self,
        transport: &Transport,
        candidates: &[Arc<Node>],
    ) -> Result<Answer, Error> {
        let began = Instant::now();
        let end = began + self.deadline + self.patience + GRACE;
        let mut running = FuturesUnordered::new();
        let mut tried = 0;
        let mut pause = PAUSE_FIRST;
        running.push(self.attempt(transport, pick(candidates, tried), began));
        tried += 1;
        loop {
            let hedge = self.hedge_after.filter(|_| {
                running.len() == 1 && tried < self.attempts_max && candidates.len() > 1
            });
            let (node, result) = tokio::select! {
                Some(attempt) = running.next() => attempt,
                () = wait(hedge) => {
                    running.push(self.attempt(transport, pick(candidates, tried), began));
                    tried += 1;
                    continue;
                }
            };
            let (error, retry_after) = match self.judge(&node, result, tried) {
                Verdict::Done(answer) => return Ok(answer),
                Verdict::Final(error) => return Err(error),
                Verdict::Elsewhere { error, retry_after } => (error, retry_after),
            };
            if !running.is_empty() {
                continue;
            }
            // Everybody was asked once: a pause, before the same nodes are asked again.
            let rest = if tried % candidates.len() == 0 {
                let drawn = pause.mul_f64(rand::random_range(0.5..1.0));
                pause = (pause * 2).min(PAUSE_MAX);
                retry_after.map_or(drawn, |asked| asked.min(PAUSE_MAX).max(drawn))
            } else {
                Duration::ZERO
            };
            if tried >= self.attempts_max || Instant::now() + rest + GRACE >= end {
                return Err(error);
            }
            tokio::time::sleep(rest).await;
            running.push(self.attempt(transport, pick(candidates, tried), began));
            tried += 1;
        }
    }

    async fn attempt(&self, transport: &Transport, node: Arc<Node>, began: Instant) -> Attempt {
        let left = self.deadline.saturating_sub(began.elapsed());
        let mut call = Call {
            target: format!("{}{}", self.call.target, self.query.write()),
            ..self.call.clone()
        };
        if let Ok(deadline) = HeaderValue::try_from(millis(left)) {
            call.headers.insert(DEADLINE, deadline);
        }
        let result = transport
            .send(&node, &call, left + self.patience + GRACE)
            .await;
        (node, result)
    }

    fn judge(&self, node: &Node, result: Result<Answer, SendError>, tried: usize) -> Verdict {
        let elsewhere = |error| Verdict::Elsewhere {
            error,
            retry_after: None,
        };
        let node = node.authority().to_owned();
        match result {
            Ok(answer) if is_answer(answer.status) => Verdict::Done(answer),
            Ok(answer) => self.judge_refusal(&answer),
            Err(SendError::Unsendable(error)) => Verdict::Final(error.into()),
            Err(SendError::Failed(cause @ Cause::Connect(_))) => {
                elsewhere(Error::Unreachable { tried, node, cause })
            }
            Err(SendError::Failed(cause)) => match self.repeat {
                Repeat::Freely => elsewhere(Error::Unreachable { tried, node, cause }),
                Repeat::IfNotWritten => Verdict::Final(Error::Unknown { node, cause }),
            },
        }
    }

    fn judge_refusal(&self, answer: &Answer) -> Verdict {
        let retry_after = answer
            .header(RETRY_AFTER.as_str())
            .and_then(|seconds| seconds.parse().ok());
        let problem = Problem::read(answer.status, retry_after, &answer.body);
        let worth_it = problem.is_clusters_fault()
            && match self.repeat {
                Repeat::Freely => true,
                Repeat::IfNotWritten => problem.outcome() == Outcome::NotWritten,
            };
        let error = Error::Refused {
            node: answer.node.clone(),
            problem: Box::new(problem),
        };
        if worth_it {
            Verdict::Elsewhere {
                error,
                retry_after: retry_after.map(Duration::from_secs),
            }
        } else {
            Verdict::Final(error)
        }
    }
}

/// Whether the caller makes sense of it, rather than reading it as a refusal.
fn is_answer(status: StatusCode) -> bool {
    status.is_success() || matches!(status, StatusCode::NOT_MODIFIED | StatusCode::NOT_FOUND)
}

fn pick(candidates: &[Arc<Node>], tried: usize) -> Arc<Node> {
    Arc::clone(&candidates[tried % candidates.len()])
}

async fn wait(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}
