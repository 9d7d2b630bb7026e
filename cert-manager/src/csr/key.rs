//! Which public keys may get a certificate, checked before any arithmetic is done with them.

use x509_parser::public_key::{PublicKey, RSAPublicKey};
use x509_parser::x509::SubjectPublicKeyInfo;

/// The accepted kinds of key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// ECDSA on NIST P-256.
    P256,
    /// ECDSA on NIST P-384.
    P384,
    /// RSA, 2048 to 8192 bits.
    Rsa,
}

/// Why a key is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not ECDSA on P-256 or P-384, nor RSA.
    #[error("keys of this kind are not allowed: use ECDSA P-256, P-384 or RSA")]
    Kind,
    /// The key's bytes are not those of its kind.
    #[error("it cannot be decoded")]
    Malformed,
    /// RSA outside of 2048 to 8192 bits.
    #[error("RSA of {0} bits is not allowed: 2048 to 8192")]
    RsaSize(usize),
    /// An exponent that makes RSA weak, or slow to verify.
    #[error("the RSA exponent must be odd, at least 65537 and at most 32 bits long")]
    RsaExponent,
}

const RSA_ENCRYPTION: &str = "1.2.840.113549.1.1.1";
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const P256: &str = "1.2.840.10045.3.1.7";
const P384: &str = "1.3.132.0.34";

/// Checks a SubjectPublicKeyInfo.
pub(crate) fn check(info: &SubjectPublicKeyInfo<'_>) -> Result<KeyKind, KeyError> {
    if info.subject_public_key.unused_bits != 0 {
        return Err(KeyError::Malformed);
    }
    match info.algorithm.algorithm.to_id_string().as_str() {
        RSA_ENCRYPTION => check_rsa(info),
        EC_PUBLIC_KEY => check_ec(info),
        _ => Err(KeyError::Kind),
    }
}

/// Whether the point is on the curve is checked together with the signature.
fn check_ec(info: &SubjectPublicKeyInfo<'_>) -> Result<KeyKind, KeyError> {
    let curve = info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let (kind, bytes) = match curve.map(|oid| oid.to_id_string()).as_deref() {
        Some(P256) => (KeyKind::P256, 65),
        Some(P384) => (KeyKind::P384, 97),
        _ => return Err(KeyError::Kind),
    };
    let point = &info.subject_public_key.data;
    if point.len() == bytes && point.first() == Some(&4) { Ok(kind) } else { Err(KeyError::Malformed) }
}

/// RSA of 2048 to 8192 bits with an odd exponent from 65537 to 2³² − 1: smaller keys are weak, and larger numbers make
/// each verification slow.
fn check_rsa(info: &SubjectPublicKeyInfo<'_>) -> Result<KeyKind, KeyError> {
    let Ok(PublicKey::RSA(key)) = info.parsed() else { return Err(KeyError::Malformed) };
    let bits = modulus_bits(&key);
    if !(2048..=8192).contains(&bits) {
        return Err(KeyError::RsaSize(bits));
    }
    let negative = key.modulus.first().is_some_and(|byte| byte & 0x80 != 0);
    if negative || key.modulus.last().is_none_or(|byte| byte % 2 == 0) {
        return Err(KeyError::Malformed);
    }
    match key.try_exponent() {
        Ok(exponent) if exponent % 2 == 1 && (65_537..=u64::from(u32::MAX)).contains(&exponent) => {
            Ok(KeyKind::Rsa)
        }
        _ => Err(KeyError::RsaExponent),
    }
}

/// The length of the modulus without leading zeros.
fn modulus_bits(key: &RSAPublicKey<'_>) -> usize {
    let zeros = key.modulus.iter().take_while(|byte| **byte == 0).count();
    let significant = key.modulus.get(zeros..).unwrap_or_default();
    let top_zeros = significant.first().map_or(0, |byte| byte.leading_zeros() as usize);
    significant.len() * 8 - top_zeros
}
