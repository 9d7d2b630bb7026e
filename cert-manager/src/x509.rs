//! Writes and signs X.509 certificates (RFC 5280), and nothing else.
//!
//! The issuer's name is copied byte for byte from its own certificate, so names that a re-encoding would change
//! (several `DC`s, odd string types) still chain.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rcgen::SigningKey;
use rustls_pki_types::CertificateDer;
use tidegate_core::San;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, DERWriterSeq, Tag};

/// A certificate's statements about its subject, which is always `O=Tidegate`, with a common name only for CAs.
#[derive(Debug)]
pub(crate) struct Template<'a> {
    /// DER of the subject's Name.
    pub(crate) subject: &'a [u8],
    /// DER of the subject's SubjectPublicKeyInfo, copied unchanged.
    pub(crate) public_key: &'a [u8],
    /// Start of its validity; written in whole seconds.
    pub(crate) not_before: SystemTime,
    /// Its expiry; written in whole seconds.
    pub(crate) not_after: SystemTime,
    /// Its purpose.
    pub(crate) usage: Usage<'a>,
}

/// A certificate's purpose, which fixes all its extensions.
#[derive(Debug)]
pub(crate) enum Usage<'a> {
    /// A workload's or an ingress client's certificate: CA:FALSE, serverAuth and clientAuth.
    Leaf {
        /// dNSName, uniformResourceIdentifier and iPAddress entries; other kinds are not written.
        sans: &'a [San],
        /// RSA keys may also be used to encipher a session key (TLS 1.2 with RSA key exchange).
        key_encipherment: bool,
    },
    /// A certificate that signs others.
    Ca {
        /// pathLenConstraint.
        path_length: Option<u32>,
    },
}

/// Who signs: the name, key identifier and algorithm that the certificate must carry.
#[derive(Debug)]
pub(crate) struct Signer<'a> {
    /// DER of the issuer's Name.
    pub(crate) name: &'a [u8],
    /// subjectKeyIdentifier of the issuer.
    pub(crate) key_id: &'a [u8],
    /// The issuer's key.
    pub(crate) key: &'a rcgen::KeyPair,
}

/// Why a certificate could not be created.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Keys of this algorithm cannot sign here.
    #[error("keys of this kind cannot sign certificates here: use ECDSA P-256, P-384 or RSA")]
    Algorithm,
    /// The crypto library refused to sign.
    #[error("signing failed: {0}")]
    Sign(#[from] rcgen::Error),
    /// The name constraints of the authority's chain do not allow these names: every peer would refuse the certificate.
    #[error("the certificate authority may not sign {names}: {reason}")]
    Names {
        /// The names of the certificate.
        names: String,
        /// The verifier's error.
        reason: String,
    },
    /// A date before 1950 or after 9999.
    #[error("a date that no certificate can hold")]
    Date,
}

/// The three signature algorithms that are used for signing, by OID (RFC 5758 §3.2, RFC 4055 §5).
pub(crate) fn signature_algorithm(key: &rcgen::KeyPair) -> Option<&'static [u64]> {
    if key.is_compatible(&rcgen::PKCS_ECDSA_P256_SHA256) {
        Some(&[1, 2, 840, 10045, 4, 3, 2])
    } else if key.is_compatible(&rcgen::PKCS_ECDSA_P384_SHA384) {
        Some(&[1, 2, 840, 10045, 4, 3, 3])
    } else if key.is_compatible(&rcgen::PKCS_RSA_SHA256) {
        Some(RSA_SHA256)
    } else {
        None
    }
}

/// Creates and signs a certificate with a new 128-bit random serial number.
pub(crate) fn sign(
    template: &Template<'_>,
    signer: &Signer<'_>,
) -> Result<CertificateDer<'static>, WriteError> {
    let algorithm = signature_algorithm(signer.key).ok_or(WriteError::Algorithm)?;
    let not_before = Time::new(template.not_before)?;
    let not_after = Time::new(template.not_after)?;
    let tbs = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_tagged(Tag::context(0), |writer| writer.write_u8(2));
            writer.next().write_bigint_bytes(&serial(), true);
            write_algorithm(writer.next(), algorithm);
            writer.next().write_der(signer.name);
            writer.next().write_sequence(|writer| {
                not_before.write(writer.next());
                not_after.write(writer.next());
            });
            writer.next().write_der(template.subject);
            writer.next().write_der(template.public_key);
            writer.next().write_tagged(Tag::context(3), |writer| {
                writer.write_sequence(|writer| write_extensions(writer, template, signer.key_id));
            });
        });
    });
    let signature = signer.key.sign(&tbs)?;
    let der = yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            writer.next().write_der(&tbs);
            write_algorithm(writer.next(), algorithm);
            writer.next().write_bitvec_bytes(&signature, signature.len() * 8);
        });
    });
    Ok(der.into())
}

/// DER of the Name `O=Tidegate[, CN=<common name>]`.
pub(crate) fn name(common_name: Option<&str>) -> Vec<u8> {
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            write_attribute(writer.next(), &[2, 5, 4, 10], "Tidegate");
            if let Some(common_name) = common_name {
                write_attribute(writer.next(), &[2, 5, 4, 3], common_name);
            }
        });
    })
}

/// The key identifier of RFC 7093 §2 method 1: the leftmost 160 bits of SHA-256 over the public key's bits.
pub(crate) fn key_id(public_key_bits: &[u8]) -> Vec<u8> {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, public_key_bits);
    digest.as_ref().iter().copied().take(20).collect()
}

const RSA_SHA256: &[u64] = &[1, 2, 840, 113549, 1, 1, 11];
const TAG_UTC_TIME: Tag = Tag { tag_class: yasna::TagClass::Universal, tag_number: 23 };
const TAG_GENERALIZED_TIME: Tag = Tag { tag_class: yasna::TagClass::Universal, tag_number: 24 };

/// RFC 5280 §4.1.2.5: UTCTime through 2049, GeneralizedTime from 2050.
struct Time {
    tag: Tag,
    text: String,
}

impl Time {
    fn new(time: SystemTime) -> Result<Self, WriteError> {
        let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| WriteError::Date)?;
        // 9999-12-31T23:59:59Z, the last second that a certificate can contain.
        if since_epoch > Duration::from_secs(253_402_300_799) {
            return Err(WriteError::Date);
        }
        let rfc3339 = humantime::format_rfc3339_seconds(time).to_string();
        let full: String = rfc3339.chars().filter(|c| c.is_ascii_digit()).chain(['Z']).collect();
        Ok(match full.get(..4) {
            Some(year) if year < "2050" => {
                Self { tag: TAG_UTC_TIME, text: full.get(2..).unwrap_or_default().to_owned() }
            }
            _ => Self { tag: TAG_GENERALIZED_TIME, text: full },
        })
    }

    fn write(&self, writer: DERWriter<'_>) {
        writer.write_tagged_implicit(self.tag, |writer| writer.write_bytes(self.text.as_bytes()));
    }
}

/// 128 random bits, so that serial numbers are unique without a counter; RFC 5280 §4.1.2.2 allows 20 octets.
fn serial() -> [u8; 16] {
    rand::random()
}

/// An AlgorithmIdentifier. ECDSA has no parameters (RFC 5758 §3.2), RSA has NULL (RFC 4055 §5).
fn write_algorithm(writer: DERWriter<'_>, oid: &[u64]) {
    writer.write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if oid == RSA_SHA256 {
            writer.next().write_null();
        }
    });
}

/// One RDN with a UTF8String.
fn write_attribute(writer: DERWriter<'_>, oid: &[u64], value: &str) {
    writer.write_set(|writer| {
        writer.next().write_sequence(|writer| {
            writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
            writer.next().write_utf8_string(value);
        });
    });
}

/// The extensions of RFC 5280 §4.2.1 that the usage requires.
fn write_extensions(writer: &mut DERWriterSeq<'_>, template: &Template<'_>, authority_key_id: &[u8]) {
    extension(writer, &[2, 5, 29, 35], false, |writer| {
        writer.write_sequence(|writer| {
            writer
                .next()
                .write_tagged_implicit(Tag::context(0), |writer| writer.write_bytes(authority_key_id));
        });
    });
    match &template.usage {
        Usage::Leaf { sans, key_encipherment } => {
            extension(writer, &[2, 5, 29, 19], true, |writer| writer.write_sequence(|_| ()));
            // Bits 0 (digitalSignature) and 2 (keyEncipherment), RFC 5280 §4.2.1.3.
            let (bits, length) = if *key_encipherment { (0b1010_0000, 3) } else { (0b1000_0000, 1) };
            extension(writer, &[2, 5, 29, 15], true, |writer| writer.write_bitvec_bytes(&[bits], length));
            extension(writer, &[2, 5, 29, 37], false, |writer| {
                writer.write_sequence(|writer| {
                    for purpose in [1, 2] {
                        let oid = [1, 3, 6, 1, 5, 5, 7, 3, purpose];
                        writer.next().write_oid(&ObjectIdentifier::from_slice(&oid));
                    }
                });
            });
            if !sans.is_empty() {
                extension(writer, &[2, 5, 29, 17], false, |writer| {
                    writer.write_sequence(|writer| sans.iter().for_each(|san| write_san(writer, san)));
                });
            }
        }
        Usage::Ca { path_length } => {
            extension(writer, &[2, 5, 29, 19], true, |writer| {
                writer.write_sequence(|writer| {
                    writer.next().write_bool(true);
                    if let Some(length) = path_length {
                        writer.next().write_u32(*length);
                    }
                });
            });
            // Bits 5 (keyCertSign) and 6 (cRLSign).
            extension(writer, &[2, 5, 29, 15], true, |writer| writer.write_bitvec_bytes(&[0b0000_0110], 7));
            let subject_key_id = subject_key_id(template.public_key);
            extension(writer, &[2, 5, 29, 14], false, |writer| writer.write_bytes(&subject_key_id));
        }
    }
}

/// One Extension; `value` writes the DER inside of its OCTET STRING.
fn extension(writer: &mut DERWriterSeq<'_>, oid: &[u64], critical: bool, value: impl FnOnce(DERWriter<'_>)) {
    writer.next().write_sequence(|writer| {
        writer.next().write_oid(&ObjectIdentifier::from_slice(oid));
        if critical {
            writer.next().write_bool(true);
        }
        writer.next().write_bytes(&yasna::construct_der(value));
    });
}

/// GeneralName choices 2 (dNSName), 6 (uniformResourceIdentifier) and 7 (iPAddress), RFC 5280 §4.2.1.6.
fn write_san(writer: &mut DERWriterSeq<'_>, san: &San) {
    let (choice, bytes) = match san {
        San::Dns(name) => (2, name.as_str().as_bytes().to_vec()),
        San::Uri(uri) => (6, uri.as_bytes().to_vec()),
        San::Ip(IpAddr::V4(address)) => (7, address.octets().to_vec()),
        San::Ip(IpAddr::V6(address)) => (7, address.octets().to_vec()),
        _ => return,
    };
    writer.next().write_tagged_implicit(Tag::context(choice), |writer| writer.write_bytes(&bytes));
}

fn subject_key_id(public_key_info: &[u8]) -> Vec<u8> {
    use x509_parser::prelude::FromDer;
    x509_parser::x509::SubjectPublicKeyInfo::from_der(public_key_info)
        .map(|(_, info)| key_id(&info.subject_public_key.data))
        .unwrap_or_else(|_| key_id(public_key_info))
}
