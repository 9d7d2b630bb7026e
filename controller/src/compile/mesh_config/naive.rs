//! The compile function against a second one that follows the documentation sentence by sentence, on random MeshConfigs.

use std::collections::BTreeSet;

use proptest::prelude::*;
use tidegate_core::TrustDomain;
use tidegate_core::policy::{InboundPolicy, MeshRule};

use self::random::{RandomAuthorization, RandomConfig, RandomTracing, World, world};
use super::*;
use crate::compile::status::{CurrentStatus, statuses};
use crate::compile::workload;
use crate::object::Kind;

mod random;

/// What a workload's policy and the status of each MeshConfig say.
#[derive(Debug, PartialEq)]
struct Meaning {
    peers: String,
    egress: String,
    tracing: String,
    external: String,
    statuses: Vec<(String, BTreeSet<String>)>,
}

impl RandomConfig {
    /// Everything that its status warns of, or has as an error, by the beginning of the text; with whether it is an error.
    fn findings(&self) -> Vec<(String, bool)> {
        let mut findings = Vec::new();
        if let Some(Err(field)) = self.tracing.as_ref().map(|tracing| tracing.means(self.namespace)) {
            findings.push((format!("spec.observability.tracing.{field}"), false));
        }
        if let Some(external) = self.external.as_ref().filter(|external| external.enable == Some(true)) {
            let of = |field: &str| format!("spec.traffic.inboundExternalAuthorization.{field}");
            findings.extend(external.fault().map(|field| (of(field), true)));
            // "A text that is not a duration means `1s`, with a warning"; "at most `60s`".
            findings.extend(external.timeout.filter(|text| *text != "300ms").map(|_| (of("timeout"), false)));
            findings.extend(self.audit.and_then(|value| match value {
                "true" => Some(("audit mode".to_owned(), false)),
                "false" => None,
                // "With the annotation `tidegate.io/audit: "true"`", and no other value.
                _ => Some(("annotation tidegate.io/audit".to_owned(), false)),
            }));
        }
        findings
    }
}

impl RandomTracing {
    /// What is traced: the collector, its path, and the share of a million; or the field with an error.
    fn means(&self, namespace: &str) -> Result<Option<String>, &'static str> {
        if self.enable != Some(true) {
            return Ok(None);
        }
        // "With port 9411, nothing is sent."
        if matches!(self.port, Some(9411 | 0)) {
            return Err("port");
        }
        // Open Service Mesh writes Zipkin's path, which counts as none.
        let endpoint = self.endpoint.filter(|path| *path != "/api/v2/spans");
        if endpoint == Some("traces") {
            return Err("endpoint");
        }
        if self.address == Some("http://otel") {
            return Err("address");
        }
        // "4317: OTLP over gRPC, the default. Port 4318, or an `endpoint` such as `/v1/traces`, means OTLP over HTTP."
        let port = self.port.unwrap_or(if endpoint.is_some() { 4318 } else { 4317 });
        let path = endpoint.or((port == 4318).then_some("/v1/traces")).unwrap_or("grpc");
        // "Default: jaeger in the control plane's namespace."
        let host =
            self.address.map_or_else(|| format!("jaeger.{namespace}.svc.cluster.local"), str::to_owned);
        // "Default: every trace."
        let share = match self.share {
            None => 1_000_000,
            Some("0.01") => 10_000,
            Some(_) => return Err("sampledFraction"),
        };
        Ok(Some(format!("{host}:{port} {path} {share}")))
    }
}

impl RandomAuthorization {
    /// Which of "`address` or `port` cannot be used".
    fn fault(&self) -> Option<&'static str> {
        match (self.port, self.address) {
            (None | Some(0), _) => Some("port"),
            (_, None | Some("http://opa")) => Some("address"),
            _ => None,
        }
    }

    /// As a workload's policy shows it.
    fn means(&self) -> String {
        if let Some(field) = self.fault() {
            return format!("refuses every request: spec.traffic.inboundExternalAuthorization.{field}");
        }
        let timeout = match self.timeout {
            Some("300ms") => "300ms",
            Some("2m") => "60s",
            _ => "1s",
        };
        let failure = if self.failure_mode_allow == Some(true) { "allows" } else { "refuses" };
        let (address, port) = (self.address.unwrap(), self.port.unwrap());
        format!("{address}:{port} decides within {timeout}; its failure {failure} the request")
    }
}

impl World {
    /// "The mesh's settings are the MeshConfig of that name"; "several MeshConfigs: the one that is named counts", the first by
    /// namespace.
    fn in_force(&self) -> Option<&RandomConfig> {
        let named = self.configs.iter().filter(|config| !config.is_misnamed);
        named.min_by_key(|config| config.namespace)
    }

    fn means(&self) -> Meaning {
        let config = self.in_force();
        let read = config.filter(|config| config.is_readable);
        let unreadable = config.filter(|config| !config.is_readable);
        let unreadable = unreadable.map(|config| format!("MeshConfig {}: spec.sidecar", config.name()));
        let targets = |reason: &str| if self.has_target { "targets" } else { reason }.to_owned();
        Meaning {
            peers: match (&unreadable, read) {
                // "The MeshConfig is missing or wrong; the reason says which": it may have turned permissive mode off.
                (Some(reason), _) => reason.clone(),
                (None, None) => targets("there is no MeshConfig osm-mesh-config"),
                // "`true`: every workload may send everything; `false`, or absent: what no TrafficTarget allows is refused."
                (None, Some(config)) if config.is_permissive == Some(true) => "all".to_owned(),
                (None, Some(_)) => targets("permissive mode is off and no TrafficTarget lets mesh peers in"),
            },
            egress: match (&unreadable, read) {
                // "So does every sidecar while the MeshConfig cannot be read, because it may have turned egress off."
                (Some(reason), _) => reason.clone(),
                (None, Some(config)) if config.enable_egress == Some(false) => {
                    format!("spec.traffic.enableEgress of MeshConfig {} is false", config.name())
                }
                (None, _) => "all".to_owned(),
            },
            tracing: read
                .and_then(|config| config.tracing.as_ref()?.means(config.namespace).ok().flatten())
                .unwrap_or_default(),
            external: config.map(|config| self.external(config)).unwrap_or_default(),
            statuses: self.configs.iter().map(|config| self.status(config)).collect(),
        }
    }

    /// The external authorization. "So does a MeshConfig that cannot be read and may have enabled it."
    fn external(&self, config: &RandomConfig) -> String {
        let enabled = config.external.as_ref().filter(|external| external.enable == Some(true));
        match enabled {
            None => String::new(),
            Some(_) if !config.is_readable => "refuses every request: spec.sidecar".to_owned(),
            Some(external) => {
                let audit = if config.audit == Some("true") { "audit mode: " } else { "" };
                format!("{audit}{}", external.means())
            }
        }
    }

    /// What is wrong with a MeshConfig, or nothing; and what its status warns of.
    fn status(&self, config: &RandomConfig) -> (String, BTreeSet<String>) {
        if !config.is_readable {
            return ("spec.sidecar".to_owned(), BTreeSet::new());
        }
        let findings = config.findings();
        let error = match self.in_force().map(RandomConfig::name) {
            Some(name) if name == config.name() => findings.iter().find(|it| it.1).map(|it| it.0.clone()),
            Some(name) => Some(format!("not in force: {name} is")),
            None => Some("not in force: only an object named osm-mesh-config".to_owned()),
        };
        let texts = findings.into_iter().map(|(text, _)| text);
        let warnings = texts.filter(|text| error.as_ref() != Some(text)).collect();
        (error.unwrap_or_default(), warnings)
    }

    /// What the index says, in the words of [`World::means`] as far as these go: texts begin with them.
    fn compiled(&self, expected: &Meaning) -> Meaning {
        let index = self.index();
        let pod = index.pod(&ObjectName::new("httpbin", "httpbin-1")).unwrap();
        let policy = workload(&index, pod, &TrustDomain::default()).unwrap();
        let egress = match egress_mode(&index) {
            EgressMode::AllowAny => "all".to_owned(),
            EgressMode::RegistryOnly(reason) => reason.to_string(),
            EgressMode::Policies(_) => panic!("there are none"),
        };
        let tracing =
            policy.telemetry.tracing.as_ref().map(|TracingSettings { collector, sampled_per_million }| {
                format!("{collector} {} {sampled_per_million}", collector.path.as_deref().unwrap_or("grpc"))
            });
        let external = policy.external_authorization.as_ref().map(|external| external.to_string());
        let judged = statuses(&StatusScope::everything(&index));
        let of = |config: &RandomConfig| {
            let is_it = |(kind, judged): &&(Kind, Judged)| {
                *kind == Kind::MeshConfig && judged.name.to_string() == config.name()
            };
            judged.iter().find(is_it).unwrap().1.status.clone()
        };
        let judged = self.configs.iter().zip(&expected.statuses).map(|(config, (error, warnings))| {
            let status = of(config);
            let is_in_force = status.current == CurrentStatus::Committed;
            let told = status
                .warnings
                .iter()
                .map(|text| warnings.iter().find(|start| text.starts_with(*start)).unwrap_or(text).clone());
            (if is_in_force { String::new() } else { beginning(&status.reason, error) }, told.collect())
        });
        Meaning {
            peers: beginning(&peers(&policy), &expected.peers),
            egress: beginning(&egress, &expected.egress),
            tracing: tracing.unwrap_or_default(),
            external: beginning(&external.unwrap_or_default(), &expected.external),
            statuses: judged.collect(),
        }
    }
}

/// Which mesh peers may reach the workload.
fn peers(policy: &InboundPolicy) -> String {
    match &policy.ports[&14001].mesh {
        MeshRule::AnyPeer => "all".to_owned(),
        MeshRule::Deny(reason) => reason.to_string(),
        _ => "targets".to_owned(),
    }
}

/// A text as far as it is expected, or all of it if it does not begin like that.
fn beginning(text: &str, expected: &str) -> String {
    if !expected.is_empty() && text.starts_with(expected) { expected.to_owned() } else { text.to_owned() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn mesh_configs_compile_to_what_the_documentation_says(world in world()) {
        let expected = world.means();
        prop_assert_eq!(world.compiled(&expected), expected);
    }
}
