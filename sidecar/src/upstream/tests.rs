//! Requests over every transport, to servers in the same process.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::SystemTime;

use http_body_util::{BodyExt, Empty};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tidegate_core::backend::{ForwardProxy, ProxyRequest, Transport};
use tidegate_core::forward_proxy::{ForwardedHeaders, ProxySettings};
use tidegate_core::policy::Terms;
use tidegate_core::tls_origination::{ServerName, ServerVerification, TlsOrigination, TrustRoots};
use tidegate_core::{DnsName, Identity, ObjectRef, TrustDomain};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::connection_info::ConnectionInfo;
use crate::snapshot::{Publisher, channel};
use crate::test_pki::{Authority, Leaf};
use crate::tls::{OriginTls, PeerTls};

/// What servers of HTTP/1 answer with.
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const BOTH: [MeshProtocol; 2] = [MeshProtocol::Http1, MeshProtocol::Http2];

/// A worker's connections, and what TLS is spoken by.
struct World {
    upstreams: Upstreams,
    publisher: Publisher,
    /// Its own mesh, and the authority of servers outside.
    root: Authority,
    web: Authority,
}

/// A server inside TLS.
struct Server {
    address: SocketAddr,
    connections: Rc<Cell<usize>>,
    ended: Rc<Cell<usize>>,
    gate: Rc<Gate>,
}

/// Holds the answers to requests for [`HELD`].
#[derive(Default)]
struct Gate {
    held: Cell<usize>,
    open: Notify,
}

/// A path whose answers come when the test allows it.
const HELD: &str = "/held";

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let local = tokio::task::LocalSet::new();
    runtime.block_on(local.run_until(async {
        tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test ends in time");
    }));
}

fn roots() -> TrustRoots {
    TrustRoots::Bundles(vec![ObjectRef::new("ConfigMap", "shop", "web-roots")])
}

fn own_certificate() -> ObjectRef {
    ObjectRef::new("Secret", "shop", "client-certificate")
}

fn store(root: &Authority) -> Arc<RootCertStore> {
    root.bundle().root_store()
}

impl World {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let (publisher, snapshots) = channel();
        let upstreams = Upstreams::new(Rc::new(limits), snapshots);
        let world = Self { upstreams, publisher, root: Authority::root("mesh"), web: Authority::root("web") };
        world.renew();
        let leaf = world.web.named("client.example");
        let key = CertifiedKey::from_der(
            leaf.chain.clone(),
            leaf.private_key(),
            &tidegate_runtime::tls::provider(),
        );
        let certificates = HashMap::from([(own_certificate(), Arc::new(key.unwrap()))]);
        let origin = OriginTls::new(HashMap::from([(roots(), store(&world.web))]), certificates);
        world.publisher.update(|snapshot| snapshot.origin_tls = Arc::new(origin));
        world
    }

    /// The workload's certificate is replaced.
    fn renew(&self) {
        let leaf = self.root.workload("shop", "client");
        let tls = PeerTls::new(&leaf.credentials(), self.root.bundle()).unwrap();
        self.publisher.update(|snapshot| snapshot.peer_tls = Some(Arc::new(tls)));
    }

    /// The status of an answer whose body is read, and the certificate of the request's client.
    async fn get(&self, endpoint: &Arc<Endpoint>, protocol: MeshProtocol) -> Result<u16, UpstreamError> {
        self.get_path(endpoint, protocol, "/").await
    }

    async fn get_path(
        &self,
        endpoint: &Arc<Endpoint>,
        protocol: MeshProtocol,
        path: &str,
    ) -> Result<u16, UpstreamError> {
        let request = |uri: &str| Request::get(uri).header("host", "app.example").body(Empty::<Bytes>::new());
        let sending = match protocol {
            MeshProtocol::Http2 => {
                let uri = format!("http://app.example{path}");
                self.upstreams.send(&client(), endpoint, request(&uri).unwrap(), None)
            }
            _ => self.upstreams.send_http1(&client(), endpoint, request(path).unwrap(), None),
        };
        let response = sending?.await.map_err(|failure| failure.error)?;
        let status = response.status().as_u16();
        response.into_body().collect().await?;
        Ok(status)
    }

    /// Why there is no connection.
    async fn refused(&self, endpoint: &Endpoint, protocol: MeshProtocol) -> ConnectError {
        match self.upstreams.connect(endpoint, protocol, Deadline::Timer).await {
            Ok(_) => panic!("connected"),
            Err(error) => error,
        }
    }
}

fn client() -> ServedConnection {
    let info = ConnectionInfo {
        peer: "192.0.2.7:4444".parse().unwrap(),
        local: "192.0.2.1:14001".parse().unwrap(),
        port: 14001,
        app: "127.0.0.1:1".parse().unwrap(),
        terms: Terms::IngressPlaintext,
        tls: false,
        server_name: None,
        client: None,
        identity: "spiffe://cluster.local/ns/shop/sa/client".into(),
        remote: Default::default(),
        accepted: SystemTime::now(),
    };
    ServedConnection::Inbound(Rc::new(info))
}

impl Server {
    /// Shows this certificate, chooses one of these ALPN protocols, and asks for a certificate of `clients`, if any.
    async fn start(leaf: &Leaf, clients: Option<&Authority>, alpn: &[&str]) -> Self {
        let provider = tidegate_runtime::tls::provider();
        let builder = ServerConfig::builder_with_provider(provider.clone());
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(root) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(store(root), provider).build().unwrap(),
            ),
        };
        let mut config = builder.with_single_cert(leaf.chain.clone(), leaf.private_key()).unwrap();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            connections: Rc::default(),
            ended: Rc::default(),
            gate: Rc::default(),
        };
        let (connections, ended, gate) =
            (server.connections.clone(), server.ended.clone(), server.gate.clone());
        tokio::task::spawn_local(async move {
            while let Ok((io, _)) = listener.accept().await {
                let (acceptor, connections) = (acceptor.clone(), connections.clone());
                let (ended, gate) = (ended.clone(), gate.clone());
                tokio::task::spawn_local(async move {
                    if let Ok(stream) = acceptor.accept(io).await {
                        connections.set(connections.get() + 1);
                        answer(stream, gate).await;
                        ended.set(ended.get() + 1);
                    }
                });
            }
        });
        server
    }

    /// A sidecar of this workload of the mesh.
    async fn sidecar(world: &World, account: &str) -> Self {
        let alpn = ["tidegate/h1", "tidegate/h2", "tidegate/tcp"];
        Self::start(&world.root.workload("shop", account), Some(&world.root), &alpn).await
    }

    /// A server of the web with this name.
    async fn web(world: &World, name: &str) -> Self {
        Self::start(&world.web.named(name), None, &["h2", "http/1.1"]).await
    }

    fn mesh(&self, account: &str) -> Arc<Endpoint> {
        let identity = Identity::new(TrustDomain::default(), "shop", account).unwrap();
        Arc::new(Endpoint::new(self.address, Transport::Mesh(identity)))
    }

    fn tls(&self, name: &str) -> Arc<Endpoint> {
        self.tls_with(name, |_| {})
    }

    fn tls_with(&self, name: &str, change: impl FnOnce(&mut TlsOrigination)) -> Arc<Endpoint> {
        let mut tls = TlsOrigination {
            sni: Some(name.into()),
            verify: ServerVerification {
                roots: roots(),
                names: vec![ServerName::Dns(DnsName::parse(name).unwrap())],
            },
            client_certificate: None,
        };
        change(&mut tls);
        Arc::new(Endpoint::new(self.address, Transport::Tls(Box::new(tls))))
    }
}

impl Gate {
    async fn pass(&self, path: &str) {
        if path == HELD {
            self.held.set(self.held.get() + 1);
            self.open.notified().await;
        }
    }
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::task::yield_now().await;
    }
}

/// Answers every request, in the HTTP that was chosen by ALPN.
async fn answer(mut stream: tokio_rustls::server::TlsStream<TcpStream>, gate: Rc<Gate>) {
    if stream.get_ref().1.alpn_protocol().is_some_and(|name| name.ends_with(b"h2")) {
        let mut builder = h2::server::Builder::new();
        let mut connection = builder.max_concurrent_streams(2).handshake::<_, Bytes>(stream).await.unwrap();
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let gate = gate.clone();
            tokio::task::spawn_local(async move {
                gate.pass(request.uri().path()).await;
                // The client may have given up.
                let _ = respond.send_response(Response::new(()), true);
            });
        }
        return;
    }
    let mut request = Vec::new();
    while let Ok(1..) = stream.read_buf(&mut request).await {
        if request.ends_with(b"\r\n\r\n") {
            let path = if request.starts_with(b"GET /held ") { HELD } else { "/" };
            gate.pass(path).await;
            request.clear();
            if stream.write_all(OK).await.is_err() {
                return;
            }
        }
    }
}

#[test]
fn requests_go_to_a_sidecar_that_is_the_expected_one_and_share_its_connections() {
    run(async {
        let world = World::new();
        for protocol in BOTH {
            let server = Server::sidecar(&world, "cart").await;
            for _ in 0..3 {
                assert_eq!(world.get(&server.mesh("cart"), protocol).await.unwrap(), 200);
            }
            assert_eq!(server.connections.get(), 1);
            // The connection that is open is not one for another workload at the same address, nor one without TLS.
            assert!(world.get(&server.mesh("basket"), protocol).await.is_err());
            let error = world.refused(&server.mesh("basket"), protocol).await;
            assert!(matches!(error, ConnectError::OtherIdentity(_)), "{error}");
            let plain = Arc::new(Endpoint::new(server.address, Transport::Plain));
            assert!(world.get(&plain, protocol).await.is_err());

            // After a renewal there is a new one.
            world.renew();
            assert_eq!(world.get(&server.mesh("cart"), protocol).await.unwrap(), 200);
            assert!(server.connections.get() > 1);
        }
    });
}

#[test]
fn a_codec_of_http1_gets_its_connection_back_until_it_is_closed_or_the_certificate_is_replaced() {
    run(async {
        let world = World::new();
        let server = Server::sidecar(&world, "cart").await;
        let endpoint = server.mesh("cart");
        let (mut held, _) = world.upstreams.open(&endpoint, &Lifeline::new()).await.ok().unwrap();
        for _ in 0..3 {
            held.io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
            let mut response = [0; OK.len()];
            held.io.read_exact(&mut response).await.unwrap();
            assert_eq!(response, OK);
            world.upstreams.put(&endpoint, held);
            assert!(matches!(world.upstreams.checkout(&server.mesh("basket")), Ok(None)));
            held = world.upstreams.checkout(&endpoint).ok().flatten().unwrap();
        }
        assert_eq!(server.connections.get(), 1);
        world.upstreams.put(&endpoint, held);
        world.renew();
        assert!(matches!(world.upstreams.checkout(&endpoint), Ok(None)));
        assert_eq!(world.upstreams.connections(), ConnectionCounts::default());
    });
}

#[test]
fn what_a_server_says_unasked_inside_tls_keeps_its_connection_out_of_the_pool() {
    run(async {
        let world = World::new();
        let server = Server::sidecar(&world, "cart").await;
        let endpoint = server.mesh("cart");
        let (mut held, _) = world.upstreams.open(&endpoint, &Lifeline::new()).await.ok().unwrap();
        held.io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        // One byte of the answer is left inside TLS.
        held.io.read_exact(&mut [0; OK.len() - 1]).await.unwrap();
        world.upstreams.put(&endpoint, held);
        assert!(matches!(world.upstreams.checkout(&endpoint), Ok(None)));
    });
}

#[test]
fn requests_go_to_a_server_outside_the_mesh_that_has_the_expected_name() {
    run(async {
        let world = World::new();
        for protocol in BOTH {
            let server = Server::web(&world, "api.example").await;
            assert_eq!(world.get(&server.tls("api.example"), protocol).await.unwrap(), 200);
            assert_eq!(world.get(&server.tls("api.example"), protocol).await.unwrap(), 200);
            assert_eq!(server.connections.get(), 1);

            assert!(world.get(&server.tls("shop.example"), protocol).await.is_err());
            let error = world.refused(&server.tls("shop.example"), protocol).await;
            assert_eq!(
                error.to_string(),
                "expected a server named DNS:shop.example, but the certificate is that of DNS:api.example"
            );
            let nameless = server.tls_with("api.example", |tls| tls.verify.names.clear());
            assert!(matches!(world.refused(&nameless, protocol).await, ConnectError::OtherIdentity(_)));
            let rootless = server.tls_with("api.example", |tls| tls.verify.roots = TrustRoots::System);
            assert!(matches!(world.refused(&rootless, protocol).await, ConnectError::Origination(_)));
            // A certificate of the mesh is not one of the web.
            let sidecar = Server::sidecar(&world, "cart").await;
            let error = world.refused(&sidecar.tls("api.example"), protocol).await;
            assert!(matches!(error, ConnectError::Tls(_)), "{error}");
        }
    });
}

#[test]
fn a_wildcard_stands_for_one_label_and_types_of_names_do_not_mix() {
    run(async {
        let world = World::new();
        let server = Server::web(&world, "*.example.com").await;
        let is_good = async |names: Vec<ServerName>| {
            let endpoint = server.tls_with("a.example.com", |tls| tls.verify.names = names);
            world.get(&endpoint, MeshProtocol::Http1).await.is_ok()
        };
        let dns = |name: &str| ServerName::Dns(DnsName::parse(name).unwrap());
        assert!(is_good(vec![dns("a.example.com")]).await);
        assert!(is_good(vec![dns("other.example"), dns("b.example.com")]).await, "one of them is enough");
        assert!(!is_good(vec![dns("a.b.example.com")]).await && !is_good(vec![dns("example.com")]).await);
        assert!(!is_good(vec![ServerName::Uri("a.example.com".into())]).await);

        let server = Server::start(&world.web.workload("a", "b"), None, &[]).await;
        let uri = |uri: &str| {
            server.tls_with("a.example", |tls| tls.verify.names = vec![ServerName::Uri(uri.into())])
        };
        assert_eq!(
            world.get(&uri("spiffe://cluster.local/ns/a/sa/b"), MeshProtocol::Http1).await.unwrap(),
            200
        );
        assert!(world.get(&uri("spiffe://cluster.local/ns/a/sa/c"), MeshProtocol::Http1).await.is_err());
    });
}

#[test]
fn a_server_that_wants_a_client_certificate_gets_the_configured_one() {
    run(async {
        let world = World::new();
        let server = Server::start(&world.web.named("api.example"), Some(&world.web), &["h2"]).await;
        let with =
            |object: ObjectRef| server.tls_with("api.example", |tls| tls.client_certificate = Some(object));
        assert_eq!(world.get(&with(own_certificate()), MeshProtocol::Http2).await.unwrap(), 200);
        assert!(world.get(&server.tls("api.example"), MeshProtocol::Http2).await.is_err());
        let error = world.refused(&with(ObjectRef::new("Secret", "shop", "none")), MeshProtocol::Http2).await;
        assert_eq!(error.to_string(), "there is no client certificate in Secret shop/none");
    });
}

#[test]
fn a_server_that_does_not_speak_what_it_is_to_speak_gets_no_request() {
    run(async {
        let world = World::new();
        let old = Server::start(&world.web.named("api.example"), None, &[]).await;
        let error = world.refused(&old.tls("api.example"), MeshProtocol::Http2).await;
        assert!(matches!(error, ConnectError::NotHttp2), "{error}");
        assert_eq!(world.get(&old.tls("api.example"), MeshProtocol::Http1).await.unwrap(), 200);
        let other = Server::start(&world.root.workload("shop", "cart"), None, &[]).await;
        let error = world.refused(&other.mesh("cart"), MeshProtocol::Http1).await;
        assert_eq!(
            error.to_string(),
            "the peer does not speak tidegate/h1: it is not a sidecar of this mesh"
        );
    });
}

#[test]
fn a_forward_proxy_carries_every_transport() {
    run(async {
        let world = World::new();
        let server = Server::web(&world, "api.example").await;
        let target = server.address;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        tokio::task::spawn_local(async move {
            while let Ok((mut io, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(io.read_u8().await.unwrap());
                }
                if !head.starts_with(b"CONNECT api.example:443 ") {
                    io.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n").await.unwrap();
                    continue;
                }
                io.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                tokio::task::spawn_local(async move {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    let _ = copy_bidirectional(&mut io, &mut far).await;
                });
            }
        });
        let settings = Arc::new(ProxySettings {
            origin: ObjectRef::new("EgressProxy", "shop", "squid"),
            credentials: None,
            credentials_version: Arc::default(),
            tls: None,
            connect_timeout: GRACE,
            response_timeout: GRACE,
            forwarded_headers: ForwardedHeaders::Transparent,
        });
        let via = |target: &str| {
            let mut endpoint = Endpoint::clone(&server.tls("api.example"));
            endpoint.address = proxy;
            endpoint.via = Some(ForwardProxy {
                settings: settings.clone(),
                request: ProxyRequest::Tunnel(target.into()),
            });
            Arc::new(endpoint)
        };
        for protocol in BOTH {
            assert_eq!(world.get(&via("api.example:443"), protocol).await.unwrap(), 200);
            let error = world.refused(&via("other.example:443"), protocol).await;
            assert_eq!(error.to_string(), "forward proxy: the answer to CONNECT is 403 Forbidden");
        }
    });
}

#[test]
fn a_forward_proxy_with_tls_needs_its_own_name_and_roots_and_keeps_what_follows_its_answer() {
    run(async {
        let world = World::new();
        let server = Server::start(&world.web.named("proxy.corp.example"), None, &["http/1.1"]).await;
        let through = |name: &str, roots: &Authority, request: ProxyRequest| {
            let pem = tidegate_runtime::tls::pem_encode(&[roots.chain_above()]);
            let verify = ServerVerification {
                roots: TrustRoots::Pem(pem.into()),
                names: vec![ServerName::Dns(DnsName::parse(name).unwrap())],
            };
            let settings = ProxySettings {
                origin: ObjectRef::new("EgressProxy", "shop", "squid"),
                credentials: None,
                credentials_version: Arc::default(),
                tls: Some(TlsOrigination { sni: Some(name.into()), verify, client_certificate: None }),
                connect_timeout: GRACE,
                response_timeout: GRACE,
                forwarded_headers: ForwardedHeaders::Transparent,
            };
            let via = Some(ForwardProxy { settings: Arc::new(settings), request });
            Arc::new(Endpoint { via, ..Endpoint::new(server.address, Transport::Plain) })
        };
        let absolute = through("proxy.corp.example", &world.web, ProxyRequest::AbsoluteForm);
        for _ in 0..2 {
            assert_eq!(world.get(&absolute, MeshProtocol::Http1).await.unwrap(), 200);
        }
        assert_eq!(server.connections.get(), 1, "it is kept");
        let tunnel = through("proxy.corp.example", &world.web, ProxyRequest::Tunnel("a.example:443".into()));
        let opened = world.upstreams.connect(&tunnel, MeshProtocol::Tcp, Deadline::Timer).await;
        let (mut opened, mut rest) = (opened.unwrap_or_else(|error| panic!("{error}")), [0; 2]);
        opened.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"ok", "what the proxy sends behind the head is the target's");

        let other = through("other.corp.example", &world.web, ProxyRequest::AbsoluteForm);
        let error = world.refused(&other, MeshProtocol::Http1).await.to_string();
        assert!(
            error.starts_with("forward proxy: expected a server named DNS:other.corp.example"),
            "{error}"
        );
        let foreign = through("proxy.corp.example", &Authority::root("foreign"), ProxyRequest::AbsoluteForm);
        let failure = world.refused(&foreign, MeshProtocol::Http1).await.failure();
        assert_eq!(failure.details(), "forward_proxy_tls_failure");
    });
}

/// How long requests in flight may take.
const GRACE: Duration = Duration::from_secs(10);

#[test]
fn a_connection_to_a_peer_that_is_not_trusted_any_more_ends_after_its_requests() {
    run(async {
        let world = World::new();
        for protocol in BOTH {
            let server = Server::sidecar(&world, "cart").await;
            let endpoint = server.mesh("cart");
            let held = world.get_path(&endpoint, protocol, HELD);
            let (answer, ()) = tokio::join!(held, async {
                until(|| server.gate.held.get() == 1).await;
                world.renew();
                world.upstreams.review(GRACE, |_| false);
                world.upstreams.sweep(Instant::now() + GRACE - Duration::from_secs(1));
                server.gate.open.notify_waiters();
            });
            assert!(matches!(answer, Ok(200)), "it was in flight: {answer:?}");
            until(|| server.ended.get() == 1).await;

            // An idle one ends at once.
            assert_eq!(world.get(&endpoint, protocol).await.unwrap(), 200);
            world.renew();
            world.upstreams.review(GRACE, |_| false);
            until(|| server.ended.get() == 2).await;
            assert_eq!(world.upstreams.connections(), ConnectionCounts::default());
        }
    });
}

#[test]
fn a_request_that_takes_longer_after_its_peer_lost_its_trust_is_cut_off() {
    run(async {
        let world = World::new();
        let cut = Instant::now() + GRACE + Duration::from_secs(10);
        for protocol in BOTH {
            let server = Server::sidecar(&world, "cart").await;
            let endpoint = server.mesh("cart");
            let held = world.get_path(&endpoint, protocol, HELD);
            let (answer, ()) = tokio::join!(held, async {
                until(|| server.gate.held.get() == 1).await;
                world.upstreams.review(GRACE, |certificate| &*certificate.names == "DNS:another");
                world.upstreams.sweep(cut);
            });
            assert!(answer.is_err(), "{answer:?}");
        }
        // The same for a connection that an HTTP/1 codec drives, but not for a tunnel's, which ends with the app's
        // connection.
        for (protocol, is_cut) in [(MeshProtocol::Http1, true), (MeshProtocol::Tcp, false)] {
            let server = Server::sidecar(&world, "cart").await;
            let endpoint = server.mesh("cart");
            let mut stream =
                world.upstreams.connect(&endpoint, protocol, Deadline::Timer).await.ok().unwrap();
            world.upstreams.review(GRACE, |_| false);
            world.upstreams.sweep(cut);
            let read = futures_util::poll!(std::pin::pin!(stream.read_u8()));
            assert_eq!(read.is_ready(), is_cut, "{read:?}");
        }
    });
}

#[test]
fn a_connection_to_a_peer_that_is_still_trusted_keeps_its_requests() {
    run(async {
        let world = World::new();
        for protocol in BOTH {
            let server = Server::sidecar(&world, "cart").await;
            let endpoint = server.mesh("cart");
            let held = world.get_path(&endpoint, protocol, HELD);
            let (answer, ()) = tokio::join!(held, async {
                until(|| server.gate.held.get() == 1).await;
                world.renew();
                world.upstreams.review(GRACE, |certificate| certificate.names.contains("cart"));
                world.upstreams.sweep(Instant::now() + 2 * GRACE);
                server.gate.open.notify_waiters();
            });
            assert_eq!(answer.unwrap(), 200);
        }
    });
}

#[test]
fn an_http_2_connection_that_is_too_old_gets_no_more_requests_and_finishes_those_that_it_has() {
    run(async {
        let age = Duration::from_secs(20);
        let limits = Limits { upstream_max_age: age, upstream_connections: 1, ..Limits::default() };
        let world = World::with(limits);
        let server = Server::sidecar(&world, "cart").await;
        let endpoint = server.mesh("cart");
        let get = |path| world.get_path(&endpoint, MeshProtocol::Http2, path);
        let start = Instant::now();
        let answers = tokio::join!(get(HELD), get(HELD), async {
            until(|| server.gate.held.get() == 2).await;
            world.upstreams.sweep(start + age * 8 / 10);
            // It is full, and the limit allows no second connection.
            let waiting = get("/");
            let mut waiting = std::pin::pin!(waiting);
            assert!(futures_util::poll!(&mut waiting).is_pending());
            assert_eq!(server.connections.get(), 1);
            world.upstreams.sweep(Instant::now() + age * 12 / 10);
            let answer = waiting.await;
            assert_eq!((server.connections.get(), server.ended.get()), (2, 0));
            server.gate.open.notify_waiters();
            answer
        });
        assert!(matches!(answers, (Ok(200), Ok(200), Ok(200))), "{answers:?}");
        until(|| server.ended.get() == 1).await;
        assert_eq!(world.upstreams.connections().http2, 1);
    });
}

#[test]
fn a_request_whose_body_breaks_off_is_the_client_s_fault() {
    run(async {
        let world = World::new();
        let server = Server::sidecar(&world, "cart").await;
        let endpoint = server.mesh("cart");
        for (protocol, connections) in BOTH.into_iter().zip(1..) {
            let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::io::Error>::new(2);
            sender.send_data(Bytes::from_static(b"a part")).await.unwrap();
            let uri = if protocol == MeshProtocol::Http2 { "http://app.example/held" } else { HELD };
            let request = Request::post(uri).header("host", "app.example").body(body).unwrap();
            let sending = match protocol {
                MeshProtocol::Http2 => world.upstreams.send(&client(), &endpoint, request, None),
                _ => world.upstreams.send_http1(&client(), &endpoint, request, None),
            };
            let answered = tokio::task::spawn_local(sending.unwrap());
            until(|| server.connections.get() == connections).await;
            sender.abort(std::io::ErrorKind::InvalidData.into());
            let error = answered.await.unwrap().map(drop).unwrap_err().error;
            assert!(matches!(error, UpstreamError::Request), "{error}");
            assert!(!error.is_of_upstream() && UpstreamError::Closed.is_of_upstream());
        }
    });
}
