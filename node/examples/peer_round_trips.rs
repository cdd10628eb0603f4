//! Round trips per second between two nodes, 64 in flight, values of 1 KiB both ways: the peer transport
//! beside a bare quinn stream with frames of the same size, in the same process, one after the other.
//!
//! `cargo run --release -p torc-node --example peer_round_trips [seconds] [rounds]`; each line is JSON
//! when the environment has `JSON=1`.

// A measurement prints its result, and has nobody to report an error to but its caller.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use torc_node::pki::{Identity, PEER_DNS_NAME};
use torc_node::transport::{Inbound, Transport, TransportMetrics, TransportSettings};
use torc_protocol::hlc::Hlc;
use torc_protocol::message::{OpId, PeerBody, PeerMessage, Reply, ReplyKind};
use torc_protocol::record::{Parts, Record};
use torc_protocol::version::Version;
use torc_ring::{Member, NodeId, RingVersion};

const IN_FLIGHT: usize = 64;
const VALUE_LEN: usize = 1024;
/// A frame of the bare stream: as long as the transport's with the same value.
const FRAME_LEN: usize = VALUE_LEN + 100;

fn main() {
    let mut args = std::env::args()
        .skip(1)
        .map(|arg| arg.parse::<u64>().unwrap());
    let seconds = Duration::from_secs(args.next().unwrap_or(3));
    let rounds = args.next().unwrap_or(3);
    let dir = std::env::temp_dir().join(format!("torc-peer-round-trips-{}", std::process::id()));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let identity = |name| Identity::development_in(&dir, name).unwrap();
    let (a, b) = (identity("a"), identity("b"));
    for _ in 0..rounds {
        runtime.block_on(measure("bare quinn", seconds, bare(a.clone(), b.clone())));
        runtime.block_on(measure(
            "transport",
            seconds,
            transport(a.clone(), b.clone()),
        ));
    }
    std::fs::remove_dir_all(dir).unwrap();
}

/// What runs, counts its round trips, and ends when told.
struct Load {
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    transports: Vec<Transport>,
    endpoints: Vec<quinn::Endpoint>,
}

async fn measure(what: &str, time: Duration, load: impl Future<Output = Load>) {
    let load = load.await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (from, cpu, at) = (
        load.done.load(Ordering::Relaxed),
        cpu_seconds(),
        Instant::now(),
    );
    tokio::time::sleep(time).await;
    let count = load.done.load(Ordering::Relaxed) - from;
    let (cpu, elapsed) = (cpu_seconds() - cpu, at.elapsed().as_secs_f64());
    load.stop.store(true, Ordering::Relaxed);
    let (rate, each) = (count as f64 / elapsed, cpu * 1e6 / count as f64);
    if std::env::var_os("JSON").is_some() {
        println!(r#"{{"what":"{what}","per_second":{rate:.0},"cpu_us":{each:.2}}}"#);
    } else {
        println!("{what:12} {rate:8.0} round trips/s  {each:5.1} us CPU each (both sides)");
    }
    for transport in load.transports {
        transport.stop().await;
    }
    for endpoint in load.endpoints {
        endpoint.close(0_u32.into(), b"");
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(") ").next().unwrap();
    let ticks = |index: usize| {
        after_name
            .split(' ')
            .nth(index)
            .unwrap()
            .parse::<f64>()
            .unwrap()
    };
    (ticks(11) + ticks(12)) / 100.0
}

struct Uncounted;

impl TransportMetrics for Uncounted {
    fn sent(&self, _: Option<NodeId>, _: u64) {}
    fn received(&self, _: Option<NodeId>, _: u64) {}
    fn refused(&self, _: &'static str) {}
    fn shed(&self, _: &'static str, messages: u64) {
        println!("shed {messages}");
    }
    fn lost(&self, _: NodeId, messages: u64) {
        println!("lost {messages}");
    }
}

/// Answers each message with the same one.
struct Echo {
    to: NodeId,
    transport: OnceLock<Transport>,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Inbound for Echo {
    fn on_messages(&self, _: NodeId, messages: Vec<PeerMessage>) {
        self.done
            .fetch_add(messages.len() as u64, Ordering::Relaxed);
        if self.stop.load(Ordering::Relaxed) {
            return;
        }
        let transport = self.transport.wait();
        for message in messages {
            transport.send(self.to, message);
        }
    }
    fn on_gossip(&self, _: SocketAddr, _: Bytes) {}
    fn on_link(&self, _: NodeId, _: bool) {}
}

async fn transport(a: Identity, b: Identity) -> Load {
    let stop = Arc::new(AtomicBool::new(false));
    let start = |id: u64, identity: Identity| {
        let done = Arc::new(AtomicU64::new(0));
        let echo = Arc::new(Echo {
            to: NodeId(3 - id),
            transport: OnceLock::new(),
            done: done.clone(),
            stop: stop.clone(),
        });
        let name = identity.name().to_owned();
        let settings = TransportSettings::new(([127, 0, 0, 1], 0).into(), NodeId(id), identity);
        let transport = Transport::start(settings, Arc::new(Uncounted), echo.clone()).unwrap();
        echo.transport.set(transport.clone()).unwrap();
        let peer = transport.local_addr().to_string();
        let member = Member {
            id: NodeId(id),
            name,
            zone: String::new(),
            weight: 100,
            peer,
            http: String::new(),
        };
        (transport, member, done)
    };
    let (a, member_a, done) = start(1, a);
    let (b, member_b, _) = start(2, b);
    let members = [member_a, member_b];
    a.set_members(&members);
    b.set_members(&members);
    while !a
        .peers()
        .iter()
        .chain(&b.peers())
        .all(|peer| peer.rtt.is_some())
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for number in 0..IN_FLIGHT as u64 {
        let version = Version {
            hlc: Hlc(number),
            node: NodeId(1),
        };
        let parts = Parts {
            version,
            expiry: None,
            content_type: b"",
            value: &[7; VALUE_LEN],
        };
        let kind = ReplyKind::Full {
            record: Some(Record::value(parts)),
        };
        let reply = Reply {
            op: OpId(number),
            ring: RingVersion(1),
            floor: Hlc(0),
            kind,
        };
        a.send(
            NodeId(2),
            PeerMessage {
                hlc: Hlc(number),
                body: PeerBody::Reply(reply),
            },
        );
    }
    Load {
        done,
        stop,
        transports: vec![a, b],
        endpoints: Vec::new(),
    }
}

/// One stream with frames of fixed length; whatever has come is answered with one write.
async fn bare(a: Identity, b: Identity) -> Load {
    let (done, stop) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    let server = quinn::Endpoint::server(server_config(&b), any).unwrap();
    let addr = server.local_addr().unwrap();
    let mut client = quinn::Endpoint::client(any).unwrap();
    client.set_default_client_config(client_config(&a));
    let accept = {
        let (server, stop) = (server.clone(), stop.clone());
        tokio::spawn(async move {
            let connection = server.accept().await.unwrap().await.unwrap();
            let (out, from) = connection.accept_bi().await.unwrap();
            echo(out, from, Arc::new(AtomicU64::new(0)), stop).await;
            drop(connection);
        })
    };
    let connection = client.connect(addr, PEER_DNS_NAME).unwrap().await.unwrap();
    let (mut out, from) = connection.open_bi().await.unwrap();
    let (done_there, stop_there) = (done.clone(), stop.clone());
    tokio::spawn(async move {
        out.write_chunk(vec![7; IN_FLIGHT * FRAME_LEN].into())
            .await
            .unwrap();
        echo(out, from, done_there, stop_there).await;
        drop(connection);
        let _ = accept.await;
    });
    Load {
        done,
        stop,
        transports: Vec::new(),
        endpoints: vec![server, client],
    }
}

async fn echo(
    mut out: quinn::SendStream,
    mut from: quinn::RecvStream,
    done: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
) {
    let mut buffer = BytesMut::new();
    let mut chunks: [Bytes; 64] = std::array::from_fn(|_| Bytes::new());
    while let Ok(Some(count)) = from.read_chunks(&mut chunks).await {
        for chunk in &chunks[..count] {
            buffer.extend_from_slice(chunk);
        }
        let frames = buffer.len() / FRAME_LEN;
        done.fetch_add(frames as u64, Ordering::Relaxed);
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let answer = buffer.split_to(frames * FRAME_LEN);
        if answer.has_remaining() && out.write_chunk(answer.freeze()).await.is_err() {
            return;
        }
    }
}

fn server_config(identity: &Identity) -> quinn::ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        identity.roots().unwrap(),
        provider.clone(),
    );
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(identity.chain().to_vec(), identity.key())
        .unwrap();
    quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()))
}

fn client_config(identity: &Identity) -> quinn::ClientConfig {
    let tls = rustls::ClientConfig::builder_with_provider(Arc::new(
        rustls::crypto::ring::default_provider(),
    ))
    .with_protocol_versions(&[&rustls::version::TLS13])
    .unwrap()
    .with_root_certificates(identity.roots().unwrap())
    .with_client_auth_cert(identity.chain().to_vec(), identity.key())
    .unwrap();
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
}
