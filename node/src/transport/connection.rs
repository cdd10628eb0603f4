//! A connection's beginning (both greetings, and the judgement of them) and its receiving side.
//!
//! Invariant: nothing of a node that is not a member is passed on but membership talk, and whatever a
//! peer sends costs this node a bounded amount of memory and, at worst, the connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use quinn::{Connection, ConnectionError, ReadError, ReadExactError, RecvStream, SendStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use torc_protocol::cluster_message::ClusterMessage;
use torc_protocol::message::{PeerBody, PeerMessage};
use torc_protocol::wire::{self, MESSAGE_LEN_MAX, WIRE_VERSION, WireError};
use torc_ring::NodeId;

use super::error::{Reason, TransportError, printable};
use super::frame::{PREFIX_LEN, Splitter, TooLong};
use super::hello::Hello;
use super::peer::{Link, NotAdded, Peer};
use super::queue::SMALL_LEN_MAX;
use super::{Inner, tls};
use crate::pki::PEER_DNS_NAME;

/// Time for a handshake and both greetings.
const HANDSHAKE_TIME: Duration = Duration::from_secs(5);
/// Time for a name's resolution.
const RESOLVE_TIME: Duration = Duration::from_secs(2);
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// Chunks that are taken from a stream at a time.
const CHUNKS: usize = 64;
/// Longest time that a stream of a single message may stand still.
const STALL_TIME: Duration = Duration::from_secs(10);
/// Memory that a message's announced length claims before any of it has come, in bytes.
const TRUST_LEN: usize = 1 << 20;
/// Longest message of a node that is not a member, in bytes.
const GUEST_LEN_MAX: usize = 4 << 20;
/// Time for a message on its own stream of a node that is not a member.
const GUEST_TIME: Duration = Duration::from_secs(5);
/// Longest gossip message in bytes: what chitchat sends at most.
pub(super) const GOSSIP_LEN_MAX: usize = 65_507;
/// First byte of a stream with a single message.
pub(super) const KIND_MESSAGE: u8 = 1;
/// First byte of a stream with a gossip message.
pub(super) const KIND_GOSSIP: u8 = 2;

/// A refusal by this node, with what it is about.
type Refused = (Reason, String);

/// Why a connection ends.
enum End {
    /// The other side closed it, or it was lost.
    Closed(ConnectionError),
    /// The other side will send no more.
    Finished,
    /// This node refuses to go on.
    Refused(Reason, String),
}

/// Connects to `addr` (`host:port`) and greets. With `expected`, only that node will do.
pub(super) async fn dial(
    inner: &Arc<Inner>,
    addr: &str,
    expected: Option<NodeId>,
) -> Result<NodeId, TransportError> {
    let failed = |source| TransportError::Resolve {
        addr: addr.to_owned(),
        source,
    };
    let addresses = match timeout(RESOLVE_TIME, tokio::net::lookup_host(addr)).await {
        Ok(Ok(addresses)) => addresses,
        Ok(Err(source)) => return Err(failed(source)),
        Err(_) => return Err(failed(std::io::ErrorKind::TimedOut.into())),
    };
    let mut last = TransportError::NoAddress {
        addr: addr.to_owned(),
    };
    for address in addresses.take(ADDRESSES_MAX) {
        match timeout(HANDSHAKE_TIME, dial_one(inner, address, expected)).await {
            Ok(Ok(node)) => return Ok(node),
            Ok(Err(error)) => last = error,
            Err(_) => {
                last = TransportError::Timeout {
                    addr: address,
                    seconds: HANDSHAKE_TIME.as_secs(),
                }
            }
        }
    }
    if let TransportError::Refused { reason, .. } = &last {
        inner.metrics.refused(reason.label());
    }
    Err(last)
}

async fn dial_one(
    inner: &Arc<Inner>,
    addr: SocketAddr,
    expected: Option<NodeId>,
) -> Result<NodeId, TransportError> {
    let connecting = inner
        .endpoint
        .connect(addr, PEER_DNS_NAME)
        .map_err(|source| TransportError::Connect { addr, source })?;
    let lost = |source| TransportError::of(addr, source);
    let connection = connecting.await.map_err(lost)?;
    let (mut out, mut from) = connection.open_bi().await.map_err(lost)?;
    if inner.hello().send(&mut out).await.is_err() {
        return Err(lost(connection.closed().await));
    }
    let hello = match Hello::receive(&mut from).await {
        Some(Ok(hello)) => hello,
        Some(Err(reason)) => {
            return Err(refuse(
                &connection,
                addr,
                (reason, "its greeting cannot be read".to_owned()),
            ));
        }
        None => return Err(lost(connection.closed().await)),
    };
    if let Some(expected) = expected
        && expected != hello.node
    {
        connection.close(Reason::OtherNode.code(), expected.to_string().as_bytes());
        return Err(TransportError::OtherNode {
            addr: addr.to_string(),
            expected,
            found: hello.node,
        });
    }
    judge(inner, &hello, &connection).map_err(|refused| refuse(&connection, addr, refused))?;
    let node = hello.node;
    let streams = (out, from);
    admit(inner, hello, connection.clone(), streams)
        .map_err(|refused| refuse(&connection, addr, refused))?;
    Ok(node)
}

/// Takes in a connection that somebody else has begun.
pub(super) async fn receive(inner: &Arc<Inner>, incoming: quinn::Incoming) {
    let addr = incoming.remote_address();
    let error = match timeout(HANDSHAKE_TIME, receive_one(inner, incoming)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(_) => TransportError::Timeout {
            addr,
            seconds: HANDSHAKE_TIME.as_secs(),
        },
    };
    if let TransportError::Refused { reason, .. } = &error {
        inner.metrics.refused(reason.label());
    }
    // The port of a dialling peer is its listener's, but a stranger's may change each time.
    inner.log_failure(&addr.ip().to_string(), &error);
}

async fn receive_one(inner: &Arc<Inner>, incoming: quinn::Incoming) -> Result<(), TransportError> {
    let addr = incoming.remote_address();
    let lost = |source| TransportError::of(addr, source);
    let connection = incoming.accept().map_err(lost)?.await.map_err(lost)?;
    let (mut out, mut from) = connection.accept_bi().await.map_err(lost)?;
    let hello = match Hello::receive(&mut from).await {
        Some(Ok(hello)) => hello,
        Some(Err(reason)) => {
            return Err(refuse(
                &connection,
                addr,
                (reason, "its greeting cannot be read".to_owned()),
            ));
        }
        None => return Err(lost(connection.closed().await)),
    };
    judge(inner, &hello, &connection).map_err(|refused| refuse(&connection, addr, refused))?;
    if inner.hello().send(&mut out).await.is_err() {
        return Err(lost(connection.closed().await));
    }
    admit(inner, hello, connection.clone(), (out, from))
        .map_err(|refused| refuse(&connection, addr, refused))
}

fn refuse(connection: &Connection, addr: SocketAddr, (reason, what): Refused) -> TransportError {
    connection.close(reason.code(), what.as_bytes());
    TransportError::Refused { addr, reason, what }
}

/// What can be said of a greeting without knowing the members.
fn judge(inner: &Inner, hello: &Hello, connection: &Connection) -> Result<(), Refused> {
    if hello.wire != WIRE_VERSION {
        let what = format!("wire version {} meets {WIRE_VERSION}", hello.wire);
        return Err((Reason::WireVersion, what));
    }
    let Some(certified) = tls::certified_name(connection) else {
        return Err((
            Reason::Certificate,
            "the certificate names no node".to_owned(),
        ));
    };
    if hello.process == inner.process {
        return Err((Reason::SelfDial, inner.advertise.to_string()));
    }
    if certified != hello.name {
        let what = format!(
            "certificate of `{certified}`, node calls itself `{}`",
            hello.name
        );
        return Err((Reason::CertificateName, what));
    }
    if hello.node == inner.settings.node {
        return Err((
            Reason::OwnId,
            format!("node id {}, named `{}`", hello.node, hello.name),
        ));
    }
    match (inner.state.read().cluster, hello.cluster) {
        (Some(ours), Some(theirs)) if ours != theirs => Err((
            Reason::OtherCluster,
            format!("cluster {theirs} meets cluster {ours}"),
        )),
        _ => Ok(()),
    }
}

/// Puts the connection into use.
fn admit(
    inner: &Arc<Inner>,
    hello: Hello,
    connection: Connection,
    (out, from): (SendStream, RecvStream),
) -> Result<(), Refused> {
    // Small frames go first; values wait for the room that they leave.
    let _ = out.set_priority(1);
    let link = Arc::new(Link {
        id: inner.next_link.fetch_add(1, Ordering::Relaxed),
        dialled: connection.side().is_client(),
        connection,
        process: hello.process,
        name: hello.name,
        advertise: hello.advertise,
        out: tokio::sync::Mutex::new(out),
        active_ms: AtomicU64::new(inner.clock_ms()),
    });
    let peer = loop {
        let peer = inner.peer_for(hello.node, &link)?;
        match peer.add(inner.settings.node, &link) {
            Ok(()) => break peer,
            Err(NotAdded::Retired) => {}
            Err(NotAdded::Former) => {
                return Err((Reason::DuplicateId, format!("node id {}", hello.node)));
            }
        }
    };
    inner.state.read().apply_cut();
    tokio::spawn(receive_all(inner.clone(), peer, link, from));
    Ok(())
}

/// Receives until the connection ends, and tidies up after it.
async fn receive_all(inner: Arc<Inner>, peer: Arc<Peer>, link: Arc<Link>, from: RecvStream) {
    let mut streams = JoinSet::new();
    let end = tokio::select! {
        end = receive_small(&inner, &peer, &link, from) => end,
        end = receive_streams(&inner, &peer, &link, &mut streams) => end,
    };
    let addr = link.connection.remote_address();
    match end {
        End::Closed(error) => match Reason::of(&error) {
            Some(reason) if !reason.is_ordinary() => {
                inner.log_failure(&link.name, &TransportError::of(addr, error));
            }
            _ => tracing::debug!(peer = %link.name, %addr, %error, "peer connection ended"),
        },
        End::Finished => {
            // Nothing is sent on it any more, but what has been sent is still read.
            peer.remove(inner.settings.node, link.id);
            let _ = timeout(STALL_TIME, receive_rest(&inner, &peer, &link, &mut streams)).await;
            link.close(Reason::Stopping, "the other side will send no more");
        }
        End::Refused(reason, what) => inner.refuse_link(&link, reason, what),
    }
    if peer.remove(inner.settings.node, link.id) && !peer.is_member() {
        inner.forget(&peer);
    }
}

async fn receive_small(inner: &Inner, peer: &Peer, link: &Link, mut from: RecvStream) -> End {
    let mut splitter = Splitter::new(SMALL_LEN_MAX + PREFIX_LEN);
    let mut chunks: [Bytes; CHUNKS] = std::array::from_fn(|_| Bytes::new());
    loop {
        let count = match from.read_chunks(&mut chunks).await {
            Ok(Some(count)) => count,
            Ok(None) if splitter.is_between_frames() => return End::Finished,
            Ok(None) => {
                return End::Refused(
                    Reason::MalformedFrame,
                    "the stream ends inside a frame".into(),
                );
            }
            Err(error) => return lost(link, error).await,
        };
        link.active_ms.store(inner.clock_ms(), Ordering::Relaxed);
        let mut messages = Vec::with_capacity(count.saturating_mul(2));
        let mut bytes = 0;
        let mut bad = None;
        for chunk in &mut chunks[..count] {
            let chunk = std::mem::take(chunk);
            bytes += chunk.len();
            let result = splitter.push(chunk, |frame| {
                messages.push(wire::decode(&frame)?);
                Ok::<_, BadFrame>(())
            });
            if let Err(error) = result {
                bad = Some(error);
                break;
            }
        }
        inner.metrics.received(peer.counted(), bytes as u64);
        // What came whole before a bad frame is as good as ever.
        if let Err(end) = deliver(inner, (peer, link), messages) {
            return end;
        }
        if let Some(bad) = bad {
            return bad.into();
        }
    }
}

async fn receive_streams(
    inner: &Arc<Inner>,
    peer: &Arc<Peer>,
    link: &Arc<Link>,
    streams: &mut JoinSet<()>,
) -> End {
    loop {
        // The number of streams at a time is bounded by QUIC's own credit.
        tokio::select! {
            stream = link.connection.accept_uni() => match stream {
                Ok(stream) => start_stream(inner, peer, link, stream, streams),
                Err(error) => return End::Closed(error),
            },
            Some(_) = streams.join_next() => {}
        }
    }
}

/// Receives the streams that are there already.
async fn receive_rest(
    inner: &Arc<Inner>,
    peer: &Arc<Peer>,
    link: &Arc<Link>,
    streams: &mut JoinSet<()>,
) {
    loop {
        while let Some(Ok(stream)) = link.connection.accept_uni().now_or_never() {
            start_stream(inner, peer, link, stream, streams);
        }
        if streams.join_next().await.is_none() {
            return;
        }
    }
}

fn start_stream(
    inner: &Arc<Inner>,
    peer: &Arc<Peer>,
    link: &Arc<Link>,
    stream: RecvStream,
    streams: &mut JoinSet<()>,
) {
    link.active_ms.store(inner.clock_ms(), Ordering::Relaxed);
    let (inner, peer, link) = (inner.clone(), peer.clone(), link.clone());
    streams.spawn(async move {
        match receive_stream(&inner, &peer, &link, stream).await {
            Ok(()) | Err(End::Closed(_) | End::Finished) => {}
            // Closing the connection ends the task that receives from it, which tidies up.
            Err(End::Refused(reason, what)) => inner.refuse_link(&link, reason, what),
        }
    });
}

/// A stream with a single message.
async fn receive_stream(
    inner: &Inner,
    peer: &Peer,
    link: &Link,
    mut from: RecvStream,
) -> Result<(), End> {
    let mut kind = [0; 1];
    exact(link, &mut from, &mut kind).await?;
    match kind[0] {
        KIND_MESSAGE => {
            let mut len = [0; PREFIX_LEN];
            exact(link, &mut from, &mut len).await?;
            let len = u32::from_le_bytes(len) as usize;
            let limit = if peer.is_member() {
                MESSAGE_LEN_MAX
            } else {
                GUEST_LEN_MAX
            };
            if len > limit {
                return Err(BadFrame::from(TooLong { len }).into());
            }
            let whole = async {
                let room = inner.bulk_room.acquire_many(len.div_ceil(1024) as u32);
                // Closed when this node stops.
                let Ok(room) = room.await else {
                    return Err(End::Finished);
                };
                Ok((room, body(link, &mut from, len).await?))
            };
            // A member may take its time as long as it goes on; the room is not for a guest to hold.
            let (_room, frame) = if peer.is_member() {
                whole.await?
            } else {
                timeout(GUEST_TIME, whole).await.map_err(|_| {
                    let what = format!("{len} bytes of a node that is not a member");
                    End::Refused(Reason::Stalled, what)
                })??
            };
            inner
                .metrics
                .received(peer.counted(), (len + PREFIX_LEN + 1) as u64);
            let message = wire::decode(&frame).map_err(BadFrame::from)?;
            link.active_ms.store(inner.clock_ms(), Ordering::Relaxed);
            deliver(inner, (peer, link), vec![message])
        }
        KIND_GOSSIP => {
            let read = timeout(STALL_TIME, from.read_to_end(GOSSIP_LEN_MAX)).await;
            let bytes = match read {
                Ok(Ok(bytes)) => bytes,
                Ok(Err(quinn::ReadToEndError::TooLong)) => {
                    return Err(End::Refused(Reason::FrameTooLong, "gossip".to_owned()));
                }
                Ok(Err(quinn::ReadToEndError::Read(error))) => return Err(lost(link, error).await),
                Err(_) => return Err(End::Refused(Reason::Stalled, "gossip".to_owned())),
            };
            inner
                .metrics
                .received(peer.counted(), bytes.len() as u64 + 1);
            if peer.is_cut() {
                return Ok(());
            }
            if peer.is_member() {
                inner.inbound.on_gossip(link.advertise, bytes.into());
            } else {
                inner.metrics.refused(Reason::Guest.label());
            }
            Ok(())
        }
        kind => Err(End::Refused(
            Reason::MalformedFrame,
            format!("stream of unknown kind {kind}"),
        )),
    }
}

async fn exact(link: &Link, from: &mut RecvStream, buffer: &mut [u8]) -> Result<(), End> {
    match timeout(STALL_TIME, from.read_exact(buffer)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(ReadExactError::FinishedEarly(_))) => Err(cut_off()),
        Ok(Err(ReadExactError::ReadError(error))) => Err(lost(link, error).await),
        Err(_) => Err(End::Refused(
            Reason::Stalled,
            "a message on its own stream".to_owned(),
        )),
    }
}

/// Exactly `len` bytes. Memory follows what has come, so that a mere announcement costs little.
async fn body(link: &Link, from: &mut RecvStream, len: usize) -> Result<Bytes, End> {
    let mut body = BytesMut::with_capacity(len.min(TRUST_LEN));
    while body.len() < len {
        let chunk = match timeout(STALL_TIME, from.read_chunk(len - body.len(), true)).await {
            Ok(Ok(Some(chunk))) => chunk.bytes,
            Ok(Ok(None)) => return Err(cut_off()),
            Ok(Err(error)) => return Err(lost(link, error).await),
            Err(_) => {
                return Err(End::Refused(
                    Reason::Stalled,
                    "a message on its own stream".to_owned(),
                ));
            }
        };
        if body.len() + chunk.len() > body.capacity() {
            body.reserve(len - body.len());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

fn cut_off() -> End {
    End::Refused(
        Reason::MalformedFrame,
        "the stream ends inside a message".to_owned(),
    )
}

/// How the connection ended, from a failure to read. A stream that was given up by its sender ends
/// nothing else.
async fn lost(link: &Link, error: ReadError) -> End {
    match error {
        ReadError::ConnectionLost(error) => End::Closed(error),
        ReadError::Reset(_) => End::Finished,
        // Nobody else closes these streams: our own connection is closing.
        _ => End::Closed(link.connection.closed().await),
    }
}

/// Passes messages on, as far as their sender may send them. Whoever asks to be taken in under another name
/// than its certificate's is refused: the certificates of members are bound to their names.
fn deliver(
    inner: &Inner,
    (peer, link): (&Peer, &Link),
    mut messages: Vec<PeerMessage>,
) -> Result<(), End> {
    if peer.is_cut() {
        return Ok(());
    }
    let joiner = messages.iter().find_map(|message| match &message.body {
        PeerBody::Cluster(ClusterMessage::Join { member, .. }) => Some(member),
        _ => None,
    });
    if let Some(joiner) = joiner.filter(|joiner| joiner.name != link.name) {
        let what = format!(
            "certificate of `{}`, node asks to join as `{}`",
            link.name,
            printable(&joiner.name)
        );
        return Err(End::Refused(Reason::CertificateName, what));
    }
    if !peer.is_member() {
        let before = messages.len();
        messages.retain(|message| matches!(message.body, PeerBody::Cluster(_)));
        for _ in messages.len()..before {
            inner.metrics.refused(Reason::Guest.label());
        }
    }
    if !messages.is_empty() {
        inner.inbound.on_messages(peer.node, messages);
    }
    Ok(())
}

/// A frame that ends its connection.
enum BadFrame {
    TooLong(TooLong),
    Wire(WireError),
}

impl From<TooLong> for BadFrame {
    fn from(error: TooLong) -> Self {
        Self::TooLong(error)
    }
}

impl From<WireError> for BadFrame {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<BadFrame> for End {
    fn from(bad: BadFrame) -> Self {
        match bad {
            BadFrame::TooLong(TooLong { len }) => {
                Self::Refused(Reason::FrameTooLong, format!("a frame of {len} bytes"))
            }
            BadFrame::Wire(error) => {
                let reason = match &error {
                    WireError::Version { .. } => Reason::WireVersion,
                    WireError::TooLong { .. } => Reason::FrameTooLong,
                    _ => Reason::MalformedFrame,
                };
                Self::Refused(reason, error.to_string())
            }
        }
    }
}
