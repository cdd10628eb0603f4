//! The named schemas of the documents.

use super::{Field, Kind, Shape};

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

/// Every named schema.
pub(super) const SHAPES: &[Shape] = &[
    Shape {
        name: "Agreement",
        text: "How far the copies of partitions at a node are known to agree",
        fields: &[
            field("node", Kind::Text, "The node that answers"),
            field(
                "pairs",
                Kind::Whole,
                "Pairs of a partition here and another owner of it",
            ),
            field(
                "doubts",
                Kind::Whole,
                "Pairs that are in doubt and compared first",
            ),
            field(
                "age_seconds",
                Kind::Number,
                "Time since which the least verified pair is known to agree",
            ),
            field(
                "target_seconds",
                Kind::Number,
                "What `antientropy.age_target` aims at",
            ),
        ],
    },
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
        name: "Write",
        text: "An asynchronous write",
        fields: &[
            field("id", Kind::Text, ""),
            field("state", Kind::Word(&["pending", "applied", "failed"]), ""),
            maybe(
                "superseded",
                Kind::Flag,
                "A newer write is what readers see",
            ),
            maybe("reason", Kind::Text, "Why it has failed"),
            maybe("bucket", Kind::Text, ""),
            maybe("key", Kind::Text, ""),
            maybe("etag", Kind::Text, "The version that it has or will have"),
            maybe("accepted_us", Kind::Whole, "Microseconds since 1970"),
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
            field(
                "tables",
                Kind::Shapes("OwnerTable"),
                "Where a bucket's n has none, owners follow from the members",
            ),
        ],
    },
    Shape {
        name: "OwnerTable",
        text: "The owners of all partitions for one n",
        fields: &[
            field("n", Kind::Whole, "Replicas of each key"),
            field(
                "owners",
                Kind::Text,
                "Base64: for each partition min(n, members) positions in the list of members that are not \
                 joining, ordered by id, each in as few bits as the last position needs",
            ),
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
            field(
                "state",
                Kind::Word(&["member", "joining", "leaving", "recovering"]),
                "",
            ),
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
        name: "Verified",
        text: "What each owner holds of a key",
        fields: &[
            field("bucket", Kind::Text, ""),
            field("key", Kind::Text, ""),
            field("n", Kind::Whole, ""),
            field("partition", Kind::Whole, ""),
            field(
                "agree",
                Kind::Flag,
                "All of them have answered, and hold the same",
            ),
            field("owners", Kind::Shapes("Copy"), "In order of preference"),
        ],
    },
    Shape {
        name: "Copy",
        text: "What one owner holds of a key",
        fields: &[
            field("id", Kind::Text, ""),
            field("name", Kind::MaybeText, ""),
            field("http", Kind::MaybeText, ""),
            field("zone", Kind::MaybeText, ""),
            field("alive", Kind::Flag, ""),
            field(
                "answer",
                Kind::Word(&[
                    "holds",
                    "nothing",
                    "silent",
                    "ring_version",
                    "not_owner",
                    "storage",
                    "not_ready",
                ]),
                "`holds` a value or a tombstone, or `nothing`; else why it does not say",
            ),
            field("version", Kind::MaybeText, "Time and node of the write"),
            field("hash", Kind::MaybeText, "Of the content, hexadecimal"),
            maybe(
                "floor_micros",
                Kind::Whole,
                "Up to where the owner has collected what was deleted, in microseconds since 1970",
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
    Shape {
        name: "Buckets",
        text: "All buckets",
        fields: &[field("buckets", Kind::Shapes("Bucket"), "")],
    },
    Shape {
        name: "Decided",
        text: "What was decided",
        fields: &[
            field("config_version", Kind::Whole, ""),
            field("ring_version", Kind::Whole, ""),
        ],
    },
    Shape {
        name: "Plan",
        text: "What changes of the ring would move",
        fields: &[
            field("config_version", Kind::Whole, "For the commit"),
            field("partitions", Kind::Whole, "Of the whole ring"),
            field(
                "layouts",
                Kind::Shapes("Layout"),
                "One for each kind of bucket",
            ),
        ],
    },
    Shape {
        name: "Layout",
        text: "What moves in buckets of one number of replicas",
        fields: &[
            field("n_before", Kind::Whole, ""),
            field("n_after", Kind::Whole, ""),
            field("partitions_moving", Kind::Whole, ""),
            field("replicas_moved", Kind::Whole, "Copied to another node"),
            field("unavoidable", Kind::Number, "The least, in replicas"),
        ],
    },
    Shape {
        name: "Change",
        text: "Where the ring stands",
        fields: &[
            field(
                "phase",
                Kind::Word(&["idle", "proposing", "moving", "switching"]),
                "",
            ),
            field("config_version", Kind::Whole, ""),
            field("ring_version", Kind::Whole, ""),
            field("nodes", Kind::Shapes("ChangeNode"), ""),
        ],
    },
    Shape {
        name: "ChangeNode",
        text: "How far a node is with a change",
        fields: &[
            field("id", Kind::Text, ""),
            field("name", Kind::Text, ""),
            field(
                "role",
                Kind::Word(&["stays", "joins", "leaves", "removed"]),
                "",
            ),
        ],
    },
];
