use std::time::{Duration, SystemTime};

use rustls::{CertificateError, Error};
use tidegate_core::policy::MeshProtocol;

use super::*;
use crate::test_pki::{Authority, GATEWAY, SERVER};

fn tls(root: &Authority) -> ServerTls {
    ServerTls::new(root.named(SERVER).credentials(), root.bundle()).unwrap()
}

#[test]
fn the_configuration_selects_alpn_by_app_and_client() {
    let tls = tls(&Authority::root("root"));
    let alpn = |terms, http1, http2, app| {
        let config = tls.config(terms, Alpn { mesh: None, http1, http2 }, app).unwrap();
        config.alpn_protocols.iter().map(|name| String::from_utf8(name.clone()).unwrap()).collect::<Vec<_>>()
    };
    for terms in [Terms::IngressTls, Terms::IngressMutualTls] {
        assert_eq!(alpn(terms, true, true, AppProtocol::Http), ["http/1.1", "h2"]);
        assert_eq!(alpn(terms, true, true, AppProtocol::H2c), ["h2", "http/1.1"]);
        assert_eq!(alpn(terms, true, true, AppProtocol::Undeclared), ["h2", "http/1.1"]);
        assert_eq!(alpn(terms, false, false, AppProtocol::H2c), [""; 0]);
    }
    assert_eq!(alpn(Terms::MeshTls(MeshProtocol::Http2), true, true, AppProtocol::Http), ["tidegate/h2"]);
    assert!(tls.config(Terms::Opaque, Alpn::default(), AppProtocol::Tcp).is_none());
}

#[test]
fn no_configuration_resumes_sessions() {
    let tls = tls(&Authority::root("root"));
    let families = [&tls.mutual, &tls.no_client_auth];
    let configs =
        families.iter().flat_map(|family| [&family.http1_first, &family.http2_first, &family.without]);
    for config in configs.chain(&tls.mesh) {
        assert_eq!(config.send_tls13_tickets, 0);
        assert!(!config.session_storage.can_cache() && !config.ticketer.enabled());
    }
}

#[test]
fn a_certificate_is_verified_again_by_another_bundle_and_another_time() {
    let (root, other) = (Authority::root("root"), Authority::root("other"));
    let client = root.named(GATEWAY);
    assert_eq!(tls(&root).verify_again(&client.chain, UnixTime::now()), Ok(()));
    assert_eq!(
        tls(&other).verify_again(&client.chain, UnixTime::now()),
        Err(Error::InvalidCertificate(CertificateError::UnknownIssuer))
    );
    let later = SystemTime::now() + Duration::from_secs(7200);
    let later = UnixTime::since_unix_epoch(later.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    assert!(tls(&root).verify_again(&client.chain, later).is_err());
    assert_eq!(tls(&root).verify_again(&[], UnixTime::now()), Err(Error::NoCertificatesPresented));
}

#[test]
fn a_chain_that_is_an_attack_is_refused_before_any_signature_is_checked() {
    let root = Authority::root("root");
    let mut above = root.intermediate("0");
    for level in 1..7 {
        above = above.intermediate(&level.to_string());
    }
    let tls = tls(&root);
    let eight = above.named(GATEWAY);
    assert_eq!(eight.chain.len(), 8);
    // webpki's own limit on paths is below ours on chains.
    let refused = tls.verify_again(&eight.chain, UnixTime::now());
    assert!(matches!(refused, Ok(()) | Err(Error::InvalidCertificate(_))));
    let nine = above.intermediate("7").named(GATEWAY);
    assert_eq!(
        tls.verify_again(&nine.chain, UnixTime::now()),
        Err(Error::InvalidCertificate(CertificateError::BadEncoding))
    );
    let mut crossed = root.named(GATEWAY).chain;
    for _ in 0..20 {
        crossed.push(root.intermediate("same name").chain_above());
    }
    let start = std::time::Instant::now();
    assert!(tls.verify_again(&crossed, UnixTime::now()).is_err());
    assert!(start.elapsed() < Duration::from_millis(100));
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let root = Authority::root("root");
    let mut credentials = (*root.named(SERVER).credentials()).clone();
    credentials.key = root.named(SERVER).credentials().key.clone();
    assert!(ServerTls::new(Arc::new(credentials), root.bundle()).is_err());
}

#[test]
fn a_servers_chain_may_be_as_long_as_a_clients() {
    let root = Authority::root("root");
    let tls = PeerTls::new(&root.named(SERVER).credentials(), root.bundle()).unwrap();
    let mut chain = root.workload("shop", "cart").chain;
    let above = root.intermediate("same name").chain_above();
    chain.resize(8, above.clone());
    assert_eq!(tls.verify_again(&chain, UnixTime::now()), Ok(()));
    chain.push(above);
    let error = Error::InvalidCertificate(CertificateError::BadEncoding);
    assert_eq!(tls.verify_again(&chain, UnixTime::now()), Err(error));
}
