//! What operations have in common: parameters, answers, and how to write them down.

use super::{Answer, Given, JSON, Kind, Operation, Place, Sent, Side, problem};
use crate::metrics::Route;

pub(super) const DATA: &[Side] = &[Side::Data];
pub(super) const ADMIN: &[Side] = &[Side::Admin];
pub(super) const BOTH: &[Side] = &[Side::Data, Side::Admin];

pub(super) const NDJSON: &str = "application/x-ndjson";
pub(super) const HTML: &str = "text/html";

pub(super) const fn given(
    name: &'static str,
    place: Place,
    kind: Kind,
    text: &'static str,
) -> Given {
    Given {
        name,
        place,
        kind,
        text,
    }
}

pub(super) const fn answer(
    status: &'static str,
    text: &'static str,
    media: &'static str,
    kind: Kind,
) -> Answer {
    Answer {
        status,
        text,
        media,
        kind,
    }
}

pub(super) const fn bare(status: &'static str, text: &'static str) -> Answer {
    answer(status, text, "", Kind::Object)
}

/// What most operations have in common.
pub(super) const PLAIN: Operation = Operation {
    route: Route::None,
    method: "GET",
    sides: BOTH,
    tag: "console",
    summary: "",
    more: "",
    parameters: &[],
    body: None,
    answers: &[],
};

pub(super) const BUCKET: Given = given(
    "bucket",
    Place::Path,
    Kind::Text,
    "Name of a bucket; `default` exists from the start",
);
pub(super) const KEY: Given = given(
    "key",
    Place::Path,
    Kind::Text,
    "1 to 1024 bytes, percent-encoded; slashes may stand as they are",
);
pub(super) const QUORUM: &str = "Replicas to wait for: `one`, `quorum`, `all`, or a number up to the bucket's n; the bucket's own value without it";
pub(super) const W: Given = given("w", Place::Query, Kind::Text, QUORUM);
pub(super) const R: Given = given("r", Place::Query, Kind::Text, QUORUM);
pub(super) const DEADLINE: Given = given(
    "deadline",
    Place::Query,
    Kind::Time,
    "Answer by then; also as header `X-Torc-Deadline`",
);
pub(super) const SLOPPY: Given = given(
    "sloppy",
    Place::Query,
    Kind::Flag,
    "The next nodes on the ring may stand in for dead owners",
);
pub(super) const DURABILITY: Given = given(
    "durability",
    Place::Query,
    Kind::Word(&["fsync"]),
    "On each replica's disk before it counts",
);
pub(super) const CONTEXT: Given = given(
    "X-Torc-Context",
    Place::Header,
    Kind::Text,
    "What an earlier answer said: the write orders after what that answer showed",
);

pub(super) const PREFER: Given = given(
    "Prefer",
    Place::Header,
    Kind::Word(&["respond-async"]),
    "Answer once the write is in the queue, where one is configured; goes with `w`, `ttl` and `deadline` only",
);

pub(super) const QUEUED: Answer = answer(
    "202",
    "In the queue: `Location` says where to ask for it, `ETag` and `X-Torc-Context` are those that it will have",
    JSON,
    Kind::Shape("Write"),
);
pub(super) const BAD: Answer = problem(
    "400",
    "A parameter, the bucket's name, the key, or the context is malformed",
);
pub(super) const NO_BUCKET: Answer = problem("404", "No such bucket");
pub(super) const UNAVAILABLE: Answer = problem(
    "503",
    "The quorum was not reached before the deadline, or the node is not ready; `outcome` says whether a write may still take effect",
);
pub(super) const SHED: Answer = problem(
    "429",
    "The node has as many requests in work as it may; try again after `Retry-After`",
);
pub(super) const TOO_LARGE: Answer = problem("413", "The value is larger than `limit` bytes");
pub(super) const FULL: Answer = problem(
    "507",
    "A disk is full: writes are refused, reads are served",
);
pub(super) const NOT_READY: Answer = problem("503", "The node does not serve; `detail` says why");
pub(super) const RUNNING: Answer = problem(
    "409",
    "A change is running, or another one was decided first, or the plan is outdated",
);
pub(super) const UNDECIDED: Answer = problem(
    "503",
    "No majority of the members has answered; the change may still come through",
);
pub(super) const CHANGES: Option<Sent> = Some(Sent {
    media: JSON,
    kind: Kind::Object,
    text: "`{\"changes\":[{\"change\":\"leave\",\"node\":\"node-3\"}]}`; also join, remove, replace (dead, by), reweigh (weight), rezone (zone), replicas (bucket, n)",
});
pub(super) const DETAIL: Kind = Kind::Shape("Detail");
