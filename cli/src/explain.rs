//! `tidegate explain`: whether a connection would be admitted, or where a request of a workload would go, and why, according to
//! the cluster, a process, or a folder; or what happened to a request, according to the sidecar that served it.
//!
//! With a folder the answer is computed here, by the same function that the controller calls for its page `/explain`.
//! Both give the same JSON, which is also what the table is made of.

mod recorded;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;
use tidegate_controller::Index;
use tidegate_controller::explain::{
    ExternalQuery, HttpRequest, OutboundQuery, OutboundView, Query, Speaks, explain, explain_external,
    explain_outbound,
};
use tidegate_controller::object::ObjectName;
use tidegate_controller::source::folder::FolderSource;
use tidegate_core::DnsName;
use tidegate_runtime::options::TrustDomainOptions;

use crate::admin_target::AdminTarget;
use crate::output::{OutputFormat, print_as, printable};

const EXTERNAL_NEEDS_FROM: &str =
    "--from NAMESPACE/POD is missing: who connects to the server outside the mesh?";

/// Flags of `tidegate explain`.
#[derive(Args, Debug)]
pub(crate) struct ExplainOptions {
    /// The Service that the client connects to, as NAMESPACE/NAME; with --from also a server outside the mesh, as HOST:PORT or
    /// IP:PORT; with --request-id the pod whose sidecar served the request.
    #[arg(value_name = "BACKEND", value_parser = parse_target)]
    backend: ExplainedTarget,
    /// The address that the app dials for HOST:PORT [default: one that a ServiceEntry lists for the host]
    #[arg(long, value_name = "ADDRESS", requires = "from")]
    address: Option<IpAddr>,
    /// The pod's port (targetPort), or with --from the Service's; optional if the Service has only one.
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
    /// The client's address.
    #[arg(long, value_name = "ADDRESS", required_unless_present_any = ["from", "request_id"])]
    source: Option<IpAddr>,
    /// Where a request of this pod's app to the Service would go and what is decided there, as NAMESPACE/NAME; where no
    /// pod has the name, of a pod of the service account with it.
    #[arg(long, value_name = "WORKLOAD", value_parser = parse_backend, conflicts_with_all = ["source", "sni", "principal", "speaks"])]
    from: Option<ObjectName>,
    /// What happened to the recent request with this `x-request-id` at the sidecar of pod BACKEND.
    #[arg(long, value_name = "ID", conflicts_with_all = ["source", "from", "port", "sni", "principal", "speaks", "header", "folder"])]
    request_id: Option<String>,
    /// The server name in the client's ClientHello.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// A name in the client's certificate, a DNS name or a URI; may be repeated. None: no certificate.
    #[arg(long, value_name = "NAME")]
    principal: Vec<String>,
    /// The client's protocol [default: TLS if it has a server name or a certificate, or if only TLS is admitted]
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    speaks: Option<ClientProtocol>,
    /// The request's method: of a mesh peer, where a TrafficTarget distinguishes requests, or of the app.
    #[arg(long, value_name = "METHOD", default_value = "GET")]
    method: String,
    /// Path and query of that request.
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: String,
    /// A header field of that request, as "NAME: VALUE"; may be repeated. `host` is its authority.
    #[arg(long, value_name = "HEADER", value_parser = parse_header)]
    header: Vec<(String, String)>,
    /// Evaluate this folder of manifests instead of querying a controller.
    #[arg(short = 'f', long = "folder", value_name = "DIR")]
    folder: Option<PathBuf>,
    #[command(flatten)]
    trust: TrustDomainOptions,
    #[command(flatten)]
    target: AdminTarget,
    /// How to print it.
    #[arg(short, long, value_enum, default_value = "table")]
    output: OutputFormat,
}

/// What a connection is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ExplainedTarget {
    /// A Service.
    Service(ObjectName),
    /// A server outside the mesh: its host or address, and its port.
    External(String, u16),
}

/// What the client speaks first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ClientProtocol {
    /// TLS, as an ingress controller does.
    Tls,
    /// No TLS.
    Plaintext,
    /// TLS between sidecars, with HTTP inside unless the port declares other bytes.
    Mesh,
    /// TLS between sidecars, with bytes inside that are not parsed.
    MeshTcp,
}

/// Exits with 0 if the connection would be admitted, or the request forwarded; with 1 if not, or if no such request is recorded.
pub(crate) async fn run(options: ExplainOptions) -> anyhow::Result<ExitCode> {
    if let Some(id) = &options.request_id {
        let ExplainedTarget::Service(pod) = &options.backend else {
            anyhow::bail!("--request-id needs the pod whose sidecar served the request, as NAMESPACE/NAME");
        };
        let path = format!("/requests?id={}", escape(id));
        let requests: Vec<Value> = options.target.ask_sidecar(pod, &path).await?;
        return recorded::print_requests(id, &requests, options.output);
    }
    if let (ExplainedTarget::External(..), None) = (&options.backend, &options.from) {
        anyhow::bail!(EXTERNAL_NEEDS_FROM);
    }
    let answer: Value = match &options.folder {
        Some(folder) => {
            anyhow::ensure!(folder.is_dir(), "--folder: {folder:?} is not a folder");
            options.answer(&Index::of(FolderSource::new(folder).load().changes))?
        }
        None => options.target.ask(&options.url()).await?,
    };
    print_as(options.output, &answer, text)?;
    let decision = answer.get("decision").and_then(Value::as_str).context("the answer has no decision")?;
    Ok(if decision == "allow" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl ExplainOptions {
    /// The answer of a folder's objects.
    fn answer(&self, index: &Index) -> anyhow::Result<Value> {
        let domain = &self.trust.trust_domain;
        // Manifests may be without the sidecars that the injector adds.
        let is_workload: fn(&Pod) -> bool = |_| true;
        let (from, service) = match (&self.from, &self.backend) {
            (Some(from), ExplainedTarget::Service(service)) => (from, service),
            (Some(from), ExplainedTarget::External(server, port)) => {
                let query = self.external(from.clone(), server, *port);
                return Ok(serde_json::to_value(explain_external(index, domain, is_workload, &query)?)?);
            }
            (None, ExplainedTarget::Service(service)) => {
                let source = self.source.context("--source is missing")?;
                return Ok(serde_json::to_value(explain(index, domain, &self.query(service, source))?)?);
            }
            (None, ExplainedTarget::External(..)) => anyhow::bail!(EXTERNAL_NEEDS_FROM),
        };
        let query = OutboundQuery {
            caller: from.clone(),
            service: service.clone(),
            port: self.port,
            request: self.request(),
        };
        let view = OutboundView { index, trust_domain: domain, is_workload, missing_policy: &|_| None };
        Ok(serde_json::to_value(explain_outbound(view, &query)?)?)
    }

    fn request(&self) -> HttpRequest {
        HttpRequest { method: self.method.clone(), path: self.path.clone(), headers: self.header.clone() }
    }

    /// The question about a server outside the mesh.
    fn external(&self, caller: ObjectName, server: &str, port: u16) -> ExternalQuery {
        let address = server.parse().ok();
        ExternalQuery {
            caller,
            host: address.is_none().then(|| server.to_owned()),
            address: address.or(self.address),
            port,
        }
    }

    /// The question about a connection for a folder.
    fn query(&self, backend: &ObjectName, source: IpAddr) -> Query {
        Query {
            backend: backend.clone(),
            port: self.port,
            source,
            server_name: self.sni.clone(),
            principals: self.principal.clone(),
            speaks: match self.speaks {
                None => Speaks::Likely,
                Some(ClientProtocol::Tls) => Speaks::Tls,
                Some(ClientProtocol::Plaintext) => Speaks::Plaintext,
                Some(ClientProtocol::Mesh) => Speaks::Mesh,
                Some(ClientProtocol::MeshTcp) => Speaks::MeshTcp,
            },
            request: self.request(),
        }
    }

    /// The question as a request to a controller, with its parameters escaped.
    fn url(&self) -> String {
        let mut path = match &self.backend {
            ExplainedTarget::Service(name) => format!("/explain?backend={}", escape(&name.to_string())),
            ExplainedTarget::External(server, port) => {
                let ExternalQuery { host, address, .. } =
                    self.external(ObjectName::new("", ""), server, *port);
                let host = host.map(|host| format!("&host={}", escape(&host))).unwrap_or_default();
                let address = address.map(|address| format!("&address={address}")).unwrap_or_default();
                format!("/explain?port={port}{host}{address}")
            }
        };
        if let Some(source) = self.source {
            path += &format!("&source={source}");
        }
        if let Some(from) = &self.from {
            path += &format!("&from={}", escape(&from.to_string()));
        }
        if let Some(port) = self.port {
            path += &format!("&port={port}");
        }
        if let Some(name) = &self.sni {
            path += &format!("&sni={}", escape(name));
        }
        for name in &self.principal {
            path += &format!("&principal={}", escape(name));
        }
        path += match self.speaks {
            None => "",
            Some(ClientProtocol::Tls) => "&tls=true",
            Some(ClientProtocol::Plaintext) => "&tls=false",
            Some(ClientProtocol::Mesh) => "&tls=mesh",
            Some(ClientProtocol::MeshTcp) => "&tls=mesh-tcp",
        };
        path += &format!("&method={}&path={}", escape(&self.method), escape(&self.path));
        for (name, value) in &self.header {
            path += &format!("&header={}", escape(&format!("{name}: {value}")));
        }
        path
    }
}

/// One line for each part of the answer that there is; text from objects is made printable.
fn text(answer: &Value) -> String {
    let keys = [
        "decision",
        "reason",
        "rule",
        "route",
        "retries",
        "mirrors",
        "request",
        "limits",
        "authorizer",
        "terms",
        "server",
        "address",
        "others",
        "workload",
        "serverIdentity",
        "clientIdentity",
        "port",
    ];
    let line = |key: &&str| match answer.get(key) {
        None | Some(Value::Null) => None,
        Some(Value::Array(values)) => {
            let values: Vec<_> = values.iter().filter_map(Value::as_str).map(printable).collect();
            Some(format!("{key:<15} {}\n", values.join("; ")))
        }
        Some(Value::String(value)) => Some(format!("{key:<15} {}\n", printable(value))),
        Some(value) => Some(format!("{key:<15} {value}\n")),
    };
    let backends = answer.get("backends").and_then(Value::as_array).into_iter().flatten();
    keys.iter().filter_map(line).chain(backends.map(backend)).collect()
}

/// The lines of a share: where it leads, and what is decided there.
fn backend(share: &Value) -> String {
    let decisions = share.get("farSide").and_then(Value::as_array).into_iter().flatten();
    let limits = share.get("limits").and_then(Value::as_str);
    let limits = limits.map(|limits| format!("{:<15} {}\n", "  limits", printable(limits)));
    std::iter::once(leads_to(share)).chain(limits).chain(decisions.map(far_side)).collect()
}

/// The line of a decision of endpoints.
fn far_side(decision: &Value) -> String {
    let text = |field: &str| decision.get(field).and_then(Value::as_str).map(printable);
    let list = |field: &str| {
        let values = decision.get(field).and_then(Value::as_array).into_iter().flatten();
        values.filter_map(Value::as_str).map(printable).collect::<Vec<_>>()
    };
    let said = [text("reason"), text("request"), text("authorizer")].into_iter().flatten();
    let said: Vec<_> = said.chain(list("limits")).collect();
    let (word, endpoints) = (text("decision").unwrap_or_default(), list("endpoints").join(" "));
    format!("{:<15} {word}: {} ({endpoints})\n", "  there", said.join("; "))
}

/// The line of a share: its weight, the Service, and its endpoints or why it has none.
fn leads_to(share: &Value) -> String {
    let text = |field: &str| share.get(field).and_then(Value::as_str);
    let weight =
        |at: usize| share.pointer(&format!("/weight/{at}")).and_then(Value::as_u64).unwrap_or_default();
    let endpoints = share.get("endpoints").and_then(Value::as_array).into_iter().flatten();
    let endpoints: Vec<_> = endpoints.filter_map(Value::as_str).collect();
    let leads_to = text("error").map_or_else(|| endpoints.join(" "), ToOwned::to_owned);
    let share = format!("{} of {}", weight(0), weight(1));
    let name = text("backend").unwrap_or("-");
    format!("{:<15} {share}: {} {}\n", "backend", printable(name), printable(&leads_to))
}

/// The value parser of BACKEND.
fn parse_target(text: &str) -> Result<ExplainedTarget, String> {
    if text.contains('/') {
        return parse_backend(text).map(ExplainedTarget::Service);
    }
    let server = text.rsplit_once(':').and_then(|(server, port)| Some((server, port.parse().ok()?)));
    let expected = || format!("{text:?} has neither the form NAMESPACE/NAME nor HOST:PORT");
    let (server, port) = server.ok_or_else(expected)?;
    let bare = server.strip_prefix('[').and_then(|server| server.strip_suffix(']'));
    let is_server = match bare {
        Some(address) => address.parse::<IpAddr>().is_ok(),
        None => server.parse::<IpAddr>().is_ok() || DnsName::parse(server).is_ok(),
    };
    if !is_server || port == 0 {
        return Err(expected());
    }
    Ok(ExplainedTarget::External(bare.unwrap_or(server).to_owned(), port))
}

/// The value parser of names.
fn parse_backend(text: &str) -> Result<ObjectName, String> {
    ObjectName::parse(text).ok_or_else(|| format!("{text:?} does not have the form NAMESPACE/NAME"))
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    HttpRequest::header(text).ok_or_else(|| format!("{text:?} does not have the form NAME: VALUE"))
}

/// Percent-encodes characters that a query value may not contain (RFC 3986 §3.4).
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/:*".contains(&byte);
    text.bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_endpoints_decide_is_a_line_below_their_share() {
        let answer = serde_json::json!({"decision": "deny", "port": 80, "backends": [{
            "backend": "shop/cart:80", "weight": [1, 1], "limits": "maxRequests: 2", "endpoints": ["10.1.0.1:8080"],
            "farSide": [{"decision": "deny", "reason": "no rule", "request": "GET /", "endpoints": ["10.1.0.1:8080"]}],
        }]});
        let lines = "decision        deny\nport            80\n\
                     backend         1 of 1: shop/cart:80 10.1.0.1:8080\n  \
                       limits        maxRequests: 2\n  \
                       there         deny: no rule; GET / (10.1.0.1:8080)\n";
        assert_eq!(text(&answer), lines);
    }

    #[test]
    fn a_server_outside_the_mesh_is_a_host_or_an_address_with_a_port() {
        let external = |server: &str, port| Ok(ExplainedTarget::External(server.to_owned(), port));
        assert_eq!(parse_target("api.example.com:443"), external("api.example.com", 443));
        assert_eq!(parse_target("192.0.2.1:443"), external("192.0.2.1", 443));
        assert_eq!(parse_target("[2001:db8::1]:443"), external("2001:db8::1", 443));
        let service = ObjectName::new("shop", "cart");
        assert_eq!(parse_target("shop/cart"), Ok(ExplainedTarget::Service(service)));
        for wrong in ["api.example.com", "api.example.com:0", "a b:1", "[a]:1", ":80"] {
            assert!(parse_target(wrong).unwrap_err().contains("HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn what_is_asked_for_arrives_as_it_was_written() {
        assert_eq!(escape("spiffe://td/ns/a/sa/b"), "spiffe://td/ns/a/sa/b");
        assert_eq!(escape("a&b=c d%\u{e4}"), "a%26b%3Dc%20d%25%C3%A4");
    }
}
