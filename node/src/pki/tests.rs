//! A CA, what it issues, and what is refused.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use tempfile::TempDir;

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn a_ca_is_made_once_and_its_keys_are_private() {
    let dir = TempDir::new().unwrap();
    let pki = dir.path().join("deep/pki");
    let ca = init(&pki).unwrap();
    assert_eq!((mode(&ca.key), mode(&pki)), (0o600, 0o700));
    assert!(matches!(init(&pki), Err(PkiError::Exists { .. })));
    let issued = issue(&pki, "node-1").unwrap();
    assert_eq!(mode(&issued.key), 0o600);
    let before = fs::read(&issued.key).unwrap();
    issue(&pki, "node-1").unwrap();
    assert_eq!(
        fs::read(&issued.key).unwrap(),
        before,
        "a key that is there is kept"
    );
}

#[test]
fn a_node_without_the_cas_key_uses_what_was_issued() {
    let dir = TempDir::new().unwrap();
    let (ca, node) = (dir.path().join("ca"), dir.path().join("node"));
    init(&ca).unwrap();
    fs::create_dir(&node).unwrap();
    assert!(matches!(
        Identity::load(&node, "a.b_C-1"),
        Err(PkiError::NoCa { .. })
    ));
    fs::copy(ca.join(CA_CERTIFICATE), node.join(CA_CERTIFICATE)).unwrap();
    assert!(matches!(
        Identity::load(&node, "a.b_C-1"),
        Err(PkiError::NoCertificate { .. })
    ));
    assert!(matches!(
        issue(&node, "a.b_C-1"),
        Err(PkiError::NoCaKey { .. })
    ));
    issue(&ca, "a.b_C-1").unwrap();
    for file in ["a.b_C-1.pem", "a.b_C-1.key"] {
        fs::copy(ca.join(file), node.join(file)).unwrap();
    }
    let identity = Identity::load(&node, "a.b_C-1").unwrap();
    assert_eq!(node_name(&identity.chain()[0]).as_deref(), Some("a.b_C-1"));
    assert!(identity.expires() > SystemTime::now() + Duration::from_secs(700 * 24 * 3600));
    // Where the CA's key is, a node issues its own.
    assert_eq!(Identity::load(&ca, "other").unwrap().name(), "other");
}

#[test]
fn certificates_that_peers_would_refuse_are_refused_at_home() {
    let dir = TempDir::new().unwrap();
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));
    init(&ours).unwrap();
    init(&theirs).unwrap();
    issue(&ours, "a").unwrap();
    issue(&ours, "b").unwrap();
    issue(&theirs, "a").unwrap();
    let put = |from: &Path, to: &Path| fs::copy(from, to).unwrap();
    fs::remove_file(ours.join(CA_KEY)).unwrap();

    put(&ours.join("b.pem"), &ours.join("c.pem"));
    put(&ours.join("b.key"), &ours.join("c.key"));
    assert!(
        matches!(Identity::load(&ours, "c"), Err(PkiError::OtherName { found, .. }) if found == "b")
    );
    put(&ours.join("a.key"), &ours.join("b.key"));
    assert!(matches!(
        Identity::load(&ours, "b"),
        Err(PkiError::KeyMismatch { .. })
    ));
    put(&theirs.join("a.pem"), &ours.join("a.pem"));
    put(&theirs.join("a.key"), &ours.join("a.key"));
    assert!(matches!(
        Identity::load(&ours, "a"),
        Err(PkiError::OtherCa { .. })
    ));
    fs::write(ours.join("a.pem"), "nonsense").unwrap();
    assert!(matches!(
        Identity::load(&ours, "a"),
        Err(PkiError::Malformed { .. })
    ));
    for name in ["", "a/b", "../a", ".", "a b", "ca"] {
        assert!(Identity::load(&ours, name).is_err(), "{name:?}");
    }
}

#[test]
fn an_expired_certificate_is_refused_and_renewed_where_the_cas_key_is() {
    let dir = TempDir::new().unwrap();
    init(dir.path()).unwrap();
    let issued = issue(dir.path(), "a").unwrap();
    let old = |certificate: &Path| {
        let ca = read_certificate(&dir.path().join(CA_CERTIFICATE)).unwrap();
        let issuer = read_key_pair(&dir.path().join("kept")).unwrap();
        let issuer = Issuer::from_ca_cert_der(&ca, issuer).unwrap();
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        params.subject_alt_names = vec![
            SanType::DnsName(PEER_DNS_NAME.try_into().unwrap()),
            SanType::URI(format!("{URI_PREFIX}a").as_str().try_into().unwrap()),
        ];
        let key = read_key_pair(&issued.key).unwrap();
        fs::write(certificate, params.signed_by(&key, &issuer).unwrap().pem()).unwrap();
    };
    fs::copy(dir.path().join(CA_KEY), dir.path().join("kept")).unwrap();
    old(&issued.certificate);
    assert!(Identity::load(dir.path(), "a").unwrap().expires() > SystemTime::now());
    old(&issued.certificate);
    fs::remove_file(dir.path().join(CA_KEY)).unwrap();
    let error = Identity::load(dir.path(), "a").unwrap_err();
    assert!(matches!(error, PkiError::Expired { .. }), "{error}");
}

#[test]
fn many_processes_make_one_development_ca() {
    let dir = TempDir::new().unwrap();
    let pki = dir.path().join("dev-pki");
    let made: Vec<_> = std::thread::scope(|scope| {
        let start = |_| scope.spawn(|| Identity::development_in(&pki, "node-1").unwrap());
        let threads: Vec<_> = (0..8).map(start).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert!(made.iter().all(|identity| identity.ca == made[0].ca));
    for identity in &made {
        identity
            .check_as_peers_do(Path::new("node-1"), Path::new("ca"))
            .unwrap();
    }
}

#[test]
fn a_development_ca_that_others_may_touch_is_not_used() {
    let dir = TempDir::new().unwrap();
    let pki = dir.path().join("dev-pki");
    Identity::development_in(&pki, "a").unwrap();
    fs::set_permissions(pki.join(CA_KEY), fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(
        Identity::development_in(&pki, "a"),
        Err(PkiError::Unsafe { .. })
    ));
    fs::set_permissions(pki.join(CA_KEY), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(&pki, fs::Permissions::from_mode(0o777)).unwrap();
    assert!(matches!(
        Identity::development_in(&pki, "a"),
        Err(PkiError::Unsafe { .. })
    ));
}
