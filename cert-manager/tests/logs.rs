//! What may never be in a log, whatever its level. A process of its own: the log is the whole process'.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls_pki_types::ServerName;
use tidegate_cert_manager::authenticate::signed_jwt::{SignedJwt, SignedJwtOptions};
use tidegate_cert_manager::authority::{NewRoot, Vouched};
use tidegate_cert_manager::ingress_gateway::{GatewayStatus, IngressGatewaySettings, SettingsInput};
use tidegate_cert_manager::manager::CONNECTION_AGE;
use tidegate_cert_manager::rate_limit::RateLimit;
use tidegate_cert_manager::rules::IssuingRules;
use tidegate_cert_manager::service_names::ServiceNames;
use tidegate_cert_manager::store::root_folder::RootFolder;
use tidegate_cert_manager::store::secret_folder::SecretFolder;
use tidegate_cert_manager::{
    CertManager, CertManagerConfig, CertManagerDependencies, CertManagerHandle, CheckSchedule,
    GatewayDependencies,
};
use tidegate_core::{DnsName, San, TrustDomain};
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tidegate_runtime::forward_proxy::ControlPlaneProxyOptions;
use tidegate_runtime::grpc::{Address, channel, client_config};
use tidegate_runtime::logging::LogHandle;
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tokio::sync::watch;
use tonic::Request;

/// Log lines in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn no_log_line_at_any_level_holds_a_key_or_a_token() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    std::fs::write(dir.path().join("keys.pem"), key.public_key_pem()).unwrap();
    let manager = start(dir.path()).await;
    let good = token(&key);
    let stranger = token(&KeyPair::generate().unwrap());
    assert!(ask(&manager, &good).await);
    assert!(!ask(&manager, &stranger).await);
    let mut gateway = manager.gateway_status();
    gateway.wait_for(|status| matches!(status, GatewayStatus::Ready { .. })).await.unwrap();
    manager.rotate(Vouched::Everything).await.unwrap();

    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    for line in [
        "TRACE",
        "certificate issued identity=httpbin.httpbin.cluster.local",
        "certificate issued purpose=\"ingress-gateway\"",
        "certificate refused identity=unknown peer=127.0.0.1:",
    ] {
        assert!(text.contains(line), "{line} is not in the log");
    }
    let files = ["ca/issuer.key", "ca/next.key", "secrets/a/b/tls.key"];
    let keys = files.map(|file| std::fs::read_to_string(dir.path().join(file)).unwrap());
    let key_lines =
        keys.iter().flat_map(|pem| pem.lines()).filter(|line| !line.starts_with('-') && line.len() > 20);
    let token_parts = good.split('.').chain(stranger.split('.'));
    for secret in key_lines.chain(token_parts) {
        assert!(!text.contains(secret), "a part of a key or token is in the log: {secret}");
    }
}

async fn start(dir: &Path) -> CertManagerHandle {
    let settings = IngressGatewaySettings::parse(SettingsInput {
        subject_alt_names: &["ingress.example".to_owned()],
        validity_duration: "24h",
        secret_namespace: "a",
        secret_name: "b",
    });
    let authenticator = SignedJwt::open(SignedJwtOptions {
        key_files: vec![dir.join("keys.pem")],
        audience: "tidegate-ca".to_owned(),
        issuer: None,
        trust_domain: TrustDomain::default(),
    });
    let config = CertManagerConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        admin: None,
        serving_names: vec![San::Dns(DnsName::parse("ca.example").unwrap())],
        trust_domain: TrustDomain::default(),
        new_root: NewRoot::default(),
        rules: IssuingRules::default(),
        service_names: ServiceNames::default(),
        propagation: Duration::ZERO,
        rate_limit: RateLimit::default(),
        max_connections: 10,
        connection_age: CONNECTION_AGE,
    };
    let dependencies = CertManagerDependencies {
        authenticator: Arc::new(authenticator.unwrap()),
        root_store: Arc::new(RootFolder::new(dir.join("ca"))),
        given: None,
        publishers: vec![],
        gateway: Some(GatewayDependencies::alone(
            watch::channel(settings.ok()).1,
            Arc::new(SecretFolder::new(dir.join("secrets"))),
        )),
        workload_life: watch::channel(None).1,
        checks: CheckSchedule::default(),
        metrics: Metrics::new(),
        readiness: Readiness::new(),
        log: LogHandle::detached(),
    };
    CertManager::start(config, dependencies).await.unwrap()
}

fn token(key: &KeyPair) -> String {
    let claims = serde_json::json!({
        "aud": "tidegate-ca", "exp": u32::MAX, "sub": "system:serviceaccount:httpbin:httpbin",
    });
    let key = EncodingKey::from_ec_pem(key.serialize_pem().as_bytes()).unwrap();
    jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &key).unwrap()
}

/// Whether a caller with this token gets a certificate.
async fn ask(manager: &CertManagerHandle, token: &str) -> bool {
    let bundle = manager.bundle().borrow().clone();
    let address = Address::new(ServerName::try_from("127.0.0.1").unwrap(), manager.grpc_address().port());
    let name = ServerName::try_from("ca.example").unwrap();
    let channel = channel(&address, &ControlPlaneProxyOptions::default(), name, move || {
        client_config(&bundle, None).ok()
    });
    let mut csr = CertificateParams::default();
    csr.distinguished_name = DistinguishedName::new();
    let csr = csr.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata: None });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    IstioCertificateServiceClient::new(channel).create_certificate(request).await.is_ok()
}
