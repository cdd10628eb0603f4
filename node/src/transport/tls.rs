//! QUIC's settings: mutual TLS 1.3 from the cluster's CA, no 0-RTT (it can be replayed), windows that
//! bound memory, and quick detection of a dead peer.
//!
//! Small frames must never wait behind values: bulk streams together (their number × their window) stay
//! below the connection's windows, so flow control leaves room for the stream of small frames, and that
//! one has the higher priority.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, EndpointConfig, IdleTimeout, ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::CertificateDer;
use socket2::{Domain, Protocol, Socket, Type};

use super::error::TransportError;
use crate::pki::{self, Identity};

/// Names the handshake: a peer that greets in another way is refused by TLS itself.
pub(super) const ALPN: &[u8] = b"torc-peer/1";
/// Interval of keep-alives.
const KEEP_ALIVE: Duration = Duration::from_millis(500);
/// A peer that is silent for this long is gone.
const IDLE_MS_MAX: u32 = 3_000;
/// Bytes that one stream may have in flight.
pub(super) const STREAM_WINDOW: u32 = 1 << 20;
/// Streams of single values and gossip that a peer may have open at a time.
pub(super) const UNI_STREAMS_MAX: u32 = 16;
/// Bytes that a connection may have in flight, in each direction.
const CONNECTION_WINDOW: u32 = (UNI_STREAMS_MAX + 4) * STREAM_WINDOW;
/// What is asked of the kernel for the socket's buffers; it gives at most `net.core.[rw]mem_max`.
const SOCKET_BUFFER: usize = 4 << 20;
/// Handshakes that may wait to be looked at.
const INCOMING_MAX: usize = 256;

const _: () = assert!(CONNECTION_WINDOW > (UNI_STREAMS_MAX + 1) * STREAM_WINDOW);

/// The socket's endpoint, listening and able to dial those that speak `alpn` too.
pub(super) fn endpoint(
    listen: SocketAddr,
    identity: &Identity,
    alpn: &[u8],
) -> Result<quinn::Endpoint, TransportError> {
    let server = server_config(identity, alpn)?;
    let client = client_config(identity, alpn)?;
    let socket = socket(listen).map_err(|source| TransportError::Listen {
        addr: listen,
        source,
    })?;
    let runtime = Arc::new(TokioRuntime);
    let mut endpoint =
        quinn::Endpoint::new(EndpointConfig::default(), Some(server), socket, runtime).map_err(
            |source| TransportError::Listen {
                addr: listen,
                source,
            },
        )?;
    endpoint.set_default_client_config(client);
    Ok(endpoint)
}

/// The name in the certificate that the other side of `connection` has proved to own.
pub(super) fn certified_name(connection: &quinn::Connection) -> Option<String> {
    let chain = connection
        .peer_identity()?
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()?;
    pki::node_name(chain.first()?)
}

fn socket(listen: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    // Best effort: small buffers cost retransmissions, nothing else.
    let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&listen.into())?;
    Ok(socket.into())
}

fn server_config(identity: &Identity, alpn: &[u8]) -> Result<ServerConfig, TransportError> {
    let provider = pki::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(identity.roots()?, provider.clone())
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key())?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    // Every connection proves its certificate anew: nothing is resumed.
    tls.send_tls13_tickets = 0;
    let tls = QuicServerConfig::try_from(tls).map_err(|_| TransportError::NoInitialCipher)?;
    let mut config = ServerConfig::with_crypto(Arc::new(tls));
    config.transport_config(transport_config());
    config.migration(false);
    config.max_incoming(INCOMING_MAX);
    config.incoming_buffer_size(64 << 10);
    config.incoming_buffer_size_total(4 << 20);
    Ok(config)
}

fn client_config(identity: &Identity, alpn: &[u8]) -> Result<ClientConfig, TransportError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(pki::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(identity.roots()?)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key())?;
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let tls = QuicClientConfig::try_from(tls).map_err(|_| TransportError::NoInitialCipher)?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(transport_config());
    Ok(config)
}

fn transport_config() -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(UNI_STREAMS_MAX))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW))
        .send_window(u64::from(CONNECTION_WINDOW))
        .datagram_receive_buffer_size(None)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS_MAX))));
    Arc::new(config)
}
