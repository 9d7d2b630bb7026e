use rcgen::KeyPair;
use x509_parser::prelude::*;

use super::*;
use crate::csr::check_csr;
use crate::testing::{httpbin, now, params, plain_request, uri};

fn issue(csr: &str, seconds: i64, issuer: &Issuer, at: SystemTime) -> Result<Issued, IssuingRefusal> {
    IssuingRules::default().issue(&check_csr(csr.as_bytes()).unwrap(), &httpbin(), &[], seconds, issuer, at)
}

fn issue_to(key: &KeyPair) -> Vec<u8> {
    let issuer = Issuer::create_root(now()).unwrap();
    let csr = params(vec![]).serialize_request(key).unwrap().pem().unwrap();
    issue(&csr, 0, &issuer, now()).unwrap().leaf.to_vec()
}

fn key_usage(der: &[u8]) -> (u16, bool) {
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let usage = certificate.key_usage().unwrap().unwrap();
    (usage.value.flags, usage.critical)
}

#[test]
fn a_leaf_has_both_spellings_and_fixed_extensions_whatever_was_asked() {
    let now = now();
    let issuer = Issuer::create_root(now).unwrap();
    let mut asked = params(vec![uri("spiffe://cluster.local/ns/httpbin/sa/httpbin")]);
    asked.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    asked.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
    crate::testing::common_name(&mut asked, "httpbin.httpbin.cluster.local");
    let issued = issue(&crate::testing::request(&asked), 0, &issuer, now).unwrap();

    let peer = tidegate_core::PeerCertificate::from_der(&issued.leaf).unwrap();
    assert_eq!(
        peer.display_names(),
        "DNS:httpbin.httpbin.cluster.local, URI:spiffe://cluster.local/ns/httpbin/sa/httpbin"
    );
    assert_eq!(peer.serial, issued.serial);
    assert_eq!(peer.not_before, now - BACKDATE);
    assert_eq!(peer.not_after, now + Duration::from_secs(24 * 3600));

    let (_, certificate) = X509Certificate::from_der(&issued.leaf).unwrap();
    assert_eq!(certificate.version(), X509Version::V3);
    assert_eq!(certificate.subject().to_string(), "O=Tidegate");
    // 128 bits, with a zero byte in front where the first bit is set.
    assert!((14..=17).contains(&certificate.raw_serial().len()));
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && !constraints.value.ca);
    let purposes = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(purposes.server_auth && purposes.client_auth && !purposes.code_signing && !purposes.any);
    let oids: Vec<_> = certificate.extensions().iter().map(|e| e.oid.to_id_string()).collect();
    assert_eq!(oids, ["2.5.29.35", "2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17"]);
    assert_eq!(key_usage(&issued.leaf), (1, true));

    let (_, root) = X509Certificate::from_der(issuer.root()).unwrap();
    let authority = certificate.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0),
        _ => None,
    });
    let subject = root.iter_extensions().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0),
        _ => None,
    });
    assert!(authority.is_some() && authority == subject);
}

#[test]
fn only_rsa_keys_may_encipher_keys() {
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    assert_eq!(key_usage(&issue_to(&rsa)).0, 0b101);
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert_eq!(key_usage(&issue_to(&p384)).0, 0b1);
}

#[test]
fn a_life_is_what_was_asked_up_to_the_maximum_and_the_issuers_end() {
    let now = now();
    let issuer = Issuer::create_root(now).unwrap();
    let day = 24 * 3600;
    for (asked, given) in [(0, day), (20, 20), (3600, 3600), (day, day), (365 * day, day), (i64::MAX, day)] {
        let issued = issue(&plain_request(), asked, &issuer, now).unwrap();
        assert_eq!(issued.not_after, now + Duration::from_secs(given as u64), "{asked}");
    }
    let late = issuer.not_after() - Duration::from_secs(3600);
    assert_eq!(issue(&plain_request(), day, &issuer, late).unwrap().not_after, issuer.not_after());
}

#[test]
fn nothing_is_issued_that_would_be_over_or_nearly_so() {
    let issuer = Issuer::create_root(now()).unwrap();
    for left in [59, 1, 0] {
        let at = issuer.not_after() - Duration::from_secs(left);
        assert!(
            matches!(issue(&plain_request(), 0, &issuer, at), Err(IssuingRefusal::IssuerEnds(_))),
            "{left}"
        );
    }
    let after = issuer.not_after() + Duration::from_secs(3600);
    assert!(matches!(issue(&plain_request(), 0, &issuer, after), Err(IssuingRefusal::IssuerEnds(_))));
    let before = issuer.not_before() - Duration::from_secs(3600);
    assert!(matches!(issue(&plain_request(), 0, &issuer, before), Err(IssuingRefusal::IssuerNotYetValid(_))));
    assert!(matches!(issue(&plain_request(), -1, &issuer, now()), Err(IssuingRefusal::NegativeLife(-1))));
}

#[test]
fn serial_numbers_do_not_repeat() {
    let issuer = Issuer::create_root(now()).unwrap();
    let csr = plain_request();
    let serials: std::collections::HashSet<_> =
        (0..100).map(|_| issue(&csr, 0, &issuer, now()).unwrap().serial).collect();
    assert_eq!(serials.len(), 100);
}

#[test]
fn a_foreign_name_gets_no_certificate() {
    let issuer = Issuer::create_root(now()).unwrap();
    let csr = crate::testing::request(&params(vec![uri("spiffe://cluster.local/ns/bank/sa/vault")]));
    let refusal = issue(&csr, 0, &issuer, now()).unwrap_err();
    assert_eq!(refusal.kind(), "name");
}

#[test]
fn granted_service_names_come_besides_the_two_spellings_and_change_nobodys_identity() {
    let issuer = Issuer::create_root(now()).unwrap();
    let csr = check_csr(plain_request().as_bytes()).unwrap();
    let names =
        ["httpbin.httpbin.svc", "httpbin.httpbin.cluster.local"].map(|name| DnsName::parse(name).unwrap());
    let issued = IssuingRules::default().issue(&csr, &httpbin(), &names, 0, &issuer, now()).unwrap();
    let leaf = tidegate_core::PeerCertificate::from_der(&issued.leaf).unwrap();
    assert_eq!(
        leaf.display_names(),
        "DNS:httpbin.httpbin.cluster.local, URI:spiffe://cluster.local/ns/httpbin/sa/httpbin, \
         DNS:httpbin.httpbin.svc"
    );
    let domain = tidegate_core::TrustDomain::default();
    assert_eq!(Identity::of_workload(&leaf.sans, &domain), Some(httpbin()));
}

#[test]
fn what_the_mesh_config_says_of_workloads_lives_is_the_default_and_the_most_but_never_more_than_the_flag() {
    let hours = |n: u64| Duration::from_secs(n * 3600);
    let rules = IssuingRules::default();
    assert_eq!(rules.of_workloads(None), rules);
    for (wanted, given) in [(hours(1), hours(1)), (hours(8760), hours(24))] {
        let workloads = rules.of_workloads(Some(wanted));
        assert_eq!((workloads.default_life, workloads.max_life), (given, given));
        assert_eq!(workloads.min_issuer_life, rules.min_issuer_life);
    }
}
