//! TLS: httpbin's answers with the app's own certificate, and a client with any certificate.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, Connection, Tls};
use tidegate_tests::http1::MessageKind;
use tidegate_tests::pki::{self, Authority, Credentials, Leaf};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::client;
use crate::httpbin::{self, Health};

/// Bytes passed to TLS at a time: it buffers 64 KiB at most.
const PIECE: usize = 32 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct TlsExchange {
    /// host:port.
    target: String,
    /// PEM of the trusted roots.
    #[arg(long)]
    roots: String,
    /// The required name in the server's certificate.
    #[arg(long)]
    expect: String,
    /// PEM of a chain and its PKCS#8 key; none is sent without it.
    #[arg(long)]
    credentials: Option<String>,
    /// Server name to send.
    #[arg(long)]
    server_name: Option<String>,
    /// ALPN protocols to offer.
    #[arg(long, value_delimiter = ',')]
    alpn: Vec<String>,
    /// Host field of the request.
    #[arg(long, default_value = "httpbin.test")]
    host: String,
    /// What to get.
    #[arg(long, default_value = "/get")]
    path: String,
    /// The request's method. Any but GET takes its body from standard input.
    #[arg(long, default_value = "GET")]
    method: String,
    /// The body's type.
    #[arg(long, default_value = "application/json")]
    content_type: String,
}

impl TlsExchange {
    pub(crate) fn run(&self) -> ExitCode {
        let mut tls = Tls::new(pki::certificates(&self.roots), &self.expect);
        if let Some(pem) = &self.credentials {
            tls = tls.credentials(Credentials::from_pem(pem, pem));
        }
        if let Some(name) = &self.server_name {
            tls = tls.server_name(name);
        }
        tls = tls.protocols(&self.alpn.iter().map(String::as_str).collect::<Vec<_>>());
        let request = self.request();
        let outcome = client::resolve(&self.target).and_then(|target| {
            let result = Client::to(target).tls(tls).connect();
            let exchange = |mut connection: Connection| {
                request.chunks(PIECE).for_each(|piece| connection.write(piece));
                connection.response(MessageKind::Response)
            };
            result.and_then(exchange).map_err(|end| client::name(&end))
        });
        println!("{}", client::describe(&outcome));
        ExitCode::from(u8::from(outcome.is_err()))
    }

    fn request(&self) -> Vec<u8> {
        let head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.path, self.host);
        if self.method == "GET" {
            return (head + "\r\n").into_bytes();
        }
        let mut body = Vec::new();
        std::io::stdin().read_to_end(&mut body).unwrap();
        let (length, kind) = (body.len(), &self.content_type);
        let mut request =
            format!("{head}content-type: {kind}\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        request.append(&mut body);
        request
    }
}

/// Listens, in its own thread; what is inside TLS goes to an app in plaintext.
pub(crate) fn serve(address: SocketAddr, health: Health) {
    let listener =
        std::net::TcpListener::bind(address).unwrap_or_else(|error| panic!("https at {address}: {error}"));
    listener.set_nonblocking(true).unwrap();
    let credentials = Authority::root("Test App").issue(&Leaf::dns("test-app"));
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(credentials.chain.clone(), credentials.key())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    thread::spawn(move || {
        let app = App::start((Ipv4Addr::LOCALHOST, 0).into(), move |conversation| {
            httpbin::serve(conversation, &health)
        });
        let target = app.address();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut outside) = acceptor.accept(stream).await else { return };
                    let Ok(mut inside) = TcpStream::connect(target).await else { return };
                    // Either side may disconnect at any time.
                    let _ = copy_bidirectional(&mut outside, &mut inside).await;
                });
            }
        });
    });
}
