//! For tests: a webhook on loopback with its own CA, and a client that behaves like the API server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "only tests use it, and there a panic is the answer")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::ClientConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tidegate_core::PeerCertificate;
use tidegate_runtime::credentials::Credentials;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tidegate_runtime::trust_bundle::TrustBundle;
use tidegate_runtime::{drain, tls};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{AdmissionReviewer, WebhookLimits, WebhookServer};

/// The name in the webhook's certificate.
pub const SERVER_NAME: &str = "tidegate-webhook.tidegate-system.svc";

/// A CA and the certificates that it issues.
#[derive(Debug)]
pub struct WebhookCa {
    issuer: Issuer<'static, KeyPair>,
    /// Its root.
    pub bundle: Arc<TrustBundle>,
}

/// A webhook and its client.
#[derive(Debug)]
pub struct AdmissionClient {
    /// Where the webhook listens.
    pub address: SocketAddr,
    /// Its credentials; send new ones to renew them.
    pub credentials: watch::Sender<Option<Arc<Credentials>>>,
    /// The CA that issued them.
    pub ca: WebhookCa,
    /// Its metrics.
    pub metrics: Metrics,
    /// Whether it is ready.
    pub readiness: Readiness,
    /// Starts its shutdown.
    pub trigger: drain::Trigger,
    /// Runs until the shutdown is complete.
    pub task: JoinHandle<()>,
    path: &'static str,
}

impl WebhookCa {
    /// A new CA.
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let bundle = Arc::new(TrustBundle::from_certificates([certificate.der().clone()]).unwrap());
        Self { issuer: Issuer::new(params, key), bundle }
    }

    /// Credentials for [`SERVER_NAME`].
    pub fn issue(&self, generation: u64) -> Arc<Credentials> {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(SERVER_NAME.try_into().unwrap())];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Arc::new(Credentials {
            chain: vec![certificate.der().clone()],
            key: Arc::new(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))),
            leaf: PeerCertificate::from_der(certificate.der()).unwrap(),
            generation,
        })
    }
}

impl Default for WebhookCa {
    fn default() -> Self {
        Self::new()
    }
}

impl AdmissionClient {
    /// A webhook with a certificate.
    pub async fn start(path: &'static str, reviewer: Arc<dyn AdmissionReviewer>) -> Self {
        let limits = WebhookLimits { linger: std::time::Duration::ZERO, ..WebhookLimits::default() };
        let client = Self::with_limits(path, reviewer, limits).await;
        client.credentials.send_replace(Some(client.ca.issue(1)));
        client
    }

    /// A webhook without a certificate yet.
    pub async fn with_limits(
        path: &'static str,
        reviewer: Arc<dyn AdmissionReviewer>,
        limits: WebhookLimits,
    ) -> Self {
        tls::install_provider();
        let (metrics, readiness) = (Metrics::new(), Readiness::new());
        let server = WebhookServer::bind("127.0.0.1:0".parse().unwrap(), path, reviewer, &metrics, limits);
        let server = server.await.unwrap();
        let address = server.local_addr();
        let credentials = watch::Sender::new(None);
        let (trigger, watch) = drain::channel();
        let task = tokio::spawn(server.serve(credentials.subscribe(), readiness.clone(), watch));
        Self { address, credentials, ca: WebhookCa::new(), metrics, readiness, trigger, task, path }
    }

    /// A TLS connection that trusts the CA; HTTP/1.1 on it.
    pub async fn connect(&self) -> SendRequest<Full<Bytes>> {
        self.try_connect().await.unwrap()
    }

    /// Like [`AdmissionClient::connect`], but may be refused.
    pub async fn try_connect(&self) -> std::io::Result<SendRequest<Full<Bytes>>> {
        self.connect_from(Ipv4Addr::LOCALHOST.into()).await
    }

    /// Like [`AdmissionClient::try_connect`], from a given source address.
    pub async fn connect_from(&self, source: IpAddr) -> std::io::Result<SendRequest<Full<Bytes>>> {
        let stream = self.tls_from(source).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Ok(sender)
    }

    /// A TLS connection that trusts the CA, without a request yet.
    pub async fn tls_from(&self, source: IpAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let config =
            ClientConfig::builder().with_root_certificates(self.ca.bundle.root_store()).with_no_client_auth();
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source, 0))?;
        let stream = socket.connect(self.address).await?;
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    /// Posts an AdmissionReview and returns the `response` in the answer.
    pub async fn ask(&self, review: &Value) -> Value {
        let request = self.request("application/json", review.to_string());
        let (status, body) = whole(self.connect().await.send_request(request).await.unwrap()).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        let mut answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((&answer["apiVersion"], &answer["kind"]), (&review["apiVersion"], &review["kind"]));
        assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
        answer["response"].take()
    }

    /// A POST to the webhook's path.
    pub fn request(&self, content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
        Request::post(format!("{}?timeout=10s", self.path))
            .header(header::HOST, SERVER_NAME)
            .header(header::CONTENT_TYPE, content_type)
            .body(Full::new(body.into()))
            .unwrap()
    }
}

/// A response's status and body.
pub async fn whole(response: Response<hyper::body::Incoming>) -> (StatusCode, String) {
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// An AdmissionReview as the API server writes it. `resource` is a plural, with `/<subresource>` if there is one.
pub fn review(resource: &str, operation: &str, namespace: &str, object: &Value) -> Value {
    let api_version = object["apiVersion"].as_str().unwrap_or("v1");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = json!({"group": group, "version": version, "kind": object["kind"]});
    let (plural, sub_resource) = resource.split_once('/').unwrap_or((resource, ""));
    let resource = json!({"group": group, "version": version, "resource": plural});
    let old = if operation == "CREATE" { Value::Null } else { object.clone() };
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": kind,
            "resource": resource,
            "subResource": sub_resource,
            "requestKind": kind,
            "requestResource": resource,
            "name": object["metadata"]["name"].as_str().unwrap_or_default(),
            "namespace": namespace,
            "operation": operation,
            "userInfo": {"username": "admin", "groups": ["system:authenticated"], "extra": {"a": ["b"]}},
            "object": object,
            "oldObject": old,
            "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "CreateOptions"},
        },
    })
}
