//! Clients of the control plane's gRPC services, with any credentials.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use serde_json::{Value, json};
use tidegate_proto::ResourceName;
use tidegate_proto::discovery::discovery_client::DiscoveryClient;
use tidegate_proto::discovery::discovery_request::Message;
use tidegate_proto::discovery::{Ack, DiscoveryRequest, Hello, Node, Subscribe};
use tidegate_proto::istio_ca::IstioCertificateRequest;
use tidegate_proto::istio_ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};
use tonic::{Request, Status};

use crate::client::resolve;

/// How to reach a service.
#[derive(Debug, clap::Args)]
struct GrpcServer {
    /// host:port.
    target: String,
    /// PEM of the trusted roots.
    #[arg(long)]
    roots: String,
    /// The required name in the server's certificate.
    #[arg(long)]
    expect: String,
}

/// Requests a certificate; prints chain and key, or the status code of the refusal and its message.
#[derive(Debug, clap::Args)]
pub(crate) struct Certify {
    #[command(flatten)]
    server: GrpcServer,
    /// The token to send; none without it.
    #[arg(long)]
    token: Option<String>,
    /// DNS names to request.
    #[arg(long)]
    dns: Vec<String>,
    /// URIs to request.
    #[arg(long)]
    uri: Vec<String>,
}

/// Follows a workload's policy; prints resources until no more arrive, or the status code of the refusal and its
/// message.
#[derive(Debug, clap::Args)]
pub(crate) struct Discover {
    #[command(flatten)]
    server: GrpcServer,
    /// PEM of a chain and its PKCS#8 key.
    #[arg(long)]
    credentials: Option<String>,
    /// Whose policy, as namespace/pod.
    #[arg(long)]
    workload: String,
    /// Addresses to subscribe to, as ip:port.
    #[arg(long)]
    address: Vec<SocketAddr>,
    /// Seconds without a response after which to stop.
    #[arg(long, default_value_t = 2)]
    patience: u64,
}

impl GrpcServer {
    /// A channel to the server, with a client certificate if there are credentials. The error is what the command
    /// prints.
    async fn connect(&self, credentials: Option<&str>) -> Result<Channel, Value> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.roots))
            .domain_name(self.expect.clone());
        if let Some(pem) = credentials {
            tls = tls.identity(Identity::from_pem(pem, pem));
        }
        let address = resolve(&self.target).map_err(|error| json!({"error": error}))?;
        let endpoint = Channel::from_shared(format!("https://{address}")).unwrap().tls_config(tls).unwrap();
        endpoint.connect().await.map_err(|error| json!({"error": format!("{error:?}")}))
    }
}

impl Certify {
    pub(crate) fn run(&self) -> ExitCode {
        finish(self.ask())
    }

    async fn ask(&self) -> Result<Value, Value> {
        let key = KeyPair::generate().unwrap();
        let mut csr = CertificateParams::default();
        csr.distinguished_name = DistinguishedName::new();
        let dns = self.dns.iter().map(|name| SanType::DnsName(name.clone().try_into().unwrap()));
        csr.subject_alt_names.extend(dns);
        let uris = self.uri.iter().map(|name| SanType::URI(name.clone().try_into().unwrap()));
        csr.subject_alt_names.extend(uris);
        let csr = csr.serialize_request(&key).unwrap().pem().unwrap();
        let mut request =
            Request::new(IstioCertificateRequest { csr, validity_duration: 3600, ..Default::default() });
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut authority = IstioCertificateServiceClient::new(self.server.connect(None).await?);
        let answer = authority.create_certificate(request).await.map_err(|status| refusal(&status))?;
        Ok(json!({"chain": answer.into_inner().cert_chain.concat(), "key": key.serialize_pem()}))
    }
}

impl Discover {
    pub(crate) fn run(&self) -> ExitCode {
        finish(self.follow())
    }

    async fn follow(&self) -> Result<Value, Value> {
        let channel = self.server.connect(self.credentials.as_deref()).await?;
        let (requests, receiver) = tokio::sync::mpsc::channel(8);
        let say = async |message| requests.send(DiscoveryRequest { message: Some(message) }).await.unwrap();
        let node = Node { workload: self.workload.clone(), ..Node::default() };
        say(Message::Hello(Hello { node: Some(node), ..Hello::default() })).await;
        let names: Vec<_> = self
            .address
            .iter()
            .map(|address| ResourceName::Destination((*address).into()).to_string())
            .collect();
        if !names.is_empty() {
            say(Message::Subscribe(Subscribe { names })).await;
        }
        let stream = DiscoveryClient::new(channel).stream(ReceiverStream::new(receiver)).await;
        let mut responses = stream.map_err(|status| refusal(&status))?.into_inner();
        let mut resources = Vec::new();
        let patience = Duration::from_secs(self.patience);
        while let Ok(next) = tokio::time::timeout(patience, responses.message()).await {
            let Some(response) = next.map_err(|status| refusal(&status))? else { break };
            let content = |resource: &dyn std::fmt::Debug| format!("{resource:?}");
            resources.extend(
                response
                    .resources
                    .iter()
                    .map(|resource| json!({"name": resource.name, "content": content(&resource.body)})),
            );
            say(Message::Ack(Ack { nonce: response.nonce, ..Ack::default() })).await;
        }
        Ok(json!({"resources": resources}))
    }
}

fn refusal(status: &Status) -> Value {
    json!({"code": format!("{:?}", status.code()), "error": status.message()})
}

fn finish(story: impl Future<Output = Result<Value, Value>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (value, code) = match runtime.block_on(story) {
        Ok(value) => (value, ExitCode::SUCCESS),
        Err(value) => (value, ExitCode::FAILURE),
    };
    println!("{value}");
    code
}
