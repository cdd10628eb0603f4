//! The table: every route with its methods, parameters and answers.

use super::{Answer, Field, Given, JSON, Kind, Operation, Place, Sent, Shape, Side, problem};
use crate::metrics::Route;

const DATA: &[Side] = &[Side::Data];
const ADMIN: &[Side] = &[Side::Admin];
const BOTH: &[Side] = &[Side::Data, Side::Admin];

const NDJSON: &str = "application/x-ndjson";
const HTML: &str = "text/html";

/// Groups of operations.
pub(super) const TAGS: &[(&str, &str)] = &[
    ("keys", "Values by bucket and key"),
    (
        "compatible",
        "A drop-in for clients of the older service, on the bucket `default`",
    ),
    ("cluster", "Ring, members and buckets"),
    ("health", "What load balancers and monitoring ask"),
    ("console", "Pages for people"),
];

const fn given(name: &'static str, place: Place, kind: Kind, text: &'static str) -> Given {
    Given {
        name,
        place,
        kind,
        text,
    }
}

const fn answer(
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

const fn bare(status: &'static str, text: &'static str) -> Answer {
    answer(status, text, "", Kind::Object)
}

const fn field(name: &'static str, kind: Kind, text: &'static str) -> Field {
    Field {
        name,
        kind,
        text,
        always: true,
    }
}

const fn maybe(name: &'static str, kind: Kind, text: &'static str) -> Field {
    Field {
        name,
        kind,
        text,
        always: false,
    }
}

/// What most operations have in common.
const PLAIN: Operation = Operation {
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

const BUCKET: Given = given(
    "bucket",
    Place::Path,
    Kind::Text,
    "Name of a bucket; `default` exists from the start",
);
const KEY: Given = given(
    "key",
    Place::Path,
    Kind::Text,
    "1 to 1024 bytes, percent-encoded; slashes may stand as they are",
);
const QUORUM: &str = "Replicas to wait for: `one`, `quorum`, `all`, or a number up to the bucket's n; the bucket's own value without it";
const W: Given = given("w", Place::Query, Kind::Text, QUORUM);
const R: Given = given("r", Place::Query, Kind::Text, QUORUM);
const DEADLINE: Given = given(
    "deadline",
    Place::Query,
    Kind::Time,
    "Answer by then; also as header `X-Torc-Deadline`",
);
const SLOPPY: Given = given(
    "sloppy",
    Place::Query,
    Kind::Flag,
    "The next nodes on the ring may stand in for dead owners",
);
const DURABILITY: Given = given(
    "durability",
    Place::Query,
    Kind::Word(&["fsync"]),
    "On each replica's disk before it counts",
);
const CONTEXT: Given = given(
    "X-Torc-Context",
    Place::Header,
    Kind::Text,
    "What an earlier answer said: the write orders after what that answer showed",
);

const BAD: Answer = problem(
    "400",
    "A parameter, the bucket's name, the key, or the context is malformed",
);
const NO_BUCKET: Answer = problem("404", "No such bucket");
const UNAVAILABLE: Answer = problem(
    "503",
    "The quorum was not reached before the deadline, or the node is not ready; `outcome` says whether a write may still take effect",
);
const SHED: Answer = problem(
    "429",
    "The node has as many requests in work as it may; try again after `Retry-After`",
);
const TOO_LARGE: Answer = problem("413", "The value is larger than `limit` bytes");
const FULL: Answer = problem(
    "507",
    "A disk is full: writes are refused, reads are served",
);
const NOT_READY: Answer = problem("503", "The node does not serve; `detail` says why");
const DETAIL: Kind = Kind::Shape("Detail");

/// Every operation of both listeners.
pub(in crate::http) const OPERATIONS: &[Operation] = &[
    Operation {
        route: Route::Key,
        sides: DATA,
        tag: "keys",
        summary: "Read a value",
        more: "With `wait` and `If-None-Match` it answers as soon as the key has another state, or `304` when the time is over.",
        parameters: &[
            BUCKET,
            KEY,
            R,
            DEADLINE,
            given(
                "wait",
                Place::Query,
                Kind::Time,
                "Watch: wait this long for another state than that of `If-None-Match`",
            ),
            given(
                "If-None-Match",
                Place::Header,
                Kind::Text,
                "An `ETag`: `304` while the value is still that one",
            ),
            given(
                "Range",
                Place::Header,
                Kind::Text,
                "Part of the value, such as `bytes=0-99`",
            ),
        ],
        answers: &[
            answer(
                "200",
                "The value, with `ETag`, `Last-Modified`, `X-Torc-Context` and the `Content-Type` that it was stored with",
                "*/*",
                Kind::Bytes,
            ),
            answer("206", "The part that `Range` asks for", "*/*", Kind::Bytes),
            bare("304", "Still the value of `If-None-Match`"),
            BAD,
            problem(
                "404",
                "No such key, or no such bucket; with a context when the key was deleted",
            ),
            problem("416", "The range lies outside the value"),
            SHED,
            UNAVAILABLE,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Key,
        method: "PUT",
        sides: DATA,
        tag: "keys",
        summary: "Store a value",
        parameters: &[
            BUCKET,
            KEY,
            W,
            given("ttl", Place::Query, Kind::Time, "Time to live"),
            SLOPPY,
            DEADLINE,
            DURABILITY,
            CONTEXT,
        ],
        body: Some(Sent {
            media: "*/*",
            kind: Kind::Bytes,
            text: "The value; its `Content-Type` is kept",
        }),
        answers: &[
            bare(
                "204",
                "Stored, with `ETag` and `X-Torc-Context`; `X-Torc-Superseded: true` when a newer version was there already",
            ),
            BAD,
            NO_BUCKET,
            TOO_LARGE,
            SHED,
            UNAVAILABLE,
            FULL,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Key,
        method: "DELETE",
        sides: DATA,
        tag: "keys",
        summary: "Delete a key",
        parameters: &[BUCKET, KEY, W, SLOPPY, DEADLINE, DURABILITY, CONTEXT],
        answers: &[
            bare("204", "Deleted, whether or not the key was there"),
            BAD,
            NO_BUCKET,
            SHED,
            UNAVAILABLE,
            FULL,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Bucket,
        sides: DATA,
        tag: "keys",
        summary: "List keys",
        more: "Each key once, in the order of their tokens. `prefix` filters; it does not shorten the way. A cursor survives ring changes.",
        parameters: &[
            BUCKET,
            given(
                "prefix",
                Place::Query,
                Kind::Text,
                "Only keys that begin so",
            ),
            given("limit", Place::Query, Kind::Whole, "At most so many keys"),
            given(
                "cursor",
                Place::Query,
                Kind::Text,
                "Go on where the answer with this cursor ended",
            ),
            DEADLINE,
            given(
                "Accept",
                Place::Header,
                Kind::Text,
                "`application/x-ndjson` streams a line for each key",
            ),
        ],
        answers: &[
            answer(
                "200",
                "Keys, and a cursor if there may be more",
                JSON,
                Kind::Shape("Keys"),
            ),
            BAD,
            NO_BUCKET,
            problem("406", "Neither JSON nor NDJSON is accepted"),
            SHED,
            UNAVAILABLE,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Batch,
        method: "POST",
        sides: DATA,
        tag: "keys",
        summary: "Do many operations",
        more: "At most 1,000 lines of `{\"op\":\"put\",\"key\":…,\"value\":…}`, `get` or `delete`. Not a transaction: each line has its own status.",
        parameters: &[BUCKET, DEADLINE],
        body: Some(Sent {
            media: NDJSON,
            kind: Kind::Text,
            text: "One operation a line",
        }),
        answers: &[
            answer(
                "200",
                "A line for each operation, in the same order",
                NDJSON,
                Kind::Text,
            ),
            BAD,
            NO_BUCKET,
            TOO_LARGE,
            problem("415", "The body is not NDJSON"),
            SHED,
            NOT_READY,
        ],
    },
    Operation {
        route: Route::Compatible,
        sides: DATA,
        tag: "compatible",
        summary: "Read a value as the older service did",
        parameters: &[given("key", Place::Needed, Kind::Text, "The key")],
        answers: &[
            answer(
                "200",
                "`{\"data\":{\"value\":…,\"source\":…}}`",
                JSON,
                Kind::Object,
            ),
            answer("400", "No key", JSON, DETAIL),
            answer("404", "Key not found", JSON, DETAIL),
            answer("503", "The quorum was not reached", JSON, DETAIL),
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Compatible,
        method: "PUT",
        sides: DATA,
        tag: "compatible",
        summary: "Store a value as the older service did",
        body: Some(Sent {
            media: JSON,
            kind: Kind::Shape("Envelope"),
            text: "Key and value",
        }),
        answers: &[
            answer("200", "Stored", JSON, DETAIL),
            answer("202", "Queued, where a queue is configured", JSON, DETAIL),
            answer("400", "Key or value is missing", JSON, DETAIL),
            answer("503", "The quorum was not reached", JSON, DETAIL),
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Compatible,
        method: "DELETE",
        sides: DATA,
        tag: "compatible",
        summary: "Delete a key as the older service did",
        parameters: &[given("key", Place::Needed, Kind::Text, "The key")],
        answers: &[
            answer("200", "Deleted", JSON, DETAIL),
            answer("202", "Queued, where a queue is configured", JSON, DETAIL),
            answer("400", "No key", JSON, DETAIL),
            answer("404", "Key not found", JSON, DETAIL),
            answer("503", "The quorum was not reached", JSON, DETAIL),
        ],
        ..PLAIN
    },
    Operation {
        route: Route::CacheStats,
        sides: DATA,
        tag: "compatible",
        summary: "Numbers of the read cache",
        answers: &[answer(
            "200",
            "Zeros where no cache is configured",
            JSON,
            Kind::Shape("CacheStats"),
        )],
        ..PLAIN
    },
    Operation {
        route: Route::HealthLive,
        tag: "health",
        summary: "The process answers",
        answers: &[answer("200", "It does", JSON, Kind::Shape("Status"))],
        ..PLAIN
    },
    Operation {
        route: Route::HealthReady,
        tag: "health",
        summary: "A load balancer may send requests here",
        answers: &[
            answer(
                "200",
                "The node has a config, its store is open, and it sees a majority",
                JSON,
                Kind::Shape("Status"),
            ),
            NOT_READY,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Health,
        tag: "health",
        summary: "Every component with its own status",
        answers: &[
            answer(
                "200",
                "The node serves; `degraded` when a component does not work as it should",
                JSON,
                Kind::Shape("Health"),
            ),
            answer(
                "503",
                "The node does not serve",
                JSON,
                Kind::Shape("Health"),
            ),
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Metrics,
        sides: ADMIN,
        tag: "health",
        summary: "Metrics in the text format of Prometheus (OpenMetrics)",
        answers: &[answer(
            "200",
            "All series of this node",
            "application/openmetrics-text",
            Kind::Text,
        )],
        ..PLAIN
    },
    Operation {
        route: Route::Ring,
        tag: "cluster",
        summary: "Members, their shares of the ring, versions",
        more: "And what a client needs to find a key's owners by itself.",
        answers: &[
            answer(
                "200",
                "The ring, as this node has it",
                JSON,
                Kind::Shape("Ring"),
            ),
            NOT_READY,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::RingOwners,
        sides: ADMIN,
        tag: "cluster",
        summary: "Who holds a key, in order of preference",
        parameters: &[
            given(
                "bucket",
                Place::Query,
                Kind::Text,
                "Name of the bucket; `default` without it",
            ),
            given("key", Place::Needed, Kind::Text, "The key, percent-encoded"),
        ],
        answers: &[
            answer(
                "200",
                "Its owners, and who stands in for them",
                JSON,
                Kind::Shape("Owners"),
            ),
            BAD,
            NO_BUCKET,
            NOT_READY,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Cluster,
        sides: ADMIN,
        tag: "cluster",
        summary: "The cluster in one picture, as seen from this node",
        answers: &[
            answer(
                "200",
                "Nodes, who of them answers, what waits",
                JSON,
                Kind::Shape("Cluster"),
            ),
            NOT_READY,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::BucketInfo,
        sides: ADMIN,
        tag: "cluster",
        summary: "A bucket's settings",
        parameters: &[BUCKET],
        answers: &[
            answer("200", "Its settings", JSON, Kind::Shape("Bucket")),
            BAD,
            NO_BUCKET,
            NOT_READY,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Page,
        summary: "The web console",
        answers: &[answer("200", "A page", HTML, Kind::Text)],
        ..PLAIN
    },
    Operation {
        route: Route::Asset,
        summary: "What the pages are made of",
        parameters: &[given(
            "file",
            Place::Path,
            Kind::Text,
            "A name that a page mentions",
        )],
        answers: &[
            answer("200", "The file", "*/*", Kind::Text),
            problem("404", "No such file"),
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Docs,
        summary: "This document, to read and to try (Swagger UI)",
        answers: &[answer("200", "A page", HTML, Kind::Text)],
        ..PLAIN
    },
    Operation {
        route: Route::DocsFile,
        summary: "Swagger UI",
        parameters: &[given(
            "file",
            Place::Path,
            Kind::Text,
            "A name that `/docs` mentions",
        )],
        answers: &[
            answer("200", "The file", "*/*", Kind::Text),
            problem("404", "No such file"),
        ],
        ..PLAIN
    },
    Operation {
        route: Route::OpenApi,
        summary: "This document",
        answers: &[answer("200", "OpenAPI 3.1", JSON, Kind::Object)],
        ..PLAIN
    },
];

/// Every named schema.
pub(super) const SHAPES: &[Shape] = &[
    Shape {
        name: "Problem",
        text: "An error (RFC 9457); the numbers that matter stand beside it",
        fields: &[
            field("type", Kind::Text, "`urn:torc:problem:…`"),
            field("title", Kind::Text, ""),
            field("status", Kind::Whole, ""),
            field(
                "detail",
                Kind::Text,
                "What was tried, on what, and what to do",
            ),
            maybe(
                "outcome",
                Kind::Word(&["unknown", "not-written"]),
                "Of a failed write: whether it may still take effect",
            ),
            maybe("required", Kind::Whole, ""),
            maybe("received", Kind::Whole, ""),
            maybe("limit", Kind::Whole, ""),
        ],
    },
    Shape {
        name: "Detail",
        text: "Answers and errors of the older service",
        fields: &[field("detail", Kind::Text, "")],
    },
    Shape {
        name: "Envelope",
        text: "What the older service's clients send",
        fields: &[field("data", Kind::Shape("Pair"), "")],
    },
    Shape {
        name: "Pair",
        text: "A key and its value",
        fields: &[field("key", Kind::Text, ""), field("value", Kind::Text, "")],
    },
    Shape {
        name: "CacheStats",
        text: "Numbers of the read cache",
        fields: &[
            field("keys_count", Kind::Whole, ""),
            field("max_keys_limit", Kind::Whole, ""),
            field("memory_used_bytes", Kind::Whole, ""),
            field("hits", Kind::Whole, ""),
            field("misses", Kind::Whole, ""),
        ],
    },
    Shape {
        name: "Keys",
        text: "Keys of a bucket",
        fields: &[
            field("keys", Kind::Shapes("ListedKey"), ""),
            field(
                "cursor",
                Kind::MaybeText,
                "Goes on from here; null when there is no more",
            ),
        ],
    },
    Shape {
        name: "ListedKey",
        text: "A key; `\"encoding\":\"base64\"` where it is not UTF-8",
        fields: &[
            field("key", Kind::Text, ""),
            field("size", Kind::Whole, "Of the value, in bytes"),
            field("etag", Kind::Text, ""),
            maybe("encoding", Kind::Word(&["base64"]), ""),
            maybe("expires_ms", Kind::Whole, "Milliseconds since 1970"),
        ],
    },
    Shape {
        name: "Status",
        text: "A status",
        fields: &[field("status", Kind::Text, "")],
    },
    Shape {
        name: "Health",
        text: "A node's health",
        fields: &[
            field("status", Kind::Word(&["ok", "degraded", "down"]), ""),
            field("components", Kind::Shape("Components"), ""),
        ],
    },
    Shape {
        name: "Components",
        text: "Each with a `status` of ok, degraded, down, or absent where none is configured",
        fields: &[
            field("store", Kind::Shape("Component"), ""),
            field("membership", Kind::Shape("Component"), ""),
            field("clock", Kind::Shape("Component"), ""),
            field("cache", Kind::Shape("Component"), ""),
            field("queue", Kind::Shape("Component"), ""),
        ],
    },
    Shape {
        name: "Component",
        text: "One component",
        fields: &[
            field(
                "status",
                Kind::Word(&["ok", "degraded", "down", "absent"]),
                "",
            ),
            maybe("reason", Kind::Text, "Why it is not ok"),
        ],
    },
    Shape {
        name: "Ring",
        text: "The ring",
        fields: &[
            field("cluster", Kind::Text, "Identity of the cluster"),
            field("node", Kind::Text, "Identity of this node"),
            field("config_version", Kind::Whole, ""),
            field("ring_version", Kind::Whole, ""),
            field("partition_bits", Kind::Whole, ""),
            field(
                "token_seed",
                Kind::Text,
                "Seed of the hash of keys, hexadecimal",
            ),
            field("changing", Kind::Flag, "A ring change is under way"),
            field("members", Kind::Shapes("Member"), ""),
            field("buckets", Kind::Shapes("BucketBrief"), ""),
        ],
    },
    Shape {
        name: "Member",
        text: "A node of the ring",
        fields: &[
            field("id", Kind::Text, ""),
            field("name", Kind::Text, ""),
            field("zone", Kind::Text, ""),
            field("weight", Kind::Whole, ""),
            field(
                "share",
                Kind::Number,
                "Its part of all replicas, from 0 to 1",
            ),
            field("peer", Kind::Text, ""),
            field("http", Kind::Text, ""),
            field("alive", Kind::Flag, "As seen from this node"),
            field("state", Kind::Word(&["member", "joining", "leaving"]), ""),
        ],
    },
    Shape {
        name: "BucketBrief",
        text: "A bucket",
        fields: &[
            field("name", Kind::Text, ""),
            field("id", Kind::Whole, ""),
            field("n", Kind::Whole, "Replicas"),
            field("conflict", Kind::Text, "How conflicting writes are settled"),
        ],
    },
    Shape {
        name: "Bucket",
        text: "A bucket's settings",
        fields: &[
            field("name", Kind::Text, ""),
            field("id", Kind::Whole, ""),
            field("n", Kind::Whole, "Replicas"),
            field("r", Kind::Text, "Replicas that a read waits for"),
            field("w", Kind::Text, "Replicas that a write waits for"),
            field("conflict", Kind::Text, ""),
            field("read_repair", Kind::Text, ""),
            field("sloppy", Kind::Flag, ""),
        ],
    },
    Shape {
        name: "Owner",
        text: "A node that holds a key",
        fields: &[
            field("id", Kind::Text, ""),
            field("name", Kind::MaybeText, ""),
            field("http", Kind::MaybeText, ""),
            field("zone", Kind::MaybeText, ""),
            field("alive", Kind::Flag, ""),
        ],
    },
    Shape {
        name: "Owners",
        text: "Who holds a key",
        fields: &[
            field("bucket", Kind::Text, ""),
            field("key", Kind::Text, ""),
            field("n", Kind::Whole, ""),
            field("token", Kind::Text, "Hexadecimal"),
            field("partition", Kind::Whole, ""),
            field("owners", Kind::Shapes("Owner"), "In order of preference"),
            field("stand_ins", Kind::Shapes("Owner"), ""),
            maybe(
                "next_owners",
                Kind::Shapes("Owner"),
                "During a ring change: who will own it",
            ),
        ],
    },
    Shape {
        name: "Cluster",
        text: "The cluster as seen from one node",
        fields: &[
            field("cluster", Kind::Text, ""),
            field("config_version", Kind::Whole, ""),
            field("ring_version", Kind::Whole, ""),
            field("seen_from", Kind::Object, ""),
            field("ready", Kind::Flag, ""),
            field("members", Kind::Whole, ""),
            field("alive", Kind::Whole, ""),
            field("replicas", Kind::Whole, ""),
            field("under_replicated", Kind::Flag, ""),
            field("disk_full", Kind::Flag, ""),
            field("clock_trusted", Kind::Flag, ""),
            field(
                "nodes",
                Kind::Shapes("Member"),
                "Members with hints that wait for them and their clocks' offset",
            ),
            field("buckets", Kind::Shapes("BucketBrief"), ""),
        ],
    },
];
