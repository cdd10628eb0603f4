//! A QUIC client that is free to behave badly: any certificate, any protocol name, any bytes.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, RecvStream, SendStream};
use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use torc_protocol::wire::WIRE_VERSION;

/// Name of the protocol between nodes of this release.
pub(crate) const ALPN: &[u8] = b"torc-peer/1";
/// How long a node may take to refuse what it will not have.
pub(crate) const REFUSED_MAX: Duration = Duration::from_secs(10);

/// What a stranger shows of itself: a certificate and its key.
pub(crate) type Credentials = (CertificateDer<'static>, Vec<u8>);

/// The authority in a cluster's folder.
pub(crate) fn authority(pki: &Path) -> Issuer<'static, KeyPair> {
    let read = |name: &str| {
        let path = pki.join(name);
        std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("read {}: {error}", path.display()))
    };
    let key = KeyPair::from_pem(&read("ca.key")).expect("the authority's key");
    Issuer::from_ca_cert_pem(&read("ca.pem"), key).expect("the authority's certificate")
}

/// An authority that the cluster does not know.
pub(crate) fn foreign_authority() -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    Issuer::new(params, key)
}

/// A certificate for the node `name`; without a name, one that is no node's. `years` from now is when
/// it ends.
pub(crate) fn certificate(
    by: &Issuer<'static, KeyPair>,
    name: Option<&str>,
    ends: i32,
) -> Credentials {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(ends, 1, 1);
    let dns = "peer.torc".try_into().expect("a DNS name");
    params.subject_alt_names = vec![SanType::DnsName(dns)];
    if let Some(name) = name {
        let uri = format!("torc://node/{name}");
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into().expect("a URI")));
    }
    params.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let certificate = params.signed_by(&key, by).expect("a certificate");
    (certificate.der().clone(), key.serialize_der())
}

/// Takes any server: strangers do not care whom they talk to.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A socket from which to dial, with these credentials or none at all.
pub(crate) fn endpoint(credentials: Option<&Credentials>, alpn: &[u8]) -> quinn::Endpoint {
    let provider = Arc::new(ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider)));
    let mut tls = match credentials {
        Some((certificate, key)) => {
            let key = PrivateKeyDer::Pkcs8(key.clone().into());
            builder
                .with_client_auth_cert(vec![certificate.clone()], key)
                .expect("credentials")
        }
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![alpn.to_vec()];
    let tls = QuicClientConfig::try_from(tls).expect("QUIC over this TLS");
    let mut endpoint =
        quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a socket");
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
    endpoint
}

/// Dials; the error is what the other side said, or that it said nothing.
pub(crate) async fn dial(endpoint: &quinn::Endpoint, to: SocketAddr) -> Result<Connection, String> {
    let connecting = endpoint
        .connect(to, "peer.torc")
        .map_err(|error| error.to_string())?;
    match tokio::time::timeout(REFUSED_MAX, connecting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".to_owned()),
    }
}

/// Dials and sends these bytes as the first ones.
pub(crate) async fn send_first(
    endpoint: &quinn::Endpoint,
    to: SocketAddr,
    bytes: &[u8],
) -> Result<(Connection, SendStream, RecvStream), String> {
    let connection = dial(endpoint, to).await?;
    let (mut send, receive) = connection
        .open_bi()
        .await
        .map_err(|error| error.to_string())?;
    send.write_all(bytes)
        .await
        .map_err(|error| error.to_string())?;
    Ok((connection, send, receive))
}

/// Waits until the other side has closed.
pub(crate) async fn closed(connection: &Connection) -> Result<String, String> {
    let closed = tokio::time::timeout(REFUSED_MAX, connection.closed()).await;
    closed
        .map(|why| why.to_string())
        .map_err(|_| format!("not closed within {REFUSED_MAX:?}"))
}

/// What a node says first.
#[derive(Debug, Clone)]
pub(crate) struct Hello {
    pub(crate) magic: [u8; 4],
    pub(crate) version: u8,
    pub(crate) wire: u8,
    pub(crate) node: u64,
    pub(crate) cluster: Option<u64>,
    pub(crate) name: String,
}

impl Hello {
    /// A greeting that this release accepts from a node that has no cluster yet.
    pub(crate) fn good(name: &str) -> Self {
        let (version, wire) = (1, WIRE_VERSION);
        Self {
            magic: *b"torc",
            version,
            wire,
            node: 0x5eed_5eed,
            cluster: None,
            name: name.to_owned(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut rest = self.magic.to_vec();
        rest.extend([self.version, self.wire]);
        rest.extend(self.node.to_le_bytes());
        rest.extend(7_u64.to_le_bytes());
        rest.push(u8::from(self.cluster.is_some()));
        rest.extend(self.cluster.unwrap_or_default().to_le_bytes());
        for text in [self.name.as_str(), "127.0.0.1:1"] {
            rest.push(text.len() as u8);
            rest.extend(text.as_bytes());
        }
        let mut bytes = (rest.len() as u16).to_le_bytes().to_vec();
        bytes.extend(rest);
        bytes
    }
}
