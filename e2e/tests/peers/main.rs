//! Who speaks to the peer port without belonging there: refused, logged once, counted, harmless.

mod stranger;

use std::net::UdpSocket;
use std::time::Duration;

use stranger::{
    ALPN, Credentials, Hello, authority, certificate, closed, dial, endpoint, foreign_authority,
    send_first,
};
use torc_e2e::cluster::{Cluster, Node, Options, READY_MAX};
use torc_e2e::workload::{Random, seed};
use torc_e2e::{alone, wait};
use torc_protocol::wire::WIRE_VERSION;

const REFUSED: &str = "torc_peer_refused_total";
/// Year in which certificates end that are valid now.
const LATER: i32 = 2099;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn refused(node: &Node, reason: &str) -> f64 {
    let counted = node
        .metric(REFUSED, &[("reason", reason)])
        .expect("metrics");
    counted.unwrap_or(0.0)
}

/// Runs `misbehave` several times and checks that each time is counted under `reason` and that the
/// log does not repeat itself.
#[track_caller]
fn assert_refused(
    node: &Node,
    reason: &str,
    what: &str,
    mut misbehave: impl FnMut() -> Result<(), String>,
) {
    const TIMES: usize = 5;
    let counted = refused(node, reason);
    let logged = node.log().len();
    for _ in 0..TIMES {
        if let Err(wrong) = misbehave() {
            panic!("{what}: {wrong}");
        }
    }
    wait::until(
        &format!("{what}: {TIMES} counted as {reason}"),
        READY_MAX,
        || match refused(node, reason) - counted {
            more if more >= TIMES as f64 => Ok(()),
            more => Err(format!("{more} more; {:?}", all_refused(node))),
        },
    );
    let log = node.log_since(logged);
    let lines = log
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .count();
    assert!(
        lines <= 2,
        "{what}: {lines} warnings for {TIMES} times the same:\n{log}"
    );
    assert!(!log.contains("panicked"), "{what}: {log}");
}

fn all_refused(node: &Node) -> String {
    let metrics = node.ask_admin(&torc_e2e::http::Request::get("/metrics"));
    let text = metrics.map(|answer| answer.text()).unwrap_or_default();
    text.lines()
        .filter(|line| line.starts_with(REFUSED))
        .collect::<Vec<_>>()
        .join("\n")
}

fn one_node() -> Cluster {
    let cluster = Cluster::start(1, Options::default());
    cluster.nodes[0].put("/kv/default/k", "v");
    cluster
}

#[track_caller]
fn assert_unharmed(cluster: &Cluster, pid: u32) {
    let node = &cluster.nodes[0];
    assert_eq!(node.pid(), pid);
    assert_eq!(node.members().expect("members").len(), 1);
    assert_eq!(node.get("/kv/default/k").as_deref(), Some(&b"v"[..]));
    node.put("/kv/default/after", "still here");
    assert!(
        !node.log().contains("panicked"),
        "a task panicked:\n{}",
        node.log_end()
    );
}

/// A handshake that must not lead to a usable connection.
fn handshake_fails(
    node: &Node,
    credentials: Option<&Credentials>,
    alpn: &[u8],
) -> Result<(), String> {
    runtime().block_on(async {
        let endpoint = endpoint(credentials, alpn);
        // With TLS 1.3 the client is done before the server has judged it; the refusal comes next.
        let outcome = match dial(&endpoint, node.peer).await {
            Ok(connection) => closed(&connection).await,
            Err(refusal) if refusal == "no answer" => Err(refusal),
            Err(refusal) => Ok(refusal),
        };
        endpoint.close(0_u32.into(), b"");
        outcome.map(drop)
    })
}

/// First bytes after a good handshake that must end the connection.
fn first_bytes_fail(node: &Node, credentials: &Credentials, bytes: &[u8]) -> Result<(), String> {
    runtime().block_on(async {
        let endpoint = endpoint(Some(credentials), ALPN);
        let (connection, _send, _receive) = send_first(&endpoint, node.peer, bytes).await?;
        let outcome = closed(&connection).await;
        endpoint.close(0_u32.into(), b"");
        outcome.map(drop)
    })
}

#[test]
fn certificates_and_versions_that_do_not_belong_are_refused_at_the_handshake() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let pid = node.pid();
    let own = authority(cluster.pki());
    let foreign = foreign_authority();
    let ours = certificate(&own, Some("node-9"), LATER);
    let theirs = certificate(&foreign, Some("node-9"), LATER);
    let expired = certificate(&own, Some("node-9"), 2021);
    let table = [
        ("another authority", "certificate", Some(&theirs), ALPN),
        ("no certificate", "certificate", None, ALPN),
        (
            "an expired certificate",
            "certificate",
            Some(&expired),
            ALPN,
        ),
        ("another protocol", "wire_version", Some(&ours), b"h3"),
        (
            "a later protocol",
            "wire_version",
            Some(&ours),
            b"torc-peer/2",
        ),
    ];
    for (what, reason, credentials, alpn) in table {
        assert_refused(node, reason, what, || {
            handshake_fails(node, credentials, alpn)
        });
    }
    assert_unharmed(&cluster, pid);
}

#[test]
fn greetings_and_frames_that_do_not_belong_are_refused_after_it() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let pid = node.pid();
    let own = authority(cluster.pki());
    let credentials = certificate(&own, Some("node-9"), LATER);
    let good = Hello::good("node-9");
    let mut too_long = good.encode();
    too_long[..2].copy_from_slice(&u16::MAX.to_le_bytes());
    too_long.resize(70_000, 0);
    let followed_by = |bytes: &[u8]| [&good.encode()[..], bytes].concat();
    let table: Vec<(&str, &str, Vec<u8>)> = vec![
        (
            "a later greeting",
            "wire_version",
            Hello {
                version: 2,
                ..good.clone()
            }
            .encode(),
        ),
        (
            "another wire version",
            "wire_version",
            Hello {
                wire: 200,
                ..good.clone()
            }
            .encode(),
        ),
        (
            "another cluster",
            "other_cluster",
            Hello {
                cluster: Some(42),
                ..good.clone()
            }
            .encode(),
        ),
        (
            "another name",
            "certificate_name",
            Hello {
                name: "node-1".into(),
                ..good.clone()
            }
            .encode(),
        ),
        (
            "no greeting",
            "malformed_hello",
            b"\x10\x00GET / HTTP/1.1\r\n".to_vec(),
        ),
        (
            "another magic",
            "malformed_hello",
            Hello {
                magic: *b"crot",
                ..good.clone()
            }
            .encode(),
        ),
        ("an empty greeting", "malformed_hello", vec![0, 0]),
        ("a greeting that is too long", "malformed_hello", too_long),
        (
            "a name that is no name",
            "malformed_hello",
            Hello {
                name: "a b\n".into(),
                ..good.clone()
            }
            .encode(),
        ),
        (
            "a frame that is too long",
            "frame_too_long",
            followed_by(&[0xff; 64]),
        ),
        (
            "a frame just over any limit",
            "frame_too_long",
            followed_by(&(80_u32 << 20).to_le_bytes()),
        ),
        (
            "a frame of garbage",
            "malformed_frame",
            followed_by(&[&[17, 0, 0, 0, WIRE_VERSION][..], &[0xa5; 16]].concat()),
        ),
        (
            "a frame of another version",
            "wire_version",
            followed_by(&[2, 0, 0, 0, WIRE_VERSION + 1, 0]),
        ),
        (
            "an empty frame",
            "malformed_frame",
            followed_by(&[0, 0, 0, 0]),
        ),
    ];
    for (what, reason, bytes) in &table {
        assert_refused(node, reason, what, || {
            first_bytes_fail(node, &credentials, bytes)
        });
    }
    let nameless = certificate(&own, None, LATER);
    assert_refused(
        node,
        "certificate",
        "a certificate that is no node's",
        || first_bytes_fail(node, &nameless, &good.encode()),
    );
    assert_unharmed(&cluster, pid);
}

#[test]
fn random_frames_and_datagrams_neither_end_nor_hang_the_node() {
    let _alone = alone();
    let cluster = one_node();
    let node = &cluster.nodes[0];
    let pid = node.pid();
    let seed = seed();
    let mut random = Random(seed);
    let credentials = certificate(&authority(cluster.pki()), Some("node-9"), LATER);
    let hello = Hello::good("node-9").encode();
    for number in 0..200 {
        let length = 1 + random.below(200);
        let mut frame = (length as u32).to_le_bytes().to_vec();
        frame.extend((0..length).map(|_| random.next_u64() as u8));
        // A frame that by chance means something keeps the connection open: then we close.
        let outcome = runtime().block_on(async {
            let endpoint = endpoint(Some(&credentials), ALPN);
            let (connection, mut send, _receive) = send_first(&endpoint, node.peer, &hello).await?;
            // The node may have refused already.
            let _ = send.write_all(&frame).await;
            let _ = tokio::time::timeout(Duration::from_millis(200), connection.closed()).await;
            endpoint.close(0_u32.into(), b"");
            Ok::<_, String>(())
        });
        assert_eq!(outcome, Ok(()), "seed {seed}, number {number}");
    }
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    for _ in 0..20_000 {
        let mut datagram: Vec<u8> = (0..=random.below(1_400))
            .map(|_| random.next_u64() as u8)
            .collect();
        if random.below(2) == 0 {
            // The long header of a QUIC v1 packet, so that it is looked at more closely.
            datagram.splice(..0, [0xc3, 0, 0, 0, 1, 8]);
        }
        // A full buffer on this side is no fault of the node's.
        let _ = socket.send_to(&datagram, node.peer);
    }
    assert_unharmed(&cluster, pid);
}

#[test]
fn silent_and_too_many_connections_end_and_leave_room() {
    let _alone = alone();
    let mut cluster = Cluster::start(2, Options::default());
    cluster.nodes[0].put("/kv/default/k?w=all", "v");
    let credentials = certificate(&authority(cluster.pki()), Some("node-9"), LATER);
    let target = cluster.nodes[0].peer;
    let still_open = runtime().block_on(async {
        let endpoint = endpoint(Some(&credentials), ALPN);
        let mut connections = Vec::new();
        for _ in 0..300 {
            // Beyond the node's limit a dial may fail; that is the limit at work.
            let Ok(Ok(connection)) =
                tokio::time::timeout(Duration::from_secs(2), dial(&endpoint, target)).await
            else {
                break;
            };
            connections.push(connection);
        }
        eprintln!("{} silent connections", connections.len());
        let mut open = 0;
        for connection in &connections {
            // None has said a word; keep-alives must not keep such a one for ever.
            open += usize::from(closed(connection).await.is_err());
        }
        endpoint.close(0_u32.into(), b"");
        open
    });
    assert_eq!(still_open, 0, "silent connections are kept open");
    // Members find their way to each other all the same.
    cluster.nodes[0].put("/kv/default/k?w=all", "again");
    cluster.nodes[1].stop();
    cluster.nodes[1].start(&torc_e2e::cluster::Formation::Known);
    wait::until("both replicas to take a write again", READY_MAX, || {
        let request = torc_e2e::http::Request::put("/kv/default/k?w=all", "v3");
        match cluster.nodes[0].ask(&request) {
            Ok(answer) if answer.status == 204 => Ok(()),
            other => Err(torc_e2e::cluster::shown(other)),
        }
    });
}
