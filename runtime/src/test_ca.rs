//! A CA for tests: the real API over real TLS, which can be stopped or made to answer wrongly.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use rcgen::{CertificateSigningRequestParams, KeyPair};
use rustls::ServerConfig;
use tidegate_core::Identity;
use tidegate_proto::istio_ca::istio_certificate_service_server::{
    IstioCertificateService, IstioCertificateServiceServer,
};
use tidegate_proto::istio_ca::{IstioCertificateRequest, IstioCertificateResponse};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::grpc::{
    ClientCertificates, ConnectionLimits, HANDSHAKE_TIMEOUT, Peer, server_config, server_stream,
};
use crate::test_pki::{TestAuthority, both_names, bundle, dns_name, identity, uri_name};
use crate::tls;

/// The wall clock of a test.
pub(crate) type TestClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// A CA at one address, up or down.
pub(crate) struct TestCa {
    pub(crate) address: SocketAddr,
    service: TestCaService,
    tls: watch::Sender<Arc<ServerConfig>>,
    server: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// How the CA responds.
pub(crate) struct Behaviour {
    pub(crate) issuer: Arc<TestAuthority>,
    /// Certificates sent after the leaf.
    pub(crate) rest: Vec<Arc<TestAuthority>>,
    pub(crate) identity: Identity,
    pub(crate) life: Duration,
    pub(crate) flaw: Option<Flaw>,
    /// The only accepted token; `None` accepts all.
    pub(crate) token: Option<&'static str>,
}

/// What is wrong with the CA's answers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flaw {
    Refuses,
    Empty,
    NotPem,
    OtherKey,
    OtherRoot,
    NoUri,
    NoDnsName,
    OtherIdentity,
    Expired,
    NotYetValid,
    TooManyCertificates,
}

/// A call that the CA received.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) authorization: Option<String>,
    pub(crate) csr: String,
    pub(crate) validity_duration: i64,
    pub(crate) peer: Option<Peer>,
}

#[derive(Clone)]
struct TestCaService {
    behaviour: Arc<Mutex<Behaviour>>,
    calls: Arc<watch::Sender<Vec<Call>>>,
    clock: TestClock,
}

impl TestCa {
    /// A CA that issues for `identity` under `root`, which also issued its own certificate.
    pub(crate) async fn start(
        root: Arc<TestAuthority>,
        identity: Identity,
        life: Duration,
        clock: TestClock,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = watch::Sender::new(server_tls(&root));
        let behaviour =
            Behaviour { rest: vec![root.clone()], issuer: root, identity, life, flaw: None, token: None };
        let service = TestCaService {
            behaviour: Arc::new(Mutex::new(behaviour)),
            calls: Arc::new(watch::Sender::default()),
            clock,
        };
        let mut ca = Self { address, service, tls, server: None };
        ca.serve(listener);
        ca
    }

    pub(crate) fn behaviour(&self) -> MutexGuard<'_, Behaviour> {
        self.service.behaviour.lock().unwrap()
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.service.calls.borrow().clone()
    }

    /// Waits until the CA has received `count` calls since it was created.
    pub(crate) async fn asked(&self, count: usize) {
        self.service.calls.subscribe().wait_for(|calls| calls.len() >= count).await.unwrap();
    }

    /// Presents a server certificate under `root` from now on.
    pub(crate) fn serve_under(&self, root: &TestAuthority) {
        self.tls.send_replace(server_tls(root));
    }

    /// Stops the server and its connections; returns when its address no longer answers.
    pub(crate) async fn go_down(&mut self) {
        let (shutdown, server) = self.server.take().unwrap();
        shutdown.send(()).unwrap();
        server.await.unwrap();
        while tokio::net::TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// Starts again at the same address.
    pub(crate) async fn come_back(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let incoming =
            server_stream(listener, self.tls.subscribe(), ConnectionLimits::of(100), HANDSHAKE_TIMEOUT);
        let service = IstioCertificateServiceServer::new(self.service.clone());
        let (shutdown, told) = oneshot::channel();
        let server = tokio::spawn(async move {
            let server = Server::builder().add_service(service);
            // Dropping the test drops the sender, which stops the server as well.
            server
                .serve_with_incoming_shutdown(incoming, async { told.await.unwrap_or_default() })
                .await
                .unwrap();
        });
        self.server = Some((shutdown, server));
    }
}

#[tonic::async_trait]
impl IstioCertificateService for TestCaService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let authorization =
            request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let peer = request.extensions().get::<Peer>().cloned();
        let IstioCertificateRequest { csr, validity_duration, .. } = request.into_inner();
        let call = Call { authorization: authorization.clone(), csr: csr.clone(), validity_duration, peer };
        let answer = self.behaviour.lock().unwrap().answer(authorization.as_deref(), &csr, (self.clock)());
        self.calls.send_modify(|calls| calls.push(call));
        answer.map(|cert_chain| Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl Behaviour {
    fn answer(&self, authorization: Option<&str>, csr: &str, now: SystemTime) -> Result<Vec<String>, Status> {
        if self.token.is_some_and(|token| authorization != Some(&format!("Bearer {token}"))) {
            return Err(Status::unauthenticated("token is not valid"));
        }
        let key = CertificateSigningRequestParams::from_pem(csr).unwrap().public_key;
        let names = both_names(&self.identity);
        let other_root = TestAuthority::root("other");
        let leaf = match self.flaw {
            Some(Flaw::Refuses) => return Err(Status::permission_denied("no")),
            Some(Flaw::Empty) => return Ok(vec![]),
            Some(Flaw::NotPem) => return Ok(vec!["-----BEGIN CERTIFICATE-----\nx".to_owned()]),
            Some(Flaw::OtherKey) => self.issuer.issue(&KeyPair::generate().unwrap(), names, now, self.life),
            Some(Flaw::OtherRoot) => other_root.issue(&key, names, now, self.life),
            Some(Flaw::NoUri) => self.issuer.issue(&key, vec![dns_name(&self.identity)], now, self.life),
            Some(Flaw::NoDnsName) => self.issuer.issue(&key, vec![uri_name(&self.identity)], now, self.life),
            Some(Flaw::OtherIdentity) => {
                self.issuer.issue(&key, both_names(&identity("another")), now, self.life)
            }
            Some(Flaw::Expired) => {
                self.issuer.issue(&key, names, now - Duration::from_secs(100), Duration::from_secs(50))
            }
            Some(Flaw::NotYetValid) => {
                self.issuer.issue(&key, names, now + Duration::from_secs(100), self.life)
            }
            Some(Flaw::TooManyCertificates) | None => self.issuer.issue(&key, names, now, self.life),
        };
        let mut chain = vec![leaf.pem()];
        chain.extend(self.rest.iter().map(|authority| authority.certificate.pem()));
        if matches!(self.flaw, Some(Flaw::TooManyCertificates)) {
            chain.extend((0..20).map(|_| self.issuer.certificate.pem()));
        }
        Ok(chain)
    }
}

fn server_tls(root: &TestAuthority) -> Arc<ServerConfig> {
    tls::install_provider();
    let credentials = root.credentials(&identity("ca"));
    server_config(&credentials, &bundle(&[root]), ClientCertificates::Optional).unwrap()
}
