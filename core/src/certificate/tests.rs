use rcgen::string::Ia5String;
use rcgen::{CertificateParams, KeyPair, SanType};

use super::*;

fn certificate(sans: Vec<SanType>) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.subject_alt_names = sans;
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn ia5(text: &str) -> Ia5String {
    text.try_into().unwrap()
}

#[test]
fn each_name_keeps_its_type() {
    let der = certificate(vec![
        SanType::DnsName(ia5("A.example")),
        SanType::URI(ia5("spiffe://td/ns/a/sa/b")),
        SanType::Rfc822Name(ia5("a@example")),
        SanType::IpAddress("10.0.0.1".parse().unwrap()),
        SanType::DnsName(ia5("*.example")),
    ]);
    let names = PeerCertificate::from_der(&der).unwrap().display_names();
    assert_eq!(
        names,
        "DNS:a.example, URI:spiffe://td/ns/a/sa/b, email:a@example, IP:10.0.0.1, DNS:*.example"
    );
}

#[test]
fn a_serial_number_is_hex_without_leading_zeros() {
    for (number, text) in [
        (&[0x00, 0xc6, 0x7a, 0x01][..], "c67a01"),
        (&[0x0a, 0xbc], "abc"),
        (&[0x10], "10"),
        (&[0], "0"),
        (&[], "0"),
    ] {
        assert_eq!(serial(number), text);
    }
    let mut params = CertificateParams::default();
    params.serial_number = Some(rcgen::SerialNumber::from(vec![0x8f, 0x00, 0x01]));
    let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    assert_eq!(PeerCertificate::from_der(&der).unwrap().serial, "8f0001");
}

#[test]
fn a_name_with_a_nul_or_a_line_break_refuses_the_certificate() {
    for san in [
        SanType::DnsName(ia5("good.ns\0.evil")),
        SanType::URI(ia5("spiffe://td/ns/a\0/sa/b")),
        SanType::URI(ia5("spiffe://td/\r\nHost: x")),
        SanType::Rfc822Name(ia5("a b@example")),
    ] {
        let error = PeerCertificate::from_der(&certificate(vec![san])).unwrap_err();
        assert!(matches!(error, CertificateError::MalformedSan(_)), "{error}");
    }
}

#[test]
fn a_certificate_with_thousands_of_names_is_refused() {
    let sans = (0..5000).map(|i| SanType::DnsName(ia5(&format!("n{i}.example")))).collect();
    assert_eq!(PeerCertificate::from_der(&certificate(sans)), Err(CertificateError::TooManySans(5000)));
}

#[test]
fn bytes_that_are_not_one_certificate_are_refused() {
    let mut der = certificate(vec![]);
    der.push(0);
    for bytes in [&der[..], &der[..40], &[]] {
        assert_eq!(PeerCertificate::from_der(bytes), Err(CertificateError::Der));
    }
}
