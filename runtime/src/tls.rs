//! TLS basics: the crypto provider, and certificates as PEM (RFC 7468).

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::{self, PemObject};

/// Makes aws-lc-rs the provider of all TLS in this process. Further calls have no effect.
pub fn install_provider() {
    // An error means that a provider is already installed.
    let _ = own_provider().install_default();
}

/// The process' provider; aws-lc-rs if none was installed.
pub fn provider() -> Arc<CryptoProvider> {
    CryptoProvider::get_default().cloned().unwrap_or_else(|| Arc::new(own_provider()))
}

/// aws-lc-rs, whose clients prefer AES-128-GCM, as those of Envoy and Go do: it takes 10 rounds instead of 14. Servers
/// take what clients prefer.
fn own_provider() -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// All certificates of a PEM text, in order; comments and other sections are skipped. The bytes inside a section are
/// not validated. Without any section the result is empty; a malformed section is an error.
pub fn load_pem_certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, pem::Error> {
    CertificateDer::pem_slice_iter(text).collect()
}

/// Certificates as PEM: 64 characters per line, LF, one section after another.
pub fn pem_encode(certificates: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in certificates {
        text.push_str("-----BEGIN CERTIFICATE-----\n");
        let base64 = BASE64_STANDARD.encode(certificate);
        let mut rest = base64.as_str();
        while !rest.is_empty() {
            let (line, next) = rest.split_at(rest.len().min(64));
            text.push_str(line);
            text.push('\n');
            rest = next;
        }
        text.push_str("-----END CERTIFICATE-----\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    #[test]
    fn certificates_survive_the_way_through_pem_and_any_line_ending() {
        let certificates: Vec<_> = (0..3)
            .map(|_| {
                CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
            })
            .collect();
        let text = pem_encode(&certificates);
        assert!(text.lines().all(|line| line.len() <= 64));
        for text in [
            text.clone(),
            text.replace('\n', "\r\n"),
            text.trim_end().to_owned(),
            format!("# a\n\n{text}\n\n"),
        ] {
            assert_eq!(load_pem_certificates(text.as_bytes()).unwrap(), certificates);
        }
    }

    #[test]
    fn the_writer_agrees_with_another_one() {
        let certificate = CertificateParams::default().self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(pem_encode(&[certificate.der().clone()]), certificate.pem().replace("\r\n", "\n"));
    }

    #[test]
    fn a_broken_section_is_an_error_and_none_is_not() {
        assert!(
            load_pem_certificates(b"-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n").is_err()
        );
        assert!(load_pem_certificates(b"-----BEGIN CERTIFICATE-----\nAAAA\n").is_err());
        assert_eq!(load_pem_certificates(b"no section").unwrap(), []);
    }

    #[test]
    fn installing_the_provider_again_does_nothing() {
        install_provider();
        install_provider();
        assert!(CryptoProvider::get_default().is_some());
    }

    #[test]
    fn clients_prefer_aes_128_and_keep_the_others() {
        let suites: Vec<_> = own_provider().cipher_suites.iter().map(|suite| suite.suite()).collect();
        assert_eq!(suites.first(), Some(&CipherSuite::TLS13_AES_128_GCM_SHA256));
        assert_eq!(suites.len(), rustls::crypto::aws_lc_rs::default_provider().cipher_suites.len());
    }
}
