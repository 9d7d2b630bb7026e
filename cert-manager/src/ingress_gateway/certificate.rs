//! One Secret: its content, and whether an existing one is still correct.

use std::time::{Duration, SystemTime};

use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::UnixTime;
use rustls_pki_types::pem::PemObject;
use tidegate_core::PeerCertificate;
use tidegate_runtime::tls::load_pem_certificates;
use tidegate_runtime::trust_bundle::TrustBundle;
use x509_parser::prelude::FromDer;

use super::settings::IngressGatewaySettings;
use crate::authority::AuthorityState;
use crate::issuer::{pem, verify};
use crate::rules::{BACKDATE, Issued, IssuingRefusal, IssuingRules};
use crate::store::TlsSecret;

/// Creates a Secret's content with a new key: the leaf for the settings' names, and every trusted root.
pub(super) fn issue(
    settings: &IngressGatewaySettings,
    state: &AuthorityState,
    rules: &IssuingRules,
    now: SystemTime,
) -> Result<(TlsSecret, Issued), IssuingRefusal> {
    let not_after = rules.end_of_life(settings.validity, &state.issuer, now)?;
    let key = KeyPair::generate().map_err(crate::x509::WriteError::Sign)?;
    let names = &settings.subject_alt_names;
    let leaf =
        state.issuer.sign_leaf(&key.subject_public_key_info(), names, false, now - BACKDATE, not_after)?;
    let issued = Issued::read_back(leaf, names.clone())?;
    let chain = std::iter::once(issued.leaf.clone()).chain(state.intermediates(issued.not_after));
    let secret = TlsSecret {
        ca_crt: state.trusted_pem(),
        tls_crt: chain.map(|certificate| pem("CERTIFICATE", &certificate)).collect(),
        tls_key: key.serialize_pem(),
    };
    Ok((secret, issued))
}

/// Why an existing Secret must be replaced, or `None` if it is correct. Depends only on the Secret's content, not on
/// memory: after a restart a correct one stays, and a damaged one never does.
pub(super) fn why_replace(
    secret: &TlsSecret,
    settings: &IngressGatewaySettings,
    state: &AuthorityState,
    now: SystemTime,
) -> Option<&'static str> {
    match TrustBundle::parse(secret.ca_crt.as_bytes()) {
        Ok(bundle) if bundle.roots() == state.trusted() => {}
        _ => return Some("the trusted roots have changed"),
    }
    let Ok(chain) = load_pem_certificates(secret.tls_crt.as_bytes()) else {
        return Some("tls.crt is damaged");
    };
    let Some((leaf, rest)) = chain.split_first() else { return Some("tls.crt is damaged") };
    let Ok(read) = PeerCertificate::from_der(leaf) else { return Some("tls.crt is damaged") };
    if rest != state.intermediates(read.not_after) {
        return Some("the issuer has changed");
    }
    if !key_belongs(&secret.tls_key, leaf) {
        return Some("tls.key does not belong to tls.crt");
    }
    if read.sans != settings.subject_alt_names {
        return Some("the names have changed");
    }
    let life = read.not_after.duration_since(read.not_before + BACKDATE).unwrap_or_default();
    let is_cut_short = read.not_after == state.issuer.not_after() && life < settings.validity;
    // Certificates contain whole seconds.
    if life.abs_diff(settings.validity) > Duration::from_secs(1) && !is_cut_short {
        return Some("the validity has changed");
    }
    // If the clock was set back, it is not valid yet; as time passes, it becomes due.
    if now < read.not_before || now >= read.not_before + BACKDATE + life / 2 {
        return Some("half of its life is over");
    }
    let unix = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if verify(leaf, rest, state.issuer.root(), UnixTime::since_unix_epoch(unix)).is_err() {
        return Some("the issuer has changed");
    }
    None
}

/// Whether a private key (PEM) belongs to the certificate `leaf` (DER).
fn key_belongs(key: &str, leaf: &[u8]) -> bool {
    let Ok(der) = rustls_pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()) else { return false };
    let Ok(key) = KeyPair::try_from(&der) else { return false };
    x509_parser::certificate::X509Certificate::from_der(leaf)
        .is_ok_and(|(_, leaf)| leaf.public_key().raw == key.subject_public_key_info())
}
