//! The certificates of a run: one CA, a server, two admitted clients and another client. ECDSA P-256.
//!
//! nginx and HAProxy can read a client's common name but not its alternative names, so each certificate carries its
//! name in both.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

use crate::tls::ClientIdentity;

/// The name that the proxies admit.
pub(crate) const ALLOWED: &str = "ingress-nginx.ingress-nginx.cluster.local";
/// A name from the same CA that the proxies refuse.
pub(crate) const FOREIGN: &str = "intruder.elsewhere.cluster.local";
/// The identity of the client's side of a pair, which the other side admits.
pub(crate) const CALLER: &str = "caller.httpbin.cluster.local";
/// Its other spelling. Sidecars require both in each other's certificates.
const CALLER_URI: &str = "spiffe://cluster.local/ns/httpbin/sa/caller";
/// The name in the proxies' own certificate, which clients verify.
pub(crate) const SERVER: &str = "httpbin.httpbin.cluster.local";

/// Names of the app outside the mesh, for which the proxies' own certificate is valid, too.
pub(crate) const OUTSIDE: [&str; 3] = ["api.example.com", "www.example.com", "cdn.example.com"];

/// Paths of the PEM files.
#[derive(Debug, Clone)]
pub(crate) struct RunCertificates {
    /// Certificate of the CA.
    pub(crate) ca: PathBuf,
    /// Private key of the CA, with which Tidegate's CA signs.
    pub(crate) ca_key: PathBuf,
    /// The proxies' own certificate, for [`SERVER`].
    pub(crate) server: ClientIdentity,
    /// Certificate, then key, in one file: HAProxy's form.
    pub(crate) server_with_key: PathBuf,
    /// A client that the proxies admit, as [`ALLOWED`].
    pub(crate) allowed: ClientIdentity,
    /// The client's side of a pair, as [`CALLER`].
    pub(crate) caller: ClientIdentity,
    /// The same in one file.
    pub(crate) caller_with_key: PathBuf,
    /// A client of the same CA that the proxies refuse, as [`FOREIGN`].
    pub(crate) foreign: ClientIdentity,
}

impl RunCertificates {
    /// Generates new certificates in `directory`, which must exist.
    pub(crate) fn create(directory: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "tidegate-bench");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let paths = Self {
            ca: directory.join("ca.crt"),
            ca_key: directory.join("ca.key"),
            server: identity(directory, "server"),
            server_with_key: directory.join("server.pem"),
            allowed: identity(directory, "allowed"),
            caller: identity(directory, "caller"),
            caller_with_key: directory.join("caller.pem"),
            foreign: identity(directory, "foreign"),
        };
        fs::write(&paths.ca, ca.pem())?;
        fs::write(&paths.ca_key, ca.key().serialize_pem())?;
        let name = |name: &str| CertificateParams::new([name.to_owned()]);
        let mut caller = name(CALLER)?;
        caller.subject_alt_names.push(SanType::URI(CALLER_URI.try_into()?));
        let server = CertificateParams::new(
            [SERVER].into_iter().chain(OUTSIDE).map(str::to_owned).collect::<Vec<_>>(),
        )?;
        issue(&ca, SERVER, server, ExtendedKeyUsagePurpose::ServerAuth, &paths.server)?;
        issue(&ca, ALLOWED, name(ALLOWED)?, ExtendedKeyUsagePurpose::ClientAuth, &paths.allowed)?;
        issue(&ca, CALLER, caller, ExtendedKeyUsagePurpose::ClientAuth, &paths.caller)?;
        issue(&ca, FOREIGN, name(FOREIGN)?, ExtendedKeyUsagePurpose::ClientAuth, &paths.foreign)?;
        join(&paths.server, &paths.server_with_key)?;
        join(&paths.caller, &paths.caller_with_key)?;
        Ok(paths)
    }
}

/// Paths of a certificate and its key.
fn identity(directory: &Path, name: &str) -> ClientIdentity {
    ClientIdentity {
        certificate: directory.join(format!("{name}.crt")),
        key: directory.join(format!("{name}.key")),
    }
}

/// Writes certificate and key into one file.
fn join(files: &ClientIdentity, file: &Path) -> Result<()> {
    Ok(fs::write(file, fs::read_to_string(&files.certificate)? + &fs::read_to_string(&files.key)?)?)
}

/// Issues a leaf certificate with this common name and the alternative names of `params`, and writes it with its key.
fn issue(
    ca: &CertifiedIssuer<'_, KeyPair>,
    name: &str,
    mut params: CertificateParams,
    usage: ExtendedKeyUsagePurpose,
    files: &ClientIdentity,
) -> Result<()> {
    let key = KeyPair::generate()?;
    // Otherwise the library's default name would be the subject.
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    fs::write(&files.certificate, params.signed_by(&key, ca)?.pem())?;
    fs::write(&files.key, key.serialize_pem())?;
    Ok(())
}
