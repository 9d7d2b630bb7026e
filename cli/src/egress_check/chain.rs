//! The certificates that a TLS server shows. The handshake accepts every certificate, so that it can be looked at; no byte of
//! an application is sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{AlertDescription, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde::Serialize;
use tidegate_core::PeerCertificate;
use tidegate_runtime::trust_bundle::fingerprint;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use super::probe::{ByteStream, CheckedServer, ProbeFailure};
use crate::output::printable;

/// How long a server of TLS 1.3 has, after the handshake, to refuse a client without a certificate.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);

/// What a server has shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SeenChain {
    /// SHA-256 of each certificate's DER, the server's own first.
    pub(super) fingerprints: Vec<String>,
    /// The names in the server's certificate.
    pub(super) names: Vec<String>,
    /// Who has issued it.
    pub(super) issuer: String,
    /// The issuer of the last certificate of the chain: the root, or what is next to it.
    pub(super) root: String,
    /// When it expires, RFC 3339.
    pub(super) not_after: String,
    /// Why this machine's roots do not verify it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) untrusted: Option<String>,
    /// Whether the server wants a client certificate.
    pub(super) client_certificate: ClientCertificateWish,
}

/// Whether a server wants a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ClientCertificateWish {
    /// It does not.
    No,
    /// It asks for one, and goes on without.
    Optional,
    /// It refuses clients without one.
    Required,
}

/// Accepts every certificate, and keeps it.
#[derive(Debug)]
struct RecordingVerifier {
    chain: Mutex<Vec<CertificateDer<'static>>>,
    provider: Arc<CryptoProvider>,
}

/// Has no client certificate, and keeps whether one was wanted.
#[derive(Debug, Default)]
struct RecordingResolver(AtomicBool);

/// Speaks TLS up to the end of the handshake.
pub(super) async fn handshake<T: ByteStream>(
    io: T,
    target: &CheckedServer,
    roots: &RootCertStore,
) -> Result<SeenChain, ProbeFailure> {
    let provider = tidegate_runtime::tls::provider();
    let verifier = Arc::new(RecordingVerifier { chain: Mutex::default(), provider: provider.clone() });
    let resolver = Arc::new(RecordingResolver::default());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ProbeFailure::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(resolver.clone());
    let connected = TlsConnector::from(Arc::new(config)).connect(target.name.clone(), io).await;
    let is_wanted = || resolver.0.load(Ordering::Relaxed);
    let failure = match connected {
        Err(error) => Some(error),
        Ok(mut stream) if is_wanted() => {
            let mut byte = [0];
            let read = tokio::time::timeout(REFUSAL_TIMEOUT, stream.read(&mut byte)).await;
            read.ok().and_then(Result::err)
        }
        Ok(_) => None,
    };
    let chain = std::mem::take(&mut *verifier.chain.lock().unwrap_or_else(PoisonError::into_inner));
    let is_refused = failure.as_ref().is_some_and(is_for_client_certificate);
    let client_certificate = match (is_wanted(), is_refused) {
        (true, true) => ClientCertificateWish::Required,
        (true, false) => ClientCertificateWish::Optional,
        (false, _) => ClientCertificateWish::No,
    };
    match failure {
        Some(error) if chain.is_empty() || client_certificate == ClientCertificateWish::No => {
            Err(ProbeFailure::Tls(error.to_string()))
        }
        _ => seen(&chain, target, roots, client_certificate),
    }
}

/// Whether a server has ended the handshake because the client sent no certificate: `certificate_required`, or with TLS 1.2
/// and older libraries `handshake_failure` or `bad_certificate`.
fn is_for_client_certificate(error: &std::io::Error) -> bool {
    let alert = error.get_ref().and_then(|error| error.downcast_ref::<Error>());
    matches!(
        alert,
        Some(Error::AlertReceived(
            AlertDescription::CertificateRequired
                | AlertDescription::HandshakeFailure
                | AlertDescription::BadCertificate
        ))
    )
}

/// What is worth knowing of a chain.
fn seen(
    chain: &[CertificateDer<'static>],
    target: &CheckedServer,
    roots: &RootCertStore,
    client_certificate: ClientCertificateWish,
) -> Result<SeenChain, ProbeFailure> {
    let missing = || ProbeFailure::Tls("the server has shown no certificate".to_owned());
    let (leaf, intermediates) = chain.split_first().ok_or_else(missing)?;
    let not_x509 = |error: String| ProbeFailure::Tls(format!("the server's certificate: {error}"));
    let certificate = PeerCertificate::from_der(leaf).map_err(|error| not_x509(error.to_string()))?;
    let issuer = |certificate: &CertificateDer<'_>| {
        let parsed = X509Certificate::from_der(certificate).ok();
        parsed.map(|(_, parsed)| printable(&parsed.issuer().to_string())).unwrap_or_default()
    };
    Ok(SeenChain {
        fingerprints: chain.iter().map(|certificate| fingerprint(certificate)).collect(),
        names: certificate.sans.iter().map(|name| printable(&name.to_string())).collect(),
        issuer: issuer(leaf),
        root: issuer(chain.last().unwrap_or(leaf)),
        not_after: humantime::format_rfc3339_seconds(certificate.not_after).to_string(),
        untrusted: verify(leaf, intermediates, target, roots).err(),
        client_certificate,
    })
}

/// Verifies a chain as an app with these roots does.
fn verify(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    target: &CheckedServer,
    roots: &RootCertStore,
) -> Result<(), String> {
    if roots.is_empty() {
        return Err("this machine has no roots: give --ca-file".to_owned());
    }
    let provider = tidegate_runtime::tls::provider();
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots.clone()), provider).build();
    let verifier = verifier.map_err(|error| error.to_string())?;
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let now = UnixTime::since_unix_epoch(since);
    let verified = verifier.verify_server_cert(leaf, intermediates, &target.name, &[], now);
    verified.map(|_| ()).map_err(|error| match error {
        Error::InvalidCertificate(reason) => reason.to_string(),
        other => other.to_string(),
    })
}

impl ServerCertVerifier for RecordingVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = std::iter::once(leaf).chain(intermediates);
        let chain = chain.map(|certificate| certificate.clone().into_owned()).collect();
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = chain;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl rustls::client::ResolvesClientCert for RecordingResolver {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}
