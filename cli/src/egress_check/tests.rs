use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::probe::{CheckedServer, ProbeFailure};
use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

/// A certificate authority.
struct TestRoot(CertifiedIssuer<'static, KeyPair>);

impl TestRoot {
    fn new(name: &str) -> Self {
        tidegate_runtime::tls::install_provider();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn store(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        roots
    }

    /// TLS with a new certificate for `localhost`; `clients`: requires a client certificate of this root.
    fn acceptor(
        &self,
        clients: Option<&Self>,
        versions: &[&'static rustls::SupportedProtocolVersion],
    ) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let leaf =
            CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &self.0).unwrap();
        let chain: Vec<CertificateDer<'static>> = vec![leaf.der().clone(), self.0.der().clone()];
        let builder = ServerConfig::builder_with_provider(tidegate_runtime::tls::provider())
            .with_protocol_versions(versions)
            .unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(root) => {
                let verifier = WebPkiClientVerifier::builder_with_provider(
                    Arc::new(root.store()),
                    tidegate_runtime::tls::provider(),
                );
                builder.with_client_cert_verifier(verifier.build().unwrap())
            }
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).unwrap()))
    }
}

/// Serves TLS until the test ends; returns the port.
async fn serve(acceptor: TlsAcceptor) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(io).await {
                    let _ = stream.read(&mut [0; 16]).await;
                }
            });
        }
    });
    port
}

/// How a proxy answers `CONNECT`.
#[derive(Clone)]
enum TestProxy {
    /// It connects to the target.
    Tunnel,
    /// It ends TLS itself.
    Bump(TlsAcceptor),
    /// It sends these bytes and closes.
    Answer(&'static str),
}

/// A proxy that wants these credentials; returns its URL.
async fn proxy(kind: TestProxy, user: &'static str) -> HttpProxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut io, _) = listener.accept().await.unwrap();
            let kind = kind.clone();
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(io.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let target = head.split(' ').nth(1).unwrap().replace("localhost", "127.0.0.1");
                assert!(
                    user.is_empty() || head.contains("Proxy-Authorization: Basic dTpwQHc=\r\n"),
                    "{head}"
                );
                match kind {
                    TestProxy::Answer(answer) => io.write_all(answer.as_bytes()).await.unwrap(),
                    TestProxy::Tunnel => {
                        let mut upstream = TcpStream::connect(target).await.unwrap();
                        io.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
                        let _ = copy_bidirectional(&mut io, &mut upstream).await;
                    }
                    TestProxy::Bump(acceptor) => {
                        io.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                        let mut stream = acceptor.accept(io).await.unwrap();
                        let _ = stream.read(&mut [0; 16]).await;
                    }
                }
            });
        }
    });
    format!("http://{user}{address}").parse().unwrap()
}

/// The report as JSON.
async fn checked(port: u16, proxy: Option<&HttpProxy>, roots: &RootCertStore) -> serde_json::Value {
    let server: CheckedServer = format!("localhost:{port}").parse().unwrap();
    let direct = probe::probe(&server, &ProbeRoute::Direct, roots, PATIENCE).await;
    let through = match proxy {
        Some(url) => {
            Some((url, probe::probe(&server, &ProbeRoute::Through(url, roots), roots, PATIENCE).await))
        }
        None => None,
    };
    let report = EgressCheckReport::new(&server, direct, through);
    assert!(!report.text().contains("p@w"), "{}", report.text());
    serde_json::to_value(&report).unwrap()
}

const BOTH: &[&rustls::SupportedProtocolVersion] = rustls::ALL_VERSIONS;

#[tokio::test]
async fn a_proxy_that_tunnels_shows_the_server_s_certificate_and_one_that_bumps_its_own() {
    let (root, company) = (TestRoot::new("Server Root"), TestRoot::new("Company Proxy"));
    let port = serve(root.acceptor(None, BOTH)).await;
    let alone = checked(port, None, &root.store()).await;
    assert_eq!(alone["verdict"], "reachable", "{alone}");
    assert_eq!(alone["direct"]["chain"]["names"][0], "DNS:localhost");
    let url = proxy(TestProxy::Tunnel, "u:p%40w@").await;
    let tunnelled = checked(port, Some(&url), &root.store()).await;
    assert_eq!(tunnelled["verdict"], "reachable", "{tunnelled}");
    assert!(tunnelled["proxy"]["url"].as_str().unwrap().starts_with("http://127.0.0.1:"));

    let url = proxy(TestProxy::Bump(company.acceptor(None, BOTH)), "").await;
    let bumped = checked(port, Some(&url), &root.store()).await;
    assert_eq!(bumped["verdict"], "intercepted", "{bumped}");
    let reason = bumped["reason"].as_str().unwrap();
    assert!(
        reason.contains(
            "CN=Company Proxy, which this machine does not trust; the server's is by CN=Server Root"
        )
    );
    // A machine that trusts the company's root is intercepted, too.
    let mut both = root.store();
    both.roots.extend(company.store().roots);
    let bumped = checked(port, Some(&url), &both).await;
    assert!(
        bumped["verdict"] == "intercepted" && bumped["reason"].as_str().unwrap().contains("trusts"),
        "{bumped}"
    );
}

#[tokio::test]
async fn a_certificate_that_is_not_trusted_and_another_one_of_the_same_issuer_are_told_apart() {
    let root = TestRoot::new("Server Root");
    let port = serve(root.acceptor(None, BOTH)).await;
    let untrusted = checked(port, None, &TestRoot::new("Other").store()).await;
    assert_eq!(untrusted["verdict"], "untrusted", "{untrusted}");
    assert!(untrusted["reason"].as_str().unwrap().ends_with("issued by CN=Server Root"), "{untrusted}");
    let url = proxy(TestProxy::Bump(root.acceptor(None, BOTH)), "").await;
    let other = checked(port, Some(&url), &root.store()).await;
    assert_eq!(other["verdict"], "other-certificate", "{other}");
}

#[tokio::test]
async fn a_server_that_requires_a_client_certificate_is_recognised_with_each_version_of_tls() {
    let root = TestRoot::new("Server Root");
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let port = serve(root.acceptor(Some(&root), &[version])).await;
        let report = checked(port, None, &root.store()).await;
        assert_eq!(report["verdict"], "client-certificate-required", "{version:?} {report}");
        assert_eq!(report["direct"]["chain"]["clientCertificate"], "required");
    }
}

#[tokio::test]
async fn a_refusal_has_the_words_of_the_proxy() {
    let root = TestRoot::new("Server Root");
    let port = serve(root.acceptor(None, BOTH)).await;
    for (answer, reason) in [
        (
            "HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n",
            "with 403 Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0",
        ),
        (
            "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"Squid\"\r\n\r\n",
            "with 407 Proxy Authentication Required, Proxy-Authenticate: Basic realm=\"Squid\"",
        ),
        ("SSH-2.0-OpenSSH\r\n", "the answer is not HTTP/1"),
    ] {
        let url = proxy(TestProxy::Answer(answer), "").await;
        let refused = checked(port, Some(&url), &root.store()).await;
        assert_eq!(refused["verdict"], "refused-by-proxy", "{refused}");
        assert!(refused["reason"].as_str().unwrap().contains(reason), "{refused}");
    }
    let url = proxy(TestProxy::Answer(""), "").await;
    let closed = checked(port, Some(&url), &root.store()).await;
    assert_eq!(closed["verdict"], "refused-by-proxy", "{closed}");
}

#[tokio::test]
async fn an_unreachable_server_is_explained() {
    let roots = TestRoot::new("Root").store();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let refused = checked(closed, None, &roots).await;
    assert_eq!(refused["verdict"], "unreachable");
    assert!(refused["reason"].as_str().unwrap().contains("refuses the connection"), "{refused}");

    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server: CheckedServer = silent.local_addr().unwrap().to_string().parse().unwrap();
    let late = probe::probe(&server, &ProbeRoute::Direct, &roots, Duration::from_millis(50)).await;
    assert!(matches!(late, Err(ProbeFailure::Timeout(..))), "{late:?}");

    let plaintext = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server: CheckedServer = plaintext.local_addr().unwrap().to_string().parse().unwrap();
    tokio::spawn(async move {
        let (mut io, _) = plaintext.accept().await.unwrap();
        io.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        let _ = io.read(&mut [0; 1024]).await;
    });
    let other = probe::probe(&server, &ProbeRoute::Direct, &roots, PATIENCE).await;
    assert!(matches!(other, Err(ProbeFailure::Tls(_))), "{other:?}");

    let server: CheckedServer = "no-such-host.invalid".parse().unwrap();
    let unknown = probe::probe(&server, &ProbeRoute::Direct, &roots, PATIENCE).await;
    let is_dns = matches!(unknown, Err(ProbeFailure::Resolve(..) | ProbeFailure::Timeout(..)));
    assert!(is_dns, "{unknown:?}");
}

#[test]
fn servers_and_proxies_are_parsed_and_no_error_has_a_password() {
    for (text, shown) in [
        ("Api.Example.com", "api.example.com:443"),
        ("api.example.com:8443", "api.example.com:8443"),
        ("192.0.2.1", "192.0.2.1:443"),
        ("2001:db8::1", "[2001:db8::1]:443"),
        ("[2001:db8::1]:8443", "[2001:db8::1]:8443"),
    ] {
        assert_eq!(text.parse::<CheckedServer>().unwrap().to_string(), shown);
    }
    for wrong in ["", "a b", "host:0", "host:99999", "[host]", "https://host"] {
        assert!(wrong.parse::<CheckedServer>().is_err(), "{wrong}");
    }
    let url: HttpProxy = "https://me:secret@proxy.example:3128/".parse().unwrap();
    assert_eq!(url.to_string(), "https://proxy.example:3128");
    let error = "ftp://me:secret@proxy.example".parse::<HttpProxy>().unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}
