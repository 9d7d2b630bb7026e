//! The steps of the story, with their expected answers.
//!
//! The order matters: each step replaces the policy of the one before, and a step without a manifest is only possible
//! while none was applied. Every answer is printed with the controller's own reason for it.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use http::StatusCode;
use serde_json::Value;

use super::client::{DemoAnswer, IngressClient, RequestScheme};
use super::{Network, write};
use crate::admin_client::fetch;

/// The body of a refusal, as clients of OSM know it.
const DENIED: &[u8] = b"RBAC: access denied";
/// The workload of the example.
const WORKLOAD: &str = "httpbin/httpbin";
/// Timeout for a policy to take effect, which is far quicker.
const PATIENCE: Duration = Duration::from_secs(20);

/// One policy, one request, one answer.
pub(crate) struct StoryStep {
    title: &'static str,
    /// The manifest to apply first; `None` for no IngressBackend.
    manifest: Option<&'static str>,
    scheme: RequestScheme,
    expected: Expected,
}

/// What a step's answer is compared with. For 403 the body counts, too.
enum Expected {
    Reset,
    Status(StatusCode),
}

/// The setting of the story.
pub(crate) struct Story<'a> {
    /// The ingress controller.
    pub(crate) client: IngressClient,
    /// The sidecar.
    pub(crate) backend: SocketAddr,
    /// The controller's admin address.
    pub(crate) admin: SocketAddr,
    /// The watched folder.
    pub(crate) manifests: &'a Path,
    /// The network that the manifests' addresses were moved to.
    pub(crate) network: Network,
}

/// The walk-through that users of Open Service Mesh know.
pub(crate) const STEPS: [StoryStep; 5] = [
    StoryStep {
        title: "No IngressBackend: no client outside the mesh is admitted",
        manifest: None,
        scheme: RequestScheme::Http,
        expected: Expected::Reset,
    },
    StoryStep {
        title: "http, from the ingress controller's Service",
        manifest: Some(include_str!("../../../examples/ingress/policies/1-http.yaml")),
        scheme: RequestScheme::Http,
        expected: Expected::Status(StatusCode::OK),
    },
    StoryStep {
        title: "https, with the ingress controller's AuthenticatedPrincipal",
        manifest: Some(include_str!("../../../examples/ingress/policies/2-https.yaml")),
        scheme: RequestScheme::Https,
        expected: Expected::Status(StatusCode::OK),
    },
    StoryStep {
        title: "https, with a principal that its certificate does not hold",
        manifest: Some(include_str!("../../../examples/ingress/policies/3-https-untrusted.yaml")),
        scheme: RequestScheme::Https,
        expected: Expected::Status(StatusCode::FORBIDDEN),
    },
    StoryStep {
        title: "the same, with skipClientCertValidation: true",
        manifest: Some(include_str!("../../../examples/ingress/policies/4-https-skip.yaml")),
        scheme: RequestScheme::Https,
        expected: Expected::Status(StatusCode::OK),
    },
];

impl Story<'_> {
    /// Applies the policy, sends the request, prints the answer; returns whether it was as expected.
    pub(crate) async fn tell(&self, number: usize, step: &StoryStep) -> anyhow::Result<bool> {
        println!("{number}. {}", step.title);
        if let Some(manifest) = step.manifest {
            self.apply(manifest).await?;
        }
        let scheme = match step.scheme {
            RequestScheme::Http => "http",
            RequestScheme::Https => "https",
        };
        println!("   GET {scheme}://{}/get", self.backend);
        let answer = self.client.get(step.scheme, self.backend, "/get").await?;
        let is_expected = step.expected.is(&answer);
        println!("   {answer}{}", if is_expected { "" } else { "   <-- NOT as expected" });
        if let DemoAnswer::Http { status, body } = &answer
            && *status != StatusCode::OK
        {
            println!("   body: {:?}", String::from_utf8_lossy(body));
        }
        println!("   why: {}\n", self.why(step.scheme).await?);
        Ok(is_expected)
    }

    /// Writes the manifest and waits until the sidecar has applied the new policy.
    async fn apply(&self, manifest: &str) -> anyhow::Result<()> {
        let before = self.versions().await?.0;
        write(self.manifests, "ingressbackend.yaml", &self.network.translate(manifest))?;
        let in_force = async {
            loop {
                let (published, acknowledged) = self.versions().await?;
                if published != before && acknowledged == published {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, in_force).await.context("the policy did not reach the sidecar")?
    }

    /// The version that the controller has compiled, and the one that the sidecar has applied.
    async fn versions(&self) -> anyhow::Result<(Option<String>, Option<String>)> {
        let workloads: Vec<Value> = fetch(self.admin, "/workloads").await?;
        let workload = workloads.iter().find(|workload| workload["workload"] == WORKLOAD);
        let workload =
            workload.with_context(|| format!("the controller does not know workload {WORKLOAD}"))?;
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Ok((text(&workload["version"]), text(&workload["sidecar"]["ackedVersion"])))
    }

    /// The controller's reason for a request like this one, from `/explain`.
    async fn why(&self, scheme: RequestScheme) -> anyhow::Result<String> {
        let certificate = match scheme {
            RequestScheme::Http => "&tls=false",
            RequestScheme::Https => "&tls=true&principal=ingress-nginx.ingress-nginx.cluster.local",
        };
        let source = self.network.address(30);
        let path = format!("/explain?backend={WORKLOAD}&source={source}{certificate}");
        let answer: Value = fetch(self.admin, &path).await?;
        Ok(answer["reason"].as_str().context("the explanation has no reason")?.to_owned())
    }
}

impl Expected {
    /// Whether the answer is the expected one.
    fn is(&self, answer: &DemoAnswer) -> bool {
        match (self, answer) {
            (Self::Reset, DemoAnswer::Reset) => true,
            (Self::Status(StatusCode::FORBIDDEN), DemoAnswer::Http { status, body }) => {
                *status == StatusCode::FORBIDDEN && body == DENIED
            }
            (Self::Status(expected), DemoAnswer::Http { status, .. }) => expected == status,
            _ => false,
        }
    }
}
