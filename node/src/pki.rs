//! Certificates between nodes: the cluster's own CA, a node's certificate, and a development CA.
//!
//! Every certificate names its node in one URI (`torc://node/NAME`) and carries the same DNS name, by
//! which TLS itself checks it: a node that dials an address does not know yet who will answer, and not
//! every node name is a DNS name. Which name may act for which node id is decided by the transport.
//! Nothing here checks what a certificate's owner may do.

mod files;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::{CertificateError, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use torc_ring::config::is_node_name;
use tracing::warn;
use x509_parser::extensions::GeneralName;

use files::{
    check_own, lock, make_dir, read_certificate, read_file, read_key_pair, warn_if_readable,
    write_file,
};

/// The DNS name in every node's certificate.
pub const PEER_DNS_NAME: &str = "peer.torc";
/// File of the CA's certificate.
pub const CA_CERTIFICATE: &str = "ca.pem";
/// File of the CA's key; belongs on the machine that issues, not on every node.
pub const CA_KEY: &str = "ca.key";

const URI_PREFIX: &str = "torc://node/";
const DAY: Duration = Duration::from_secs(24 * 3600);
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const NODE_LIFETIME: Duration = Duration::from_secs(2 * 365 * 24 * 3600);
/// A certificate with less than this left is renewed by whoever has the CA's key, and warned of elsewhere.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 24 * 3600);

/// What went wrong with certificates and keys.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum PkiError {
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} exists already: a new CA would lock out every node of the old one; use another folder", path.display())]
    Exists { path: PathBuf },
    #[error("no CA in {}: {CA_CERTIFICATE} is missing; make one with `torc pki init --out {}`", dir.display(), dir.display())]
    NoCa { dir: PathBuf },
    #[error("cannot issue certificates in {}: {CA_KEY} is missing; issue where the CA was made", dir.display())]
    NoCaKey { dir: PathBuf },
    #[error(
        "no certificate for `{name}` in {}: run `torc pki issue {name} --pki DIR` where {CA_KEY} is, and copy {name}.pem and {name}.key here",
        dir.display()
    )]
    NoCertificate { dir: PathBuf, name: String },
    #[error("node name `{name}` is not 1-64 bytes of a-z A-Z 0-9 _ - .")]
    BadName { name: String },
    #[error("`ca` is the name of the CA's own files; give the node another name")]
    ReservedName,
    #[error("{} holds no usable {what} in PEM form", path.display())]
    Malformed { what: &'static str, path: PathBuf },
    #[error("{} has expired; issue a new one with `torc pki issue`, or a new CA with `torc pki init` when it is ca.pem", path.display())]
    Expired { path: PathBuf },
    #[error("{} is not valid yet; is this machine's clock right?", path.display())]
    NotYetValid { path: PathBuf },
    #[error("{} was not issued by the CA in {}; issue it again with that CA", path.display(), ca.display())]
    OtherCa { path: PathBuf, ca: PathBuf },
    #[error("{} belongs to the node `{found}`, not to `{name}`", path.display())]
    OtherName {
        path: PathBuf,
        name: String,
        found: String,
    },
    #[error("{} and {} do not belong together", certificate.display(), key.display())]
    KeyMismatch { certificate: PathBuf, key: PathBuf },
    #[error("{} may be changed or read by others (mode {mode:o}, owner {uid}); remove it or make it your own with mode {wanted:o}", path.display())]
    Unsafe {
        path: PathBuf,
        mode: u32,
        uid: u32,
        wanted: u32,
    },
    #[error(
        "no place for the development CA: neither XDG_DATA_HOME nor HOME is set; name a folder with --pki"
    )]
    NoHome,
    #[error("certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    #[error("certificate is refused by TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Files of a new CA.
#[derive(Clone, Debug)]
pub struct Ca {
    /// Its certificate, for every node.
    pub certificate: PathBuf,
    /// Its key, to be kept safe.
    pub key: PathBuf,
    /// When it expires.
    pub expires: SystemTime,
}

/// Files of an issued certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// When it expires.
    pub expires: SystemTime,
}

/// What a node shows to others and judges them by.
#[derive(Clone)]
pub struct Identity {
    name: String,
    chain: Vec<CertificateDer<'static>>,
    key: Arc<PrivateKeyDer<'static>>,
    ca: CertificateDer<'static>,
    expires: SystemTime,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Makes a CA in `dir`, which is made if need be: `ca.pem` and `ca.key` (mode 0600), valid for ten years.
///
/// # Errors
/// When there is one already, or the folder cannot be written.
pub fn init(dir: &Path) -> Result<Ca, PkiError> {
    make_dir(dir)?;
    let _lock = lock(dir)?;
    for file in [CA_CERTIFICATE, CA_KEY] {
        let path = dir.join(file);
        if path.exists() {
            return Err(PkiError::Exists { path });
        }
    }
    make_ca(dir)
}

/// Issues `NAME.pem` and `NAME.key` (mode 0600) in `dir`, valid for two years. A key that is there
/// already is kept and gets a new certificate; remove it to change the key too.
///
/// # Errors
/// When the name is invalid, the CA or its key is missing or expired, or the folder cannot be written.
pub fn issue(dir: &Path, name: &str) -> Result<Issued, PkiError> {
    check_name(name)?;
    let _lock = lock(dir)?;
    issue_locked(dir, name)
}

/// Where the development CA of this user lives.
///
/// # Errors
/// When neither `XDG_DATA_HOME` nor `HOME` is set.
pub fn development_dir() -> Result<PathBuf, PkiError> {
    let absolute = |key| {
        std::env::var_os(key)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .ok_or(PkiError::NoHome)?;
    Ok(base.join("torc/dev-pki"))
}

impl Identity {
    /// The identity of node `name` from a folder with `ca.pem`, `NAME.pem` and `NAME.key`. Where the
    /// CA's key lies there too, a certificate that is missing or about to expire is issued at once.
    ///
    /// # Errors
    /// When something is missing, expired, of another CA or of another node.
    pub fn load(dir: &Path, name: &str) -> Result<Self, PkiError> {
        check_name(name)?;
        if !dir.join(CA_CERTIFICATE).is_file() {
            return Err(PkiError::NoCa {
                dir: dir.to_owned(),
            });
        }
        let can_issue = dir.join(CA_KEY).is_file();
        let missing = !certificate_path(dir, name).is_file() || !key_path(dir, name).is_file();
        if missing && !can_issue {
            return Err(PkiError::NoCertificate {
                dir: dir.to_owned(),
                name: name.to_owned(),
            });
        }
        if can_issue && (missing || renewable(dir, name)) {
            issue(dir, name)?;
        }
        let identity = Self::read(dir, name)?;
        let left = identity
            .expires
            .duration_since(SystemTime::now())
            .unwrap_or_default();
        if left < RENEW_BEFORE {
            warn!(
                days = left.as_secs() / DAY.as_secs(),
                "the certificate of `{name}` expires soon; issue a new one with `torc pki issue {name}`"
            );
        }
        Ok(identity)
    }

    /// An identity of this user's development CA, which is made when it is not there yet. Several
    /// processes may do this at once. For loopback only: whoever can read the user's files can join.
    ///
    /// # Errors
    /// When there is no place for it, or others could tamper with it.
    pub fn development(name: &str) -> Result<Self, PkiError> {
        Self::development_in(&development_dir()?, name)
    }

    /// Like [`Identity::development`], with the CA in `dir`.
    ///
    /// # Errors
    /// When the folder cannot be used, or others could tamper with it.
    pub fn development_in(dir: &Path, name: &str) -> Result<Self, PkiError> {
        check_name(name)?;
        make_dir(dir)?;
        check_own(dir, 0o022, 0o700)?;
        {
            let _lock = lock(dir)?;
            let certificate = dir.join(CA_CERTIFICATE);
            // The certificate is written last: without it an earlier attempt was cut short.
            if !certificate.exists() || lifetime_left(&certificate)? < RENEW_BEFORE {
                make_ca(dir)?;
            }
        }
        check_own(&dir.join(CA_KEY), 0o077, 0o600)?;
        let ca = read_certificate(&dir.join(CA_CERTIFICATE))?;
        let key = KeyPair::generate()?;
        let (certificate, expires) = sign(dir, name, &key)?;
        let key =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|_| PkiError::Malformed {
                what: "private key",
                path: dir.join(CA_KEY),
            })?;
        Ok(Self {
            name: name.to_owned(),
            chain: vec![certificate.der().clone()],
            key: Arc::new(key),
            ca,
            expires,
        })
    }

    /// The node's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// When the node's certificate expires.
    #[must_use]
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// The node's certificate, then what leads to the CA.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The private key.
    #[must_use]
    pub fn key(&self) -> PrivateKeyDer<'static> {
        self.key.clone_key()
    }

    /// What others' certificates must lead to.
    ///
    /// # Errors
    /// When the CA's certificate is unusable.
    pub fn roots(&self) -> Result<Arc<RootCertStore>, PkiError> {
        let mut roots = RootCertStore::empty();
        roots.add(self.ca.clone())?;
        Ok(Arc::new(roots))
    }

    fn read(dir: &Path, name: &str) -> Result<Self, PkiError> {
        let ca_path = dir.join(CA_CERTIFICATE);
        let ca = read_certificate(&ca_path)?;
        lifetime_left(&ca_path)?;
        let certificate = certificate_path(dir, name);
        let key_path = key_path(dir, name);
        let pem = read_file(&certificate)?;
        let chain = CertificateDer::pem_slice_iter(&pem)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| PkiError::Malformed {
                what: "certificate",
                path: certificate.clone(),
            })?;
        let first = chain.first().ok_or_else(|| PkiError::Malformed {
            what: "certificate",
            path: certificate.clone(),
        })?;
        let found = node_name(first).ok_or_else(|| PkiError::Malformed {
            what: "node certificate",
            path: certificate.clone(),
        })?;
        if found != name {
            return Err(PkiError::OtherName {
                path: certificate,
                name: name.to_owned(),
                found,
            });
        }
        warn_if_readable(&key_path);
        let key = PrivateKeyDer::from_pem_slice(&read_file(&key_path)?).map_err(|_| {
            PkiError::Malformed {
                what: "private key",
                path: key_path.clone(),
            }
        })?;
        let provider = provider();
        rustls::sign::CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider).map_err(
            |_| PkiError::KeyMismatch {
                certificate: certificate.clone(),
                key: key_path,
            },
        )?;
        let expires = expiry(first).unwrap_or(UNIX_EPOCH);
        let identity = Self {
            name: name.to_owned(),
            chain,
            key: Arc::new(key),
            ca,
            expires,
        };
        identity.check_as_peers_do(&certificate, &ca_path)?;
        Ok(identity)
    }

    /// The same check that every peer will make, so that a node that nobody will talk to says so itself.
    fn check_as_peers_do(&self, path: &Path, ca: &Path) -> Result<(), PkiError> {
        let verifier = WebPkiServerVerifier::builder_with_provider(self.roots()?, provider())
            .build()
            .map_err(|_| PkiError::Malformed {
                what: "CA certificate",
                path: ca.to_owned(),
            })?;
        let name = ServerName::try_from(PEER_DNS_NAME).map_err(|_| PkiError::Malformed {
            what: "certificate",
            path: path.to_owned(),
        })?;
        let (first, rest) = self
            .chain
            .split_first()
            .ok_or_else(|| PkiError::Malformed {
                what: "certificate",
                path: path.to_owned(),
            })?;
        let path = path.to_owned();
        match verifier.verify_server_cert(first, rest, &name, &[], UnixTime::now()) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(error)) => Err(match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    PkiError::Expired { path }
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    PkiError::NotYetValid { path }
                }
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    PkiError::OtherCa {
                        path,
                        ca: ca.to_owned(),
                    }
                }
                other => PkiError::Tls(rustls::Error::InvalidCertificate(other)),
            }),
            Err(other) => Err(PkiError::Tls(other)),
        }
    }
}

/// The cryptography of all TLS between nodes: *ring*, the cheapest cipher first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    // AES-128 costs a fifth less than AES-256, and no known attack tells them apart.
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

/// The node that this certificate was issued to; `None` when it is no node's certificate.
#[must_use]
pub fn node_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let mut found = None;
    for name in &names.value.general_names {
        if let GeneralName::URI(uri) = name
            && let Some(name) = uri.strip_prefix(URI_PREFIX)
        {
            if found.is_some() || !is_node_name(name) {
                return None;
            }
            found = Some(name.to_owned());
        }
    }
    found
}

fn check_name(name: &str) -> Result<(), PkiError> {
    if !is_node_name(name) || name.starts_with('.') {
        return Err(PkiError::BadName {
            name: name.chars().take(80).collect(),
        });
    }
    if name == "ca" {
        Err(PkiError::ReservedName)
    } else {
        Ok(())
    }
}

fn certificate_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.pem"))
}

fn key_path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.key"))
}

fn make_ca(dir: &Path) -> Result<Ca, PkiError> {
    let key = KeyPair::generate()?;
    let (mut params, expires) = params(CA_LIFETIME);
    // The number tells one CA from another in logs, and keeps their subjects apart.
    params.distinguished_name.push(
        DnType::CommonName,
        format!("torc CA {:016x}", rand::random::<u64>()),
    );
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    let ca = Ca {
        certificate: dir.join(CA_CERTIFICATE),
        key: dir.join(CA_KEY),
        expires,
    };
    write_file(&ca.key, &key.serialize_pem(), 0o600)?;
    write_file(&ca.certificate, &certificate.pem(), 0o644)?;
    Ok(ca)
}

fn issue_locked(dir: &Path, name: &str) -> Result<Issued, PkiError> {
    let key_path = key_path(dir, name);
    let key = if key_path.is_file() {
        read_key_pair(&key_path)?
    } else {
        let key = KeyPair::generate()?;
        write_file(&key_path, &key.serialize_pem(), 0o600)?;
        key
    };
    let (certificate, expires) = sign(dir, name, &key)?;
    let path = certificate_path(dir, name);
    write_file(&path, &certificate.pem(), 0o644)?;
    Ok(Issued {
        certificate: path,
        key: key_path,
        expires,
    })
}

fn sign(
    dir: &Path,
    name: &str,
    key: &KeyPair,
) -> Result<(rcgen::Certificate, SystemTime), PkiError> {
    let ca_path = dir.join(CA_CERTIFICATE);
    let ca_key_path = dir.join(CA_KEY);
    if !ca_path.is_file() {
        return Err(PkiError::NoCa {
            dir: dir.to_owned(),
        });
    }
    if !ca_key_path.is_file() {
        return Err(PkiError::NoCaKey {
            dir: dir.to_owned(),
        });
    }
    let ca = read_certificate(&ca_path)?;
    let left = lifetime_left(&ca_path)?;
    let issuer = Issuer::from_ca_cert_der(&ca, read_key_pair(&ca_key_path)?)?;
    let (mut params, expires) = params(NODE_LIFETIME.min(left));
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![
        SanType::DnsName(PEER_DNS_NAME.try_into()?),
        SanType::URI(format!("{URI_PREFIX}{name}").as_str().try_into()?),
    ];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.use_authority_key_identifier_extension = true;
    Ok((params.signed_by(key, &issuer)?, expires))
}

/// Valid from a day ago, so that a clock that is behind does not refuse a new certificate.
fn params(lifetime: Duration) -> (CertificateParams, SystemTime) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.not_before = epoch + now.saturating_sub(DAY);
    params.not_after = epoch + now + lifetime;
    (params, UNIX_EPOCH + now + lifetime)
}

/// Whether the CA's key may replace this certificate: it ends soon, or cannot be read.
fn renewable(dir: &Path, name: &str) -> bool {
    match lifetime_left(&certificate_path(dir, name)) {
        Ok(left) => left < RENEW_BEFORE,
        Err(PkiError::Expired { .. }) => true,
        Err(_) => false,
    }
}

fn lifetime_left(path: &Path) -> Result<Duration, PkiError> {
    let certificate = read_certificate(path)?;
    let expires = expiry(&certificate).ok_or_else(|| PkiError::Malformed {
        what: "certificate",
        path: path.to_owned(),
    })?;
    expires
        .duration_since(SystemTime::now())
        .map_err(|_| PkiError::Expired {
            path: path.to_owned(),
        })
}

fn expiry(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests;
