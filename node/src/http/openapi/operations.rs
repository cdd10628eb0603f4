//! The table: every route with its methods, parameters and answers.

use super::parts::{
    ADMIN, BAD, BUCKET, CHANGES, CONTEXT, DATA, DEADLINE, DETAIL, DURABILITY, FULL, HTML, KEY,
    NDJSON, NO_BUCKET, NOT_READY, PLAIN, PREFER, QUEUED, R, RUNNING, SHED, SLOPPY, TOO_LARGE,
    UNAVAILABLE, UNDECIDED, W, answer, bare, given,
};
use super::{JSON, Kind, Operation, Place, Sent, problem};
use crate::metrics::Route;

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
            PREFER,
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
            QUEUED,
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
        parameters: &[
            BUCKET, KEY, W, SLOPPY, DEADLINE, DURABILITY, CONTEXT, PREFER,
        ],
        answers: &[
            bare("204", "Deleted, whether or not the key was there"),
            QUEUED,
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
        route: Route::Write,
        sides: DATA,
        tag: "keys",
        summary: "What has become of an asynchronous write",
        parameters: &[given("id", Place::Path, Kind::Text, "As `Location` said")],
        answers: &[
            answer("200", "Its state", JSON, Kind::Shape("Write")),
            problem(
                "404",
                "No such write, it was accepted too long ago, or this node has no queue",
            ),
            SHED,
            UNAVAILABLE,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::Writes,
        method: "POST",
        sides: DATA,
        tag: "keys",
        summary: "Hand in a queued write, as workers do",
        parameters: &[given(
            "give_up",
            Place::Query,
            Kind::Text,
            "Do not store it, but note that it has failed for this reason",
        )],
        body: Some(Sent {
            media: crate::side::worker::MEDIA_TYPE,
            kind: Kind::Bytes,
            text: "A message of the queue, signed by the node that has accepted the write",
        }),
        answers: &[
            bare(
                "204",
                "Stored, or noted; `X-Torc-Superseded: true` when a newer version was there already",
            ),
            problem("400", "This is no queued write of this cluster"),
            NO_BUCKET,
            problem("410", "It was accepted too long ago"),
            problem("415", "The body is of another type"),
            SHED,
            UNAVAILABLE,
            FULL,
        ],
        ..PLAIN
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
        route: Route::RingVerify,
        sides: ADMIN,
        tag: "cluster",
        summary: "What each owner holds of a key",
        more: "All owners are asked now, those of both rings while a change runs. Nothing is repaired.",
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
                "Its owners, and what each of them holds",
                JSON,
                Kind::Shape("Verified"),
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
        route: Route::Repair,
        sides: ADMIN,
        tag: "cluster",
        summary: "How far this node's copies are known to agree with their other owners'",
        answers: &[answer(
            "200",
            "Its agreement",
            JSON,
            Kind::Shape("Agreement"),
        )],
        ..PLAIN
    },
    Operation {
        route: Route::Repair,
        method: "POST",
        sides: ADMIN,
        tag: "cluster",
        summary: "Compare all copies of this node with their other owners' before anything else",
        more: "Copies are compared all the time; this only moves them up. `GET` tells how many are left in doubt.",
        answers: &[
            answer(
                "202",
                "They are being compared",
                JSON,
                Kind::Shape("Agreement"),
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
        route: Route::BucketInfo,
        method: "PUT",
        sides: ADMIN,
        tag: "cluster",
        summary: "Make a bucket, or change its settings",
        more: "What is left out stays as it is, or gets its default. Another n moves data as a change of the ring does, and is changed alone.",
        parameters: &[BUCKET],
        body: Some(Sent {
            media: JSON,
            kind: Kind::Shape("Bucket"),
            text: "Its settings",
        }),
        answers: &[
            answer("200", "Changed", JSON, Kind::Shape("Bucket")),
            answer("201", "Made", JSON, Kind::Shape("Bucket")),
            BAD,
            RUNNING,
            UNDECIDED,
        ],
    },
    Operation {
        route: Route::BucketInfo,
        method: "DELETE",
        sides: ADMIN,
        tag: "cluster",
        summary: "Delete a bucket with all of its keys",
        parameters: &[BUCKET],
        answers: &[bare("204", "Deleted"), BAD, NO_BUCKET, RUNNING, UNDECIDED],
        ..PLAIN
    },
    Operation {
        route: Route::Buckets,
        sides: ADMIN,
        tag: "cluster",
        summary: "All buckets and their settings",
        answers: &[
            answer("200", "The buckets", JSON, Kind::Shape("Buckets")),
            NOT_READY,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::RingPlan,
        method: "POST",
        sides: ADMIN,
        tag: "cluster",
        summary: "What changes of the ring would move; changes nothing",
        body: CHANGES,
        answers: &[
            answer("200", "What would move", JSON, Kind::Shape("Plan")),
            BAD,
            RUNNING,
            NOT_READY,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::RingCommit,
        method: "POST",
        sides: ADMIN,
        tag: "cluster",
        summary: "Begin changes of the ring",
        more: "Answers when a majority of the members has stored the decision; the data moves from then on. With `config_version`, only if the configuration is still that of the plan.",
        body: CHANGES,
        answers: &[
            answer("200", "Decided", JSON, Kind::Shape("Decided")),
            BAD,
            RUNNING,
            UNDECIDED,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::RingAbort,
        method: "POST",
        sides: ADMIN,
        tag: "cluster",
        summary: "Take the running change of the ring back",
        answers: &[
            answer("200", "Decided", JSON, Kind::Shape("Decided")),
            RUNNING,
            UNDECIDED,
        ],
        ..PLAIN
    },
    Operation {
        route: Route::RingChange,
        sides: ADMIN,
        tag: "cluster",
        summary: "Where the ring stands: what moves, and how far each node is",
        answers: &[
            answer("200", "The change", JSON, Kind::Shape("Change")),
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
