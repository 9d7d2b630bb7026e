use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyUsagePurpose};

use super::*;
use crate::testing::{now, openssl};

struct Authority {
    key: KeyPair,
    certificate: CertificateDer<'static>,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn root(params: &CertificateParams) -> Authority {
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().der().clone();
    Authority { key, certificate }
}

impl Authority {
    fn sign(&self, params: &CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_der(&self.certificate, &self.key).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap().der().clone();
        Self { key, certificate }
    }

    fn pem(&self) -> String {
        pem("CERTIFICATE", &self.certificate)
    }
}

fn load(chain: &[&Authority], key: &Authority, roots: &[&Authority]) -> Result<Issuer, IssuerProblems> {
    let join = |all: &[&Authority]| all.iter().map(|a| a.pem()).collect::<String>();
    Issuer::from_pem(
        join(chain).as_bytes(),
        key.key.serialize_pem().as_bytes(),
        join(roots).as_bytes(),
        now(),
    )
}

fn problems(result: Result<Issuer, IssuerProblems>) -> String {
    result.unwrap_err().0.join("; ")
}

#[test]
fn a_root_of_ours_is_a_root_for_ten_years() {
    let now = now();
    let issuer = Issuer::create_root(now).unwrap();
    assert_eq!(issuer.not_after(), now + ROOT_LIFE);
    assert!(issuer.intermediates().is_empty());
    let (_, certificate) = X509Certificate::from_der(issuer.root()).unwrap();
    assert!(certificate.subject().to_string().starts_with("O=Tidegate, CN=Tidegate Root CA "));
    let constraints = certificate.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    let usage = certificate.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    assert!(!usage.value.digital_signature());
    assert!(certificate.verify_signature(None).is_ok());
}

#[test]
fn a_root_comes_back_from_its_pem() {
    let issuer = Issuer::create_root(now()).unwrap();
    let back =
        Issuer::from_pem(issuer.chain_pem().as_bytes(), issuer.key_pem().as_bytes(), b"", now()).unwrap();
    assert!(back.same_as(&issuer));
}

#[test]
fn line_ends_blank_lines_and_comments_in_given_files_do_not_count() {
    let issuer = Issuer::create_root(now()).unwrap();
    let dress = |pem: String| format!("# my authority\n\n{pem}\n\n").replace('\n', "\r\n");
    let (chain, key) = (dress(issuer.chain_pem()), dress(issuer.key_pem()));
    let back = Issuer::from_pem(chain.as_bytes(), key.as_bytes(), chain.as_bytes(), now()).unwrap();
    assert!(back.same_as(&issuer));
}

#[test]
fn openssl_agrees_with_every_certificate_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::create_root(now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let sans = [San::Dns(DnsName::parse("a.b.cluster.local").unwrap())];
    let leaf = issuer
        .sign_leaf(&key.subject_public_key_info(), &sans, false, now(), now() + Duration::from_secs(60))
        .unwrap();
    std::fs::write(dir.path().join("root.pem"), issuer.chain_pem()).unwrap();
    std::fs::write(dir.path().join("leaf.pem"), pem("CERTIFICATE", &leaf)).unwrap();
    for purpose in ["sslclient", "sslserver"] {
        let arguments =
            format!("verify -x509_strict -check_ss_sig -purpose {purpose} -CAfile root.pem leaf.pem");
        assert_eq!(openssl(dir.path(), &arguments), b"leaf.pem: OK\n");
    }
}

#[test]
fn a_given_intermediate_is_completed_up_to_its_root() {
    let root = root(&ca_params("Root"));
    let middle = root.sign(&ca_params("Middle"));
    let mut last = ca_params("Issuing");
    last.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let issuing = middle.sign(&last);
    for (chain, roots) in [(vec![&issuing, &middle, &root], vec![]), (vec![&issuing, &middle], vec![&root])] {
        let issuer = load(&chain, &issuing, &roots).unwrap();
        assert_eq!(issuer.0.chain.len(), 3);
        assert_eq!(issuer.intermediates().len(), 2);
        assert_eq!(issuer.root(), &root.certificate);
    }
}

#[test]
fn an_issuer_whose_name_repeats_a_component_still_chains() {
    // Active Directory's authorities are called DC=com, DC=example, CN=….
    let dir = tempfile::tempdir().unwrap();
    let subject = "/DC=com/DC=example/OU=a/OU=b/CN=corp";
    openssl(
        dir.path(),
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -keyout k.pem -out c.pem -subj {subject}"
        ),
    );
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    // `req -x509` makes a CA:TRUE certificate without key usage.
    let issuer = Issuer::from_pem(&read("c.pem"), &read("k.pem"), b"", SystemTime::now()).unwrap();
    assert_eq!(issuer.0.chain.len(), 1);
}

#[test]
fn an_rsa_authority_with_a_pkcs1_key_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    openssl(dir.path(), "genrsa -traditional -out k.pem 2048");
    openssl(dir.path(), "req -x509 -key k.pem -out c.pem -subj /CN=rsa");
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    let issuer = Issuer::from_pem(&read("c.pem"), &read("k.pem"), b"", SystemTime::now()).unwrap();
    assert!(issuer.key_pem().starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    let back =
        Issuer::from_pem(issuer.chain_pem().as_bytes(), issuer.key_pem().as_bytes(), b"", SystemTime::now())
            .unwrap();
    assert!(back.same_as(&issuer));
}

#[test]
fn every_problem_of_a_given_authority_is_named() {
    let good = root(&ca_params("Good"));

    let mut leaf = ca_params("Leaf");
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let leaf = root(&leaf);
    let text = problems(load(&[&leaf], &good, &[]));
    for problem in ["not a certificate authority", "may not sign", "expired at", "key does not belong"] {
        assert!(text.contains(problem), "{text}");
    }

    let mut future = ca_params("Future");
    future.not_before = rcgen::date_time_ymd(2999, 1, 1);
    let future = root(&future);
    assert!(problems(load(&[&future], &future, &[])).contains("not valid before"));

    let child = good.sign(&ca_params("Child"));
    assert!(
        problems(load(&[&child], &child, &[])).contains("the issuer of certificate 1 (CN=Good) is missing")
    );
    // A namesake of the root does not complete the chain.
    let namesake = root(&ca_params("Good"));
    assert!(problems(load(&[&child], &child, &[&namesake])).contains("is missing"));

    let text = problems(Issuer::from_pem(b"", b"nonsense", b"", SystemTime::now()));
    assert!(text.contains("no unencrypted PEM private key"), "{text}");
    let text = problems(Issuer::from_pem(b"", good.key.serialize_pem().as_bytes(), b"", SystemTime::now()));
    assert!(text.contains("holds no certificate"), "{text}");
}

#[test]
fn an_authority_whose_chain_forbids_what_it_would_sign_is_refused() {
    let mut other_use = ca_params("Code signing only");
    other_use.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
    let top = root(&ca_params("Top"));
    let other_use = top.sign(&other_use);
    assert!(problems(load(&[&other_use], &other_use, &[&top])).contains("does not verify"));

    let mut short = ca_params("Short");
    short.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let top = root(&short);
    let below = top.sign(&ca_params("Below"));
    assert!(problems(load(&[&below], &below, &[&top])).contains("allows fewer"));
}

#[test]
fn a_cross_signed_successor_is_verified_by_a_client_that_trusts_only_the_old_root() {
    let (old, new) = (Issuer::create_root(now()).unwrap(), Issuer::create_root(now()).unwrap());
    let cross = old.cross_sign(&new, now()).unwrap();
    let key = KeyPair::generate().unwrap();
    let sans = [San::Uri("spiffe://cluster.local/ns/a/sa/b".into())];
    let leaf = new
        .sign_leaf(&key.subject_public_key_info(), &sans, false, now(), now() + Duration::from_secs(60))
        .unwrap();
    let at = UnixTime::now();
    assert!(verify(&leaf, &[], old.root(), at).is_err());
    assert!(verify(&leaf, std::slice::from_ref(&cross), old.root(), at).is_ok());
    assert!(verify(&leaf, std::slice::from_ref(&cross), new.root(), at).is_ok());
}

#[test]
fn an_issuer_never_prints_its_key() {
    let issuer = Issuer::create_root(now()).unwrap();
    assert_eq!(format!("{issuer:?}"), "Issuer { certificates: 1, .. }");
}
