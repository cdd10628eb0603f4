//! The wire format: golden bytes of every kind of message, what is refused, and the laws of the codec.
//!
//! `wire.golden` holds a line per message: its name and its bytes in hexadecimal. A change of a line is a
//! change of the format and needs a new `WIRE_VERSION`; `PRINT_GOLDEN=1 cargo test -p torc-protocol --test
//! wire -- --nocapture` prints what the lines would be.
#![allow(missing_docs)]

mod config;

use std::fmt::Write as _;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use torc_protocol::agree::Ballot;
use torc_protocol::cluster_admin::Progress;
use torc_protocol::cluster_message::{ClusterMessage, JoinRefusal, Standing};
use torc_protocol::floor_message::{FloorAnswer, FloorAsk, FloorBody, FloorMessage, FloorRefusal};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{
    Cursor, ListEntry, Listed, OpId, PeerBody, PeerMessage, RecordKey, Refusal, Reply, ReplyKind,
    Request, RequestKind, WritePurpose,
};
use torc_protocol::record::{Parts, Record};
use torc_protocol::siblings::{Causal, Content, Dot, Sibling, Siblings};
use torc_protocol::sync_message::{
    Root, SyncAnswer, SyncAsk, SyncBody, SyncEntry, SyncMessage, SyncRefusal,
};
use torc_protocol::version::{Digest, Version};
use torc_protocol::wire::{self, Blob, WIRE_VERSION, WireError};
use torc_ring::{
    BucketId, ClusterId, Config, ConfigVersion, Member, NodeId, PartitionId, RingVersion, Secret,
    Token,
};

fn encoded(message: &PeerMessage) -> Bytes {
    let mut out = BytesMut::new();
    wire::encode(message, &mut out).expect("within the limit");
    out.freeze()
}

fn blob(bytes: &'static [u8]) -> Blob {
    Blob(Bytes::from_static(bytes))
}

fn version() -> Version {
    Version {
        hlc: Hlc(0x0102),
        node: NodeId(3),
    }
}

fn digest() -> Digest {
    Digest {
        version: version(),
        hash: 0x0a0b,
    }
}

fn key() -> RecordKey {
    RecordKey {
        bucket: BucketId(1),
        token: Token(0x10),
        key: Bytes::from_static(b"key"),
    }
}

fn value() -> Record {
    Record::value(Parts {
        version: version(),
        expiry: Some(9),
        content_type: b"t",
        value: b"v",
    })
}

fn siblings() -> Record {
    let mut set = Siblings::default();
    let content = Content {
        content_type: Bytes::new(),
        value: Bytes::from_static(b"v"),
    };
    let sibling = Sibling {
        write: 7,
        expiry: None,
        content: Some(content),
    };
    set.write(
        &Causal::new(),
        Dot {
            node: NodeId(3),
            epoch: 1,
            hlc: Hlc(5),
        },
        sibling,
    );
    set.to_record().expect("encodes")
}

fn member() -> Member {
    Member {
        id: NodeId(4),
        name: "n".into(),
        zone: "z".into(),
        weight: 100,
        peer: "h:1".into(),
        http: "h:2".into(),
    }
}

fn config() -> Config {
    Config::bootstrap(ClusterId(1), (2, Secret([3; 32])), 4, member())
}

fn cursor() -> Cursor {
    Cursor {
        token: Token(0x20),
        key: blob(b"c"),
    }
}

fn ballot() -> Ballot {
    Ballot {
        hlc: Hlc(0x30),
        node: NodeId(3),
    }
}

fn standing() -> Standing {
    Standing {
        cluster: Some(ClusterId(1)),
        decided: ConfigVersion(3),
        applied: ConfigVersion(2),
        bound: Hlc(0x40),
    }
}

fn request(kind: RequestKind) -> PeerBody {
    let trace = blob(b"id");
    PeerBody::Request(Request {
        op: OpId(0x50),
        ring: RingVersion(2),
        remaining_us: 1_000,
        trace,
        kind,
    })
}

fn reply(kind: ReplyKind) -> PeerBody {
    PeerBody::Reply(Reply {
        op: OpId(0x50),
        ring: RingVersion(2),
        floor: Hlc(0x60),
        kind,
    })
}

fn requests() -> Vec<(&'static str, PeerBody)> {
    let write = |record, purpose| RequestKind::Write {
        key: key(),
        record,
        purpose,
        fsync: true,
        floor: Hlc(0x60),
    };
    let after = Some(cursor());
    let (bucket, partition) = (BucketId(1), PartitionId(6));
    vec![
        ("write", request(write(value(), WritePurpose::Client))),
        (
            "write hint",
            request(write(Record::tombstone(version()), WritePurpose::Hint)),
        ),
        (
            "write repair",
            request(write(siblings(), WritePurpose::Repair)),
        ),
        (
            "stand in",
            request(RequestKind::StandIn {
                target: NodeId(8),
                key: key(),
                record: value(),
            }),
        ),
        (
            "read",
            request(RequestKind::Read {
                key: key(),
                digest_only: true,
            }),
        ),
        (
            "list",
            request(RequestKind::List {
                bucket,
                partition,
                after,
                prefix: blob(b"p"),
                limit: 5,
            }),
        ),
        (
            "watch",
            request(RequestKind::Watch {
                key: key(),
                known: Some(digest()),
            }),
        ),
    ]
}

fn replies() -> Vec<(&'static str, PeerBody)> {
    let entry = ListEntry {
        at: cursor(),
        digest: digest(),
        live: true,
        expiry: 0,
        value_len: 3,
    };
    let listed = Listed {
        entries: vec![entry],
        reached: Some(cursor()),
    };
    let refused = |refusal| reply(ReplyKind::Refused(refusal));
    vec![
        ("written", reply(ReplyKind::Written { stored: version() })),
        ("stood in", reply(ReplyKind::StoodIn)),
        (
            "full",
            reply(ReplyKind::Full {
                record: Some(value()),
            }),
        ),
        ("full nothing", reply(ReplyKind::Full { record: None })),
        (
            "digest",
            reply(ReplyKind::Digest {
                digest: Some(digest()),
            }),
        ),
        ("listed", reply(ReplyKind::Listed(listed))),
        ("changed", reply(ReplyKind::Changed)),
        (
            "refused ring version",
            refused(Refusal::RingVersion {
                config: ConfigVersion(3),
            }),
        ),
        ("refused not owner", refused(Refusal::NotOwner)),
        ("refused expired", refused(Refusal::Expired)),
        ("refused disk full", refused(Refusal::DiskFull)),
        ("refused overloaded", refused(Refusal::Overloaded)),
        ("refused clock drift", refused(Refusal::ClockDrift)),
        ("refused storage", refused(Refusal::Storage)),
        ("refused closed", refused(Refusal::Closed)),
        ("refused inheriting", refused(Refusal::Inheriting)),
    ]
}

fn cluster() -> Vec<(&'static str, ClusterMessage)> {
    let encoded = Blob(wire::encode_config(&config()).expect("encodes"));
    let (version, ring) = (ConfigVersion(2), RingVersion(2));
    let refused = |refusal| ClusterMessage::JoinRefused { refusal };
    let join = ClusterMessage::Join {
        protocol: 1,
        version,
        cluster: ClusterId(1),
        member: member(),
        replaces: Some("node-9".into()),
    };
    let progress = Progress {
        covered: true,
        done: 3,
        total: 5,
        bytes: 7,
    };
    let configs = vec![encoded.clone(), blob(b"any bytes")];
    vec![
        (
            "ping",
            ClusterMessage::Ping {
                seq: 1,
                standing: standing(),
            },
        ),
        (
            "pong",
            ClusterMessage::Pong {
                seq: 1,
                wall: 9,
                standing: Standing {
                    cluster: None,
                    ..standing()
                },
            },
        ),
        (
            "start check",
            ClusterMessage::StartCheck {
                bound: Hlc(1),
                cluster: ClusterId(1),
            },
        ),
        (
            "start checked",
            ClusterMessage::StartChecked {
                bound: Hlc(1),
                remembered: Hlc(2),
            },
        ),
        (
            "foreign",
            ClusterMessage::Foreign {
                cluster: ClusterId(1),
            },
        ),
        (
            "fetch",
            ClusterMessage::Fetch {
                after: Some(version),
            },
        ),
        (
            "configs",
            ClusterMessage::Configs {
                oldest: ConfigVersion(1),
                latest: version,
                configs,
            },
        ),
        ("join", join),
        ("join busy", ClusterMessage::JoinBusy),
        (
            "join refused protocol",
            refused(JoinRefusal::Protocol {
                cluster: 2,
                joiner: 1,
            }),
        ),
        (
            "join refused other cluster",
            refused(JoinRefusal::OtherCluster {
                theirs: ClusterId(1),
                ours: ClusterId(2),
            }),
        ),
        (
            "join refused name taken",
            refused(JoinRefusal::NameTaken { name: "n".into() }),
        ),
        (
            "join refused address taken",
            refused(JoinRefusal::AddressTaken {
                address: "h:1".into(),
            }),
        ),
        ("join refused bad member", refused(JoinRefusal::BadMember)),
        (
            "join refused too many members",
            refused(JoinRefusal::TooManyMembers { count: 1_000 }),
        ),
        (
            "join refused no such member",
            refused(JoinRefusal::NoSuchMember { name: "n".into() }),
        ),
        (
            "join refused alive",
            refused(JoinRefusal::Alive { name: "n".into() }),
        ),
        ("join refused aborted", refused(JoinRefusal::Aborted)),
        (
            "join refused unreachable",
            refused(JoinRefusal::Unreachable {
                address: "h:1".into(),
                reached: 1,
                members: 3,
            }),
        ),
        (
            "probe",
            ClusterMessage::Probe {
                change: 5,
                joiners: vec![member()],
            },
        ),
        (
            "probed",
            ClusterMessage::Probed {
                change: 5,
                reached: vec![NodeId(4)],
            },
        ),
        ("lost", ClusterMessage::Lost { above: ring }),
        ("recovered", ClusterMessage::Recovered { ring }),
        (
            "prepare",
            ClusterMessage::Prepare {
                version,
                ballot: ballot(),
            },
        ),
        (
            "promise",
            ClusterMessage::Promise {
                version,
                ballot: ballot(),
                accepted: Some((ballot(), encoded.clone())),
            },
        ),
        (
            "accept",
            ClusterMessage::Accept {
                ballot: ballot(),
                config: encoded.clone(),
            },
        ),
        (
            "accepted",
            ClusterMessage::Accepted {
                version,
                ballot: ballot(),
            },
        ),
        (
            "rejected",
            ClusterMessage::Rejected {
                version,
                ballot: ballot(),
                promised: ballot(),
            },
        ),
        ("learn", ClusterMessage::Learn { config: encoded }),
        ("learned", ClusterMessage::Learned { version }),
        ("ask", ClusterMessage::Ask { ring, drives: true }),
        ("progress", ClusterMessage::Progress { ring, progress }),
    ]
}

fn sync(body: SyncBody) -> PeerBody {
    PeerBody::Sync(SyncMessage {
        session: OpId(0x70),
        number: 3,
        ring: RingVersion(2),
        partition: PartitionId(6),
        floor: Hlc(0x60),
        body,
    })
}

fn floors() -> Vec<(&'static str, PeerBody)> {
    let floor = |body| {
        PeerBody::Floor(FloorMessage {
            op: OpId(0x80),
            ring: RingVersion(2),
            bucket: BucketId(1),
            partition: PartitionId(6),
            floor: Hlc(0x60),
            body,
        })
    };
    let ask = |ask| floor(FloorBody::Ask(ask));
    let answer = |answer| floor(FloorBody::Answer(answer));
    let refused = |refusal| answer(FloorAnswer::Refused(refusal));
    let (to, upto) = (Hlc(0x61), Hlc(0x62));
    vec![
        ("floor limit", ask(FloorAsk::Limit)),
        ("floor confirm", ask(FloorAsk::Confirm { to })),
        ("floor close", ask(FloorAsk::Close { to })),
        ("floor compare", ask(FloorAsk::Compare { to })),
        ("floor raise", ask(FloorAsk::Raise { to })),
        ("floor inherit", ask(FloorAsk::Inherit)),
        ("floor limited", answer(FloorAnswer::Limit { upto })),
        ("floor done", answer(FloorAnswer::Done)),
        ("floor closed", answer(FloorAnswer::Closed { upto })),
        (
            "floor refused ring version",
            refused(FloorRefusal::RingVersion),
        ),
        ("floor refused not owner", refused(FloorRefusal::NotOwner)),
        ("floor refused not ready", refused(FloorRefusal::NotReady)),
        ("floor refused uneven", refused(FloorRefusal::Uneven)),
        ("floor refused too young", refused(FloorRefusal::TooYoung)),
        ("floor refused hints", refused(FloorRefusal::Hints)),
        ("floor refused failed", refused(FloorRefusal::Failed)),
    ]
}

fn syncs() -> Vec<(&'static str, PeerBody)> {
    let ask = |ask| {
        sync(SyncBody::Ask {
            remaining_us: 1_000,
            ask,
        })
    };
    let answer = |answer| sync(SyncBody::Answer(answer));
    let refused = |refusal| answer(SyncAnswer::Refused(refusal));
    let bucket = BucketId(1);
    let entry = SyncEntry {
        at: cursor(),
        record: value(),
    };
    let root = Root {
        sum: 5,
        depth: 2,
        keys: 9,
        floor: Hlc(0x60),
        whole: true,
    };
    vec![
        (
            "sync roots",
            ask(SyncAsk::Roots {
                buckets: vec![bucket],
            }),
        ),
        (
            "sync sums",
            ask(SyncAsk::Sums {
                bucket,
                depth: 2,
                nodes: vec![1, 3],
            }),
        ),
        (
            "sync digests",
            ask(SyncAsk::Digests {
                bucket,
                range: (Token(1), Token(9)),
                after: Some(cursor()),
            }),
        ),
        (
            "sync pull",
            ask(SyncAsk::Pull {
                bucket,
                keys: vec![cursor()],
            }),
        ),
        (
            "sync push",
            ask(SyncAsk::Push {
                bucket,
                entries: vec![entry.clone()],
            }),
        ),
        (
            "sync page",
            ask(SyncAsk::Page {
                bucket,
                after: None,
            }),
        ),
        ("sync verified", ask(SyncAsk::Verified { age_us: 7 })),
        ("sync doubt", ask(SyncAsk::Doubt { node: NodeId(8) })),
        ("sync roots answered", answer(SyncAnswer::Roots(vec![root]))),
        (
            "sync sums answered",
            answer(SyncAnswer::Sums {
                depth: 2,
                sums: vec![6, 7],
            }),
        ),
        (
            "sync digests answered",
            answer(SyncAnswer::Digests {
                entries: vec![(cursor(), digest())],
                reached: None,
            }),
        ),
        (
            "sync records answered",
            answer(SyncAnswer::Records {
                entries: vec![entry],
                reached: Some(cursor()),
            }),
        ),
        ("sync stored", answer(SyncAnswer::Stored)),
        ("sync noted", answer(SyncAnswer::Noted)),
        (
            "sync refused ring version",
            refused(SyncRefusal::RingVersion {
                config: ConfigVersion(3),
            }),
        ),
        ("sync refused not drained", refused(SyncRefusal::NotDrained)),
        ("sync refused not owner", refused(SyncRefusal::NotOwner)),
        (
            "sync refused busy",
            refused(SyncRefusal::Busy { after_us: 5 }),
        ),
        ("sync refused failed", refused(SyncRefusal::Failed)),
    ]
}

/// One of every kind of message.
fn samples() -> Vec<(&'static str, PeerMessage)> {
    let cluster = cluster()
        .into_iter()
        .map(|(name, message)| (name, PeerBody::Cluster(message)));
    let bodies = requests()
        .into_iter()
        .chain(replies())
        .chain(cluster)
        .chain(syncs())
        .chain(floors());
    bodies
        .map(|(name, body)| {
            (
                name,
                PeerMessage {
                    hlc: Hlc(0x60),
                    body,
                },
            )
        })
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[test]
#[allow(clippy::disallowed_methods)] // a test's own setting
fn the_bytes_of_every_message_are_these() {
    let actual: Vec<String> = samples()
        .iter()
        .map(|(name, message)| format!("{name}: {}", hex(&encoded(message))))
        .collect();
    if std::env::var_os("PRINT_GOLDEN").is_some() {
        println!("{}", actual.join("\n"));
    }
    let golden: Vec<&str> = include_str!("../wire.golden").lines().collect();
    for (actual, golden) in actual.iter().zip(&golden) {
        assert_eq!(actual, golden, "the wire format has changed");
    }
    assert_eq!(actual.len(), golden.len(), "a line per message");
}

#[test]
fn every_message_comes_back_and_shares_the_frame() {
    for (name, message) in samples() {
        let frame = encoded(&message);
        assert_eq!(wire::decode(&frame).expect(name), message, "{name}");
    }
    let (_, message) = &samples()[0];
    let frame = encoded(message);
    let decoded = wire::decode(&frame).expect("decodes");
    let PeerBody::Request(Request {
        kind: RequestKind::Write { record, .. },
        ..
    }) = decoded.body
    else {
        panic!("the first sample is a write");
    };
    let inside = frame.as_ptr_range().contains(&record.as_bytes().as_ptr());
    assert!(inside, "a value is not copied");
}

#[test]
fn a_cut_or_longer_frame_is_refused() {
    for (name, message) in samples() {
        let frame = encoded(&message);
        for len in 0..frame.len() {
            assert!(
                wire::decode(&frame.slice(..len)).is_err(),
                "{name} cut at {len}"
            );
        }
        let mut longer = frame.to_vec();
        longer.push(0);
        assert!(
            matches!(
                wire::decode(&longer.into()),
                Err(WireError::Trailing { left: 1 })
            ),
            "{name}"
        );
    }
}

#[test]
fn another_version_is_named_before_anything_is_read() {
    let mut frame = encoded(&samples()[0].1).to_vec();
    frame[0] = WIRE_VERSION + 1;
    let refused = wire::decode(&frame.into());
    assert!(matches!(refused, Err(WireError::Version { theirs }) if theirs == WIRE_VERSION + 1));
    assert!(matches!(wire::decode(&Bytes::new()), Err(WireError::Empty)));
}

#[test]
fn a_hostile_length_is_an_error_and_not_an_allocation() {
    // The count of configs in `configs` stands 8 bytes before the first one.
    let (_, message) = samples()
        .into_iter()
        .find(|(name, _)| *name == "configs")
        .expect("there");
    let frame = encoded(&message);
    let at = 1 + 8 + 4 + 4 + 8 + 8;
    assert_eq!(frame[at..at + 8], 2_u64.to_le_bytes(), "the count");
    for count in [3, 1 << 20, 1 << 40, u64::MAX / 2, u64::MAX] {
        let mut hostile = frame.to_vec();
        hostile[at..at + 8].copy_from_slice(&count.to_le_bytes());
        assert!(wire::decode(&hostile.into()).is_err(), "{count}");
    }
}

#[test]
fn a_damaged_record_or_key_is_refused() {
    let frame = encoded(&samples()[0].1);
    let text = frame
        .windows(3)
        .position(|window| window == b"key")
        .expect("the key");
    let mut damaged = frame.to_vec();
    // Behind the record stand its purpose, whether to fsync, and a floor.
    let last = damaged.len() - 14;
    damaged[last] ^= 1;
    assert!(
        wire::decode(&damaged.into()).is_err(),
        "the record fails its checksum"
    );
    let mut keyless = frame.to_vec();
    keyless.drain(text..text + 3);
    keyless[text - 8..text].copy_from_slice(&0_u64.to_le_bytes());
    assert!(wire::decode(&keyless.into()).is_err(), "an empty key");
}

fn any_record() -> impl Strategy<Value = Record> {
    let content = prop::collection::vec(any::<u8>(), 0..40);
    (
        any::<u64>(),
        any::<u64>(),
        prop::option::of(1_u64..),
        content,
        0..3_u8,
    )
        .prop_map(|(hlc, node, expiry, content, kind)| {
            let version = Version {
                hlc: Hlc(hlc),
                node: NodeId(node),
            };
            match kind {
                0 => Record::tombstone(version),
                1 => siblings(),
                _ => Record::value(Parts {
                    version,
                    expiry,
                    content_type: b"text/plain",
                    value: &content,
                }),
            }
        })
}

fn any_key() -> impl Strategy<Value = RecordKey> {
    let key = prop::collection::vec(any::<u8>(), 1..64);
    (any::<u32>(), any::<u64>(), key).prop_map(|(bucket, token, key)| RecordKey {
        bucket: BucketId(bucket),
        token: Token(token),
        key: key.into(),
    })
}

fn any_body() -> impl Strategy<Value = PeerBody> {
    let samples: Vec<PeerBody> = samples()
        .into_iter()
        .map(|(_, message)| message.body)
        .collect();
    let write = (any_key(), any_record(), any::<bool>()).prop_map(|(key, record, fsync)| {
        request(RequestKind::Write {
            key,
            record,
            purpose: WritePurpose::Client,
            fsync,
            floor: Hlc(0),
        })
    });
    let full = prop::option::of(any_record()).prop_map(|record| reply(ReplyKind::Full { record }));
    let entries = prop::collection::vec((any::<u64>(), any::<u64>(), any::<bool>()), 0..20);
    let listed = entries.prop_map(|entries| {
        let entries = entries.into_iter().map(|(token, value_len, live)| {
            let at = Cursor {
                token: Token(token),
                key: blob(b"k"),
            };
            ListEntry {
                at,
                digest: digest(),
                live,
                expiry: token / 2,
                value_len,
            }
        });
        reply(ReplyKind::Listed(Listed {
            entries: entries.collect(),
            reached: None,
        }))
    });
    prop_oneof![prop::sample::select(samples), write, full, listed]
}

proptest! {
    #[test]
    fn what_is_encoded_comes_back(hlc: u64, body in any_body()) {
        let message = PeerMessage { hlc: Hlc(hlc), body };
        let mut out = BytesMut::from(&b"before"[..]);
        let len = wire::encode(&message, &mut out).expect("within the limit");
        prop_assert_eq!(len + 6, out.len(), "appended, and the length is told");
        let frame = out.freeze().slice(6..);
        prop_assert_eq!(wire::decode(&frame).expect("decodes"), message);
    }

    /// What decodes encodes to the same bytes again: no two frames mean the same.
    #[test]
    fn a_damaged_frame_is_refused_or_another_message(body in any_body(), at: prop::sample::Index, bit in 0..8_u8) {
        let mut frame = encoded(&PeerMessage { hlc: Hlc(1), body }).to_vec();
        let at = at.index(frame.len());
        frame[at] ^= 1 << bit;
        let frame = Bytes::from(frame);
        if let Ok(message) = wire::decode(&frame) {
            prop_assert_eq!(encoded(&message), frame);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = wire::decode_config(&bytes);
        let mut framed = vec![WIRE_VERSION];
        framed.extend(bytes);
        let _ = wire::decode(&framed.into());
    }
}
