//! What operators are refused: plans, commits, aborts, buckets.

use http::StatusCode;
use torc_protocol::cluster_admin::AdminError;
use torc_ring::change::StageError;

use super::{Problem, Refused, shorten};

#[allow(clippy::unnecessary_box_returns)] // see `Refused`
impl Problem {
    /// What the cluster machine answered.
    pub(in crate::http) fn operator(error: AdminError) -> Refused {
        let text = error.to_string();
        let conflict = |kind, title, text| Self::new(StatusCode::CONFLICT, kind, title, text);
        let unavailable =
            |kind, title, text| Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, title, text);
        let problem = match error {
            AdminError::NotServing | AdminError::NotMember => {
                unavailable("not-ready", "Not ready", text).retry(1)
            }
            AdminError::ClockDrift => {
                unavailable("clock-drift", "Clock not trusted", text).retry(5)
            }
            AdminError::Unknown { version } => {
                unavailable("no-majority", "No majority has answered", text)
                    .with("config_version", version.0)
                    .with("outcome", "unknown")
            }
            AdminError::Busy(status) => {
                conflict("change-running", "A change of the ring is running", text)
                    .with("phase", status.phase.name())
                    .with("config_version", status.config.version.0)
                    .with("ring_version", status.config.ring_version.0)
            }
            AdminError::Stage(StageError::Running) => {
                conflict("change-running", "A change of the ring is running", text)
            }
            AdminError::NothingToAbort => {
                conflict("nothing-to-abort", "No change of the ring is running", text)
            }
            AdminError::Moved { now, .. } => {
                conflict("plan-outdated", "The plan is outdated", text)
                    .with("config_version", now.0)
            }
            AdminError::Overtaken { version } => {
                conflict("overtaken", "Another change was decided first", text)
                    .with("config_version", version.0)
            }
            AdminError::Alive { .. } => conflict("node-alive", "The node is alive", text),
            AdminError::ConflictMode { .. } => {
                conflict("conflict-mode", "The conflict mode cannot change", text)
            }
            AdminError::NoBucket { .. } => Self::new(
                StatusCode::NOT_FOUND,
                "no-such-bucket",
                "No such bucket",
                text,
            ),
            AdminError::TooMany => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "too-many-requests",
                "Too many requests",
                text,
            )
            .retry(1),
            AdminError::Stage(_) | AdminError::Config(_) | AdminError::ReplicasAlone { .. } => {
                Self::bad("change", "This change cannot be made", text)
            }
        };
        problem.boxed()
    }

    /// The cluster machine did not answer in time.
    pub(in crate::http) fn operator_unanswered() -> Refused {
        let detail = "this node did not come to an answer in time; what was asked for may still come true: \
                      look at GET /ring/change, and try again";
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "no-answer",
            "No answer in time",
            detail,
        )
        .with("outcome", "unknown")
        .retry(1)
        .boxed()
    }

    /// A name or id of no node.
    pub(in crate::http) fn no_node(given: &str) -> Refused {
        let detail = format!(
            "`{}` is neither a member of the ring nor a node that asks to join it; GET /ring and \
             GET /ring/change name them",
            shorten(given)
        );
        Self::bad("node", "No such node", detail).boxed()
    }

    /// A bucket of a mode that is not there yet.
    pub(in crate::http) fn conflict_mode_to_come() -> Refused {
        let detail = "buckets of this version resolve conflicts by `lww` only";
        Self::bad("conflict-mode", "Conflict mode not supported", detail).boxed()
    }
}
