//! One attempt to get a certificate: a new key, a request, the CA's answer.

use std::error::Error;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem};
use tidegate_core::{Identity, PeerCertificate};
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Code, Request, Status};

use super::CaOptions;
use super::verify::{VerifyError, verify};
use crate::trust_bundle::TrustBundle;
use crate::{grpc, tls};

/// Maximum bytes of a token file.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;
/// Maximum bytes of an answer.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// Why an attempt failed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The token cannot be read.
    #[error("token file {path}: {source}")]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file does not hold a token.
    #[error(
        "token file {0} holds no token: empty, larger than {MAX_TOKEN_BYTES} bytes, or not printable ASCII"
    )]
    NoToken(PathBuf),
    /// Generating the key or the request failed.
    #[error("making the key and the request: {0}")]
    Key(#[from] rcgen::Error),
    /// The trust bundle cannot be used to verify the CA.
    #[error(transparent)]
    Tls(#[from] grpc::ConfigError),
    /// The CA is unreachable, or the trust bundle does not verify it.
    #[error("CA {address} cannot be reached: {reason}")]
    Unreachable {
        /// The CA's address.
        address: grpc::Address,
        /// The whole chain of causes.
        reason: String,
    },
    /// The CA did not answer in time.
    #[error("CA {address} did not answer within {timeout:?}")]
    TimedOut {
        /// The CA's address.
        address: grpc::Address,
        /// The timeout.
        timeout: Duration,
    },
    /// The CA refused.
    #[error("CA {address} refused: {code:?}: {message:?}")]
    Refused {
        /// The CA's address.
        address: grpc::Address,
        /// The gRPC status.
        code: Code,
        /// The CA's message.
        message: String,
    },
    /// The answer is not PEM.
    #[error("the CA's answer is not PEM: {0}")]
    Pem(pem::Error),
    /// The answer is not a valid certificate for this process.
    #[error("the CA's answer is refused: {0}")]
    Verify(#[from] VerifyError),
}

/// A verified answer.
pub(super) struct IssuedCertificate {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Arc<PrivateKeyDer<'static>>,
    pub(super) leaf: PeerCertificate,
}

impl RequestError {
    /// The class of the error, a metric label.
    pub(super) fn class(&self) -> &'static str {
        match self {
            Self::TokenFile { .. } | Self::NoToken(_) => "no_token",
            Self::Key(_) | Self::Tls(_) => "internal",
            Self::Unreachable { .. } | Self::TimedOut { .. } => "unreachable",
            Self::Refused { .. } => "refused",
            Self::Pem(_) | Self::Verify(_) => "invalid_answer",
        }
    }
}

/// Sends one request to the CA. The answer is verified as of `now`.
pub(super) async fn request(
    options: &CaOptions,
    expected: Option<&Identity>,
    bundle: &TrustBundle,
    timeout: Duration,
    now: &(dyn Fn() -> SystemTime + Send + Sync),
) -> Result<IssuedCertificate, RequestError> {
    let token = read_token(&options.token_file).await?;
    let key = KeyPair::generate()?;
    let csr = signing_request(&key, expected)?;
    let call = ask(options, bundle, token, csr);
    let timed_out = || RequestError::TimedOut { address: options.ca_address.clone(), timeout };
    let sections = tokio::time::timeout(timeout, call).await.map_err(|_| timed_out())??;
    let mut chain = Vec::new();
    for section in sections {
        chain.extend(tls::load_pem_certificates(section.as_bytes()).map_err(RequestError::Pem)?);
    }
    let (chain, leaf) = verify(chain, &key.subject_public_key_info(), expected, bundle, now())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(IssuedCertificate { chain, key: Arc::new(key), leaf })
}

/// Calls the CA over a new connection: the next call is hours away, and so uses the newest trust bundle.
async fn ask(
    options: &CaOptions,
    bundle: &TrustBundle,
    token: MetadataValue<Ascii>,
    csr: String,
) -> Result<Vec<String>, RequestError> {
    let config = grpc::client_config(bundle, None)?;
    let server_name = options.ca_server_name.clone().unwrap_or_else(|| options.ca_address.host().clone());
    let channel =
        grpc::channel(&options.ca_address, &options.proxy, server_name, move || Some(config.clone()));
    let mut client = IstioCertificateServiceClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES);
    let validity_duration = i64::try_from(options.certificate_lifetime.as_secs()).unwrap_or(i64::MAX);
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration, metadata: None });
    request.metadata_mut().insert("authorization", token);
    let answer = client.create_certificate(request).await;
    Ok(answer.map_err(|status| refusal(options, &status))?.into_inner().cert_chain)
}

fn refusal(options: &CaOptions, status: &Status) -> RequestError {
    let address = options.ca_address.clone();
    // tonic's own errors have a cause; errors sent by a server have none.
    if status.source().is_some() || status.code() == Code::Unavailable {
        return RequestError::Unreachable { address, reason: causes(status) };
    }
    RequestError::Refused { address, code: status.code(), message: status.message().to_owned() }
}

fn causes(status: &Status) -> String {
    let mut text = status.message().to_owned();
    let mut cause = status.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text.escape_debug().to_string()
}

/// The CA ignores names and uses the token; the URI is included because clients of this API send it.
fn signing_request(key: &KeyPair, expected: Option<&Identity>) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(identity) = expected {
        params.subject_alt_names.push(SanType::URI(identity.spiffe_uri().try_into()?));
    }
    params.serialize_request(key)?.pem()
}

async fn read_token(path: &Path) -> Result<MetadataValue<Ascii>, RequestError> {
    let file = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        std::fs::File::open(file)?.take(MAX_TOKEN_BYTES + 1).read_to_string(&mut text)?;
        Ok(text)
    });
    let text = read
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
        .map_err(|source| RequestError::TokenFile { path: path.to_owned(), source })?;
    let token = text.trim();
    let is_token = !token.is_empty()
        && text.len() as u64 <= MAX_TOKEN_BYTES
        && token.bytes().all(|byte| byte.is_ascii_graphic());
    let value = is_token.then(|| format!("Bearer {token}").parse::<MetadataValue<Ascii>>().ok()).flatten();
    let mut value = value.ok_or_else(|| RequestError::NoToken(path.to_owned()))?;
    // Keeps it out of debug output and HPACK's tables.
    value.set_sensitive(true);
    Ok(value)
}
