use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::test_pki::{TestAuthority, identity};

/// A proxy in this process.
pub(crate) struct TestProxy {
    pub(crate) address: SocketAddr,
    /// The heads of requests.
    heads: mpsc::UnboundedReceiver<String>,
}

impl TestProxy {
    /// Gives each request this answer, and nothing else.
    async fn answering(answer: Vec<u8>) -> Self {
        Self::start(None, move |mut io, _| {
            let answer = answer.clone();
            async move {
                let _ = io.write_all(&answer).await;
            }
        })
        .await
    }

    /// Connects each client to `server`, whatever it asks for.
    pub(crate) async fn forwarding_to(server: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Self {
        Self::start(tls, move |mut io, _| async move {
            let mut server = TcpStream::connect(server).await.unwrap();
            io.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.unwrap();
            let _ = copy_bidirectional(&mut io, &mut server).await;
        })
        .await
    }

    async fn start<F: Future<Output = ()> + Send + 'static>(
        tls: Option<Arc<ServerConfig>>,
        serve: impl Fn(Box<dyn Stream>, String) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, heads) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut io: Box<dyn Stream> = match &tls {
                    Some(config) => match TlsAcceptor::from(config.clone()).accept(tcp).await {
                        Ok(stream) => Box::new(stream),
                        Err(_) => continue,
                    },
                    None => Box::new(tcp),
                };
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(io.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                sender.send(head.clone()).unwrap();
                tokio::spawn(serve(io, head));
            }
        });
        Self { address, heads }
    }

    /// The head of the next request.
    pub(crate) async fn head(&mut self) -> String {
        self.heads.recv().await.unwrap()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn proxy(url: &str) -> HttpProxy {
    url.parse().unwrap()
}

#[test]
fn the_url_of_a_proxy_is_scheme_credentials_host_and_port() {
    for (text, shown) in [
        ("http://squid.example:3128", "http://squid.example:3128"),
        ("squid.example:3128", "http://squid.example:3128"),
        ("HTTP://squid.example", "http://squid.example:80"),
        ("https://squid.example/", "https://squid.example:443"),
        ("http://user:p%40ss@192.0.2.1:3128", "http://192.0.2.1:3128"),
        ("http://[fd00::1]:3128", "http://[fd00::1]:3128"),
    ] {
        assert_eq!(proxy(text).to_string(), shown);
        assert_eq!(format!("{:?}", proxy(text)), shown, "no credentials in it");
    }
    let authorization = proxy("http://user:p%40ss%3A@a:1").credentials().unwrap().authorization().to_owned();
    assert_eq!(authorization, ProxyCredentials::basic("user", "p@ss:").unwrap().authorization());
    for (text, problem) in [
        ("socks5://squid:1080", InvalidProxyUrl::Scheme),
        ("http://squid:3128/path", InvalidProxyUrl::NotBare),
        ("http://squid:3128?x", InvalidProxyUrl::NotBare),
        ("http://", InvalidProxyUrl::Authority),
        ("http://squid:0", InvalidProxyUrl::Authority),
        ("http://squid:70000", InvalidProxyUrl::Authority),
        ("http://u:%ff@squid:1", InvalidProxyUrl::Credentials),
        ("http://u:a%0ab@squid:1", InvalidProxyUrl::Credentials),
        ("http://:x@squid:1", InvalidProxyUrl::Credentials),
    ] {
        assert_eq!(text.parse::<HttpProxy>(), Err(problem), "{text}");
    }
}

#[tokio::test]
async fn a_tunnel_is_requested_by_name_and_the_server_s_first_bytes_are_kept() {
    let mut squid = TestProxy::answering(b"HTTP/1.0 200 OK\r\nvia: x\r\n\r\nhello".to_vec()).await;
    let (url, none) = (proxy(&format!("http://mesh:secret@{}", squid.address)), RootCertStore::empty());
    let tunnel = url.tunnel("db.example:5432", &none);
    let mut all = String::new();
    tunnel.await.unwrap().read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "hello");
    assert_eq!(
        squid.head().await,
        "CONNECT db.example:5432 HTTP/1.1\r\nHost: db.example:5432\r\n\
         Proxy-Authorization: Basic bWVzaDpzZWNyZXQ=\r\n\r\n"
    );
}

#[tokio::test]
async fn a_refusal_names_the_proxy_and_its_own_words_but_no_password() {
    let squid = b"HTTP/1.1 403 Forbidden\r\nX-Squid-Error: ERR_ACCESS_DENIED 0\r\n\r\n";
    for (answer, expected) in [
        (
            squid.to_vec(),
            "answers CONNECT ca.example:443 with 403 Forbidden, X-Squid-Error: ERR_ACCESS_DENIED 0",
        ),
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n".to_vec(),
            "with 407 Proxy Authentication Required",
        ),
        (b"SSH-2.0-x\r\n".to_vec(), "the answer is not HTTP/1"),
        ([&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'a'; 70_000]].concat(), "is larger than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nx".to_vec(), "end of file"),
    ] {
        let squid = TestProxy::answering(answer).await;
        let at = squid.address;
        let error = proxy(&format!("http://mesh:secret@{at}"))
            .tunnel("ca.example:443", &RootCertStore::empty())
            .await;
        let text = error.unwrap_err().to_string();
        assert!(text.starts_with(&format!("forward proxy http://{at}")) && text.contains(expected), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn tls_with_the_proxy_is_verified_by_its_own_roots() {
    crate::tls::install_provider();
    let root = TestAuthority::root("proxies");
    let credentials = root.credentials(&identity("squid"));
    let key = PrivateKeyDer::clone_key(&credentials.key);
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(credentials.chain, key);
    let server = TestProxy::answering(b"HTTP/1.1 200 OK\r\n\r\ninside".to_vec()).await;
    let squid = TestProxy::forwarding_to(server.address, Some(Arc::new(config.unwrap()))).await;
    let url = proxy(&format!("https://localhost:{}", squid.address.port()));

    let trusts = |root: &TestAuthority| roots_of_pem(root.certificate.pem().as_bytes()).unwrap();
    let mut tunnel = url.tunnel("db.example:5432", &trusts(&root)).await.unwrap();
    tunnel.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut all = String::new();
    tunnel.read_to_string(&mut all).await.unwrap();
    assert!(all.ends_with("inside"), "{all}");

    let other = trusts(&TestAuthority::root("others"));
    let error = url.tunnel("db.example:5432", &other).await.unwrap_err();
    assert!(error.to_string().contains("certificate"), "{error}");
    let error = url.tunnel("db.example:5432", &RootCertStore::empty()).await.unwrap_err();
    assert!(error.to_string().contains("needs a file of roots"), "{error}");
    assert_eq!(roots_of_pem(b"").unwrap_err(), "there is no certificate");
}
