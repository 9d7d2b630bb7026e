//! Flags and environment of the `tidegate-cert-manager` program, and how they become the settings of
//! [`crate::CertManager`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser};
use kube::Client;
use tidegate_core::contract::names::{self, token_audience};
use tidegate_core::contract::{environment, flags, ports};
use tidegate_core::{DnsName, San};
use tidegate_kubernetes::lease::LeaseTiming;
use tidegate_kubernetes::options::ControlPlaneOptions;
use tidegate_runtime::logging::{LogHandle, LogOptions};
use tidegate_runtime::metrics::Metrics;
use tidegate_runtime::readiness::Readiness;
use tokio::sync::watch;

use crate::authenticate::signed_jwt::{SignedJwt, SignedJwtOptions};
use crate::authority::{GivenFiles, NewRoot};
use crate::check_schedule::CheckSchedule;
use crate::ingress_gateway::{GatewayDependencies, IngressGatewaySettings, SettingsInput};
use crate::kubernetes::{KubernetesParts, KubernetesTasks, ReplicaConfig};
use crate::manager::{CONNECTION_AGE, CertManagerConfig, CertManagerDependencies};
use crate::rate_limit::RateLimit;
use crate::rules::IssuingRules;
use crate::service_names::{ServiceNameGrant, ServiceNames};
use crate::store::BundlePublisher;
use crate::store::bundle_file::BundleFile;
use crate::store::root_folder::RootFolder;
use crate::store::secret_folder::{SecretFolder, is_object_name};

mod kubernetes;
#[cfg(test)]
mod tests;

pub(crate) use self::kubernetes::KubernetesOptions;

/// The mesh's certificate authority: turns a certificate signing request and a service account token into a
/// short-lived certificate, over gRPC (istio.v1.auth.IstioCertificateService).
#[derive(Parser, Debug, Clone)]
#[command(name = names::CERT_MANAGER, version)]
pub struct CertManagerOptions {
    /// Address of the gRPC service (TLS)
    #[arg(
        long = flags::LISTEN,
        env = "TIDEGATE_CA_LISTEN",
        value_name = "ADDRESS",
        default_value_t = (Ipv4Addr::UNSPECIFIED, ports::CA).into()
    )]
    pub listen: SocketAddr,

    /// Address of the admin server: /live, /ready, /metrics, /log, /rotation. Loopback only
    #[arg(long = flags::ADMIN_ADDRESS, env = environment::ADMIN_ADDRESS, value_name = "ADDRESS", default_value = "127.0.0.1:15020")]
    pub admin_address: SocketAddr,

    /// Folder of the root and its key; created on the first start
    #[arg(long, env = "TIDEGATE_CA_STORE_DIR", value_name = "DIR", default_value = "/var/lib/tidegate/ca")]
    pub(crate) store_dir: PathBuf,

    /// Create a new root although a trust bundle shows that there was one, which is lost. Everything that trusts only the old
    /// root has to be restarted. No effect if a root is stored
    #[arg(long, env = environment::NEW_ROOT)]
    pub new_root: bool,

    /// File to publish the trust bundle to (PEM of every trusted root)
    #[arg(long, env = "TIDEGATE_CA_BUNDLE_FILE", value_name = "FILE")]
    pub bundle_file: Option<PathBuf>,

    /// A name or address by which clients connect to this service; repeat for more
    /// [default: tidegate-cert-manager.<namespace>.svc,localhost,127.0.0.1,::1]
    #[arg(long = flags::SERVING_NAME, env = "TIDEGATE_CA_SERVING_NAMES", value_name = "NAME", value_delimiter = ',',
          value_parser = parse_serving_name)]
    pub serving_names: Vec<San>,

    /// Names of Services under which a workload serves TLS, besides its own names; repeat for more
    #[arg(
        long = flags::SERVICE_NAMES,
        env = "TIDEGATE_CA_SERVICE_NAMES",
        value_delimiter = ',',
        value_name = "NAMESPACE/ACCOUNT=NAME[+NAME]"
    )]
    pub service_names: Vec<ServiceNameGrant>,

    /// Options that all daemons of the control plane share.
    #[command(flatten)]
    pub common: ControlPlaneOptions,

    /// Logs.
    #[command(flatten)]
    pub log: LogOptions,

    /// The API server in place of folders.
    #[command(flatten)]
    pub kubernetes: KubernetesOptions,

    /// Your own certificate authority.
    #[command(flatten)]
    pub given: GivenOptions,

    /// Which tokens are accepted.
    #[command(flatten)]
    pub tokens: TokenOptions,

    /// How long certificates live.
    #[command(flatten)]
    pub lives: LifeOptions,

    /// Limits.
    #[command(flatten)]
    pub limits: CaLimitOptions,

    /// The ingress controller's certificate.
    #[command(flatten)]
    pub gateway: GatewayOptions,
}

/// The user's own certificate authority, instead of a generated one.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Your own certificate authority")]
pub struct GivenOptions {
    /// PEM file: your issuing certificate (a root, or an intermediate followed by its chain). Without it, a root is generated
    /// on the first start. Replacing the file starts a rotation
    #[arg(long, env = "TIDEGATE_CA_CERTIFICATE", value_name = "FILE", requires = "ca_key")]
    pub ca_certificate: Option<PathBuf>,

    /// PEM file: its private key (ECDSA P-256, P-384 or RSA)
    #[arg(long, env = "TIDEGATE_CA_KEY", value_name = "FILE", requires = "ca_certificate")]
    pub ca_key: Option<PathBuf>,

    /// PEM file: its root, if --ca-certificate does not end with it
    #[arg(long, env = "TIDEGATE_CA_ROOT", value_name = "FILE", requires = "ca_certificate")]
    pub(crate) ca_root: Option<PathBuf>,
}

/// Which service account tokens are accepted.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Tokens")]
pub struct TokenOptions {
    /// File with the public keys that verify tokens, PEM or JWKS; repeat for more. Reread when it changes
    #[arg(
        long = "jwt-keys-file",
        env = "TIDEGATE_JWT_KEYS_FILES",
        value_name = "FILE",
        value_delimiter = ',',
        required_unless_present = "kubernetes"
    )]
    pub(crate) jwt_keys_files: Vec<PathBuf>,

    /// Required audience of tokens [default: tidegate-ca, with -<mesh> unless the mesh's name is osm]
    #[arg(long, env = "TIDEGATE_JWT_AUDIENCE", value_name = "TEXT")]
    pub(crate) jwt_audience: Option<String>,

    /// Required issuer of tokens [default: any]
    #[arg(long, env = "TIDEGATE_JWT_ISSUER", value_name = "TEXT")]
    pub(crate) jwt_issuer: Option<String>,
}

/// Lifetimes of certificates, and how long bundles take to arrive.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Lives")]
pub struct LifeOptions {
    /// Lifetime of certificates if the request does not say
    #[arg(long, env = "TIDEGATE_CA_DEFAULT_LIFETIME", value_name = "DURATION", default_value = "24h",
          value_parser = humantime::parse_duration)]
    pub(crate) default_lifetime: Duration,

    /// Maximum lifetime of certificates. The last step of a root rotation waits as long
    #[arg(long, env = "TIDEGATE_CA_MAX_LIFETIME", value_name = "DURATION", default_value = "24h",
          value_parser = humantime::parse_duration)]
    pub(crate) max_lifetime: Duration,

    /// How long workloads may take to read a new trust bundle; the steps of a root rotation wait for it
    #[arg(long, env = "TIDEGATE_CA_BUNDLE_PROPAGATION", value_name = "DURATION", default_value = "2m",
          value_parser = humantime::parse_duration)]
    pub(crate) bundle_propagation: Duration,
}

/// Limits.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Limits")]
pub struct CaLimitOptions {
    /// Certificates per second for one identity, on average
    #[arg(long, env = "TIDEGATE_CA_RATE", value_name = "NUMBER", default_value_t = 10.0)]
    pub(crate) rate_per_second: f64,

    /// Certificates for one identity at once
    #[arg(long, env = "TIDEGATE_CA_BURST", value_name = "NUMBER", default_value_t = 100)]
    pub(crate) rate_burst: u32,

    /// Maximum concurrent connections, which take 26 KiB each; one address may have a quarter of them
    #[arg(long, env = "TIDEGATE_CA_MAX_CONNECTIONS", value_name = "NUMBER", default_value_t = 4_000)]
    pub max_connections: usize,
}

/// The client certificate of an ingress controller outside the mesh.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Ingress gateway certificate")]
pub struct GatewayOptions {
    /// A name of the certificate, DNS name or spiffe:// URI; repeat for more
    #[arg(
        long = "gateway-san",
        env = "TIDEGATE_GATEWAY_SANS",
        value_name = "NAME",
        value_delimiter = ',',
        requires = "gateway_secret"
    )]
    pub(crate) gateway_sans: Vec<String>,

    /// Its lifetime, such as 24h; renewed at half of it
    #[arg(long, env = "TIDEGATE_GATEWAY_VALIDITY", value_name = "DURATION", default_value = "24h")]
    pub(crate) gateway_validity: String,

    /// Namespace and name of its Secret
    #[arg(
        long,
        env = "TIDEGATE_GATEWAY_SECRET",
        value_name = "NAMESPACE/NAME",
        requires = "gateway_dir",
        requires = "gateway_sans"
    )]
    pub gateway_secret: Option<String>,

    /// Folder for Secrets, as NAMESPACE/NAME/{ca.crt,tls.crt,tls.key}. Without the other flags, a Secret that was written
    /// there before is removed
    #[arg(long, env = "TIDEGATE_GATEWAY_DIR", value_name = "DIR")]
    pub(crate) gateway_dir: Option<PathBuf>,
}

/// Everything that is wrong with the options, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct OptionProblems(pub Vec<String>);

impl CertManagerOptions {
    /// The required audience of tokens.
    fn audience(&self) -> String {
        self.tokens.jwt_audience.clone().unwrap_or_else(|| token_audience(&self.common.mesh_name))
    }

    /// Checks the options and opens what they name.
    pub fn build(
        &self,
        metrics: Metrics,
        readiness: Readiness,
        log: LogHandle,
    ) -> Result<(CertManagerConfig, CertManagerDependencies), OptionProblems> {
        let mut problems = Vec::new();
        self.check_numbers(&mut problems);
        let gateway = self.gateway.settings(&mut problems);
        let authenticator = SignedJwt::open(SignedJwtOptions {
            key_files: self.tokens.jwt_keys_files.clone(),
            audience: self.audience(),
            issuer: self.tokens.jwt_issuer.clone(),
            trust_domain: self.common.trust.trust_domain.clone(),
        })
        .map_err(|error| problems.push(format!("--jwt-keys-file: {error}")));
        let (Ok(authenticator), true) = (authenticator, problems.is_empty()) else {
            return Err(OptionProblems(problems));
        };
        let publishers =
            self.bundle_file.iter().map(|path| Arc::new(BundleFile::new(path)) as Arc<dyn BundlePublisher>);
        let dependencies = CertManagerDependencies {
            authenticator: Arc::new(authenticator),
            root_store: Arc::new(RootFolder::new(&self.store_dir)),
            given: self.given.files(),
            publishers: publishers.collect(),
            gateway: self.gateway.gateway_dir.as_ref().map(|dir| {
                // Without its sender the value stays, because flags do not change.
                GatewayDependencies::alone(watch::channel(gateway).1, Arc::new(SecretFolder::new(dir)))
            }),
            // Without its sender the value stays, because flags do not change.
            workload_life: watch::channel(None).1,
            checks: CheckSchedule::default(),
            metrics,
            readiness,
            log,
        };
        Ok((self.config(), dependencies))
    }

    /// Checks the options and builds what they describe on Kubernetes. [`KubernetesTasks`] has to run beside it.
    pub fn build_on_kubernetes(
        &self,
        client: &Client,
        metrics: Metrics,
        readiness: Readiness,
        log: LogHandle,
    ) -> Result<(CertManagerConfig, CertManagerDependencies, KubernetesTasks), OptionProblems> {
        let mut problems = Vec::new();
        self.check_numbers(&mut problems);
        let options = &self.common;
        for (flag, name) in [("namespace", &options.namespace), (flags::MESH_NAME, &options.mesh_name)] {
            if !is_object_name(name) || name.contains('.') || name.len() > 63 {
                problems.push(format!("--{flag}: {name:?} is not a name that Kubernetes allows"));
            }
        }
        let pod_name = options.pod_name.clone().unwrap_or_default();
        if pod_name.is_empty() {
            problems.push("--pod-name: must not be empty".to_owned());
        }
        if !problems.is_empty() {
            return Err(OptionProblems(problems));
        }
        let parts = KubernetesParts::start(
            client,
            &ReplicaConfig {
                namespace: options.namespace.clone(),
                mesh_name: options.mesh_name.clone(),
                pod_name,
                audience: self.audience(),
                trust_domain: self.common.trust.trust_domain.clone(),
                lease: LeaseTiming::default(),
            },
            &metrics,
        );
        let dependencies = CertManagerDependencies {
            authenticator: Arc::new(parts.authenticator),
            root_store: Arc::new(parts.root_store),
            given: self.given.files(),
            publishers: vec![Arc::new(parts.publisher)],
            gateway: Some(parts.gateway),
            workload_life: parts.workload_life,
            checks: parts.checks,
            metrics,
            readiness,
            log,
        };
        Ok((self.config(), dependencies, parts.background))
    }

    fn serving_names(&self) -> Vec<San> {
        if !self.serving_names.is_empty() {
            return self.serving_names.clone();
        }
        let service = DnsName::parse(&names::service_host(names::CERT_MANAGER, &self.common.namespace));
        let names = service.into_iter().chain(DnsName::parse("localhost")).map(San::Dns);
        let addresses = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
        names.chain(addresses.map(San::Ip)).collect()
    }

    /// The settings that the flags describe, once they are checked.
    fn config(&self) -> CertManagerConfig {
        CertManagerConfig {
            listen: self.listen,
            admin: Some(self.admin_address),
            serving_names: self.serving_names(),
            trust_domain: self.common.trust.trust_domain.clone(),
            new_root: if self.new_root { NewRoot::Wanted } else { NewRoot::WhereNoneWas },
            rules: IssuingRules {
                default_life: self.lives.default_lifetime,
                max_life: self.lives.max_lifetime,
                ..IssuingRules::default()
            },
            service_names: ServiceNames::new(self.service_names.iter().cloned()),
            propagation: self.lives.bundle_propagation,
            rate_limit: RateLimit {
                per_second: self.limits.rate_per_second,
                burst: self.limits.rate_burst,
                ..RateLimit::default()
            },
            max_connections: self.limits.max_connections,
            connection_age: CONNECTION_AGE,
        }
    }

    /// Adds a problem for each number or duration that is out of its bounds.
    fn check_numbers(&self, problems: &mut Vec<String>) {
        let second = Duration::from_secs(1);
        if self.lives.default_lifetime < second {
            problems.push("--default-lifetime: must be at least 1s".to_owned());
        }
        if self.lives.max_lifetime < self.lives.default_lifetime {
            problems.push("--max-lifetime: must not be less than --default-lifetime".to_owned());
        }
        if !(self.limits.rate_per_second.is_finite() && self.limits.rate_per_second > 0.0) {
            problems.push("--rate-per-second: must be more than 0".to_owned());
        }
        if self.limits.rate_burst == 0 {
            problems.push("--rate-burst: must be at least 1".to_owned());
        }
        if self.limits.max_connections == 0 {
            problems.push("--max-connections: must be at least 1".to_owned());
        }
    }
}

impl GivenOptions {
    /// The files of a given authority, if there is one.
    fn files(&self) -> Option<GivenFiles> {
        let (certificate, key) = (self.ca_certificate.clone()?, self.ca_key.clone()?);
        Some(GivenFiles { certificate, key, root: self.ca_root.clone() })
    }
}

impl GatewayOptions {
    fn settings(&self, problems: &mut Vec<String>) -> Option<IngressGatewaySettings> {
        let secret = self.gateway_secret.as_deref()?;
        let Some((secret_namespace, secret_name)) = secret.split_once('/') else {
            problems.push(format!("--gateway-secret: {secret:?} is not NAMESPACE/NAME"));
            return None;
        };
        let input = SettingsInput {
            subject_alt_names: &self.gateway_sans,
            validity_duration: &self.gateway_validity,
            secret_namespace,
            secret_name,
        };
        let flag = |path: &str| match path {
            path if path.ends_with("validityDuration") => "--gateway-validity",
            path if path.contains(".secret.") => "--gateway-secret",
            _ => "--gateway-san",
        };
        IngressGatewaySettings::parse(input)
            .map_err(|found| {
                problems.extend(found.iter().map(|one| format!("{}: {}", flag(&one.path), one.problem)));
            })
            .ok()
    }
}

/// A DNS name or an IP address.
fn parse_serving_name(text: &str) -> Result<San, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(San::Ip(address));
    }
    DnsName::parse(text).map(San::Dns).map_err(|error| error.to_string())
}
