//! `Retry`: which failed requests of a workload are sent again.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::bounded::{self, NAME, WORD};
use crate::common_status::CommonStatus;
use crate::numbers::optional_count;

/// Maximum destinations of one Retry.
pub const MOST_DESTINATIONS: usize = 64;
/// Maximum characters of a list of failures.
const FAILURES: usize = 1024;

/// Which failed requests of the Pods of a service account are sent again.
#[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[kube(
    group = "policy.openservicemesh.io",
    version = "v1alpha1",
    kind = "Retry",
    plural = "retries",
    singular = "retry",
    shortname = "retry",
    namespaced,
    status = "CommonStatus",
    derive = "PartialEq",
    doc = "Has failed requests of a workload of its namespace sent again.",
    printcolumn(json_path = ".status.currentStatus", name = "Status", type_ = "string")
)]
#[serde(rename_all = "camelCase")]
pub struct RetrySpec {
    /// Whose requests: a ServiceAccount of the namespace of this object.
    pub source: RetryEndSpec,
    /// To which Services.
    #[serde(deserialize_with = "destinations")]
    #[schemars(length(max = MOST_DESTINATIONS))]
    pub destinations: Vec<RetryEndSpec>,
    /// How.
    pub retry_policy: RetryPolicySpec,
}

/// A source or a destination.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RetryEndSpec {
    /// `ServiceAccount` of a source, `Service` of a destination.
    #[serde(deserialize_with = "bounded::text::<_, WORD>")]
    #[schemars(length(max = WORD))]
    pub kind: String,
    /// Its name.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub name: String,
    /// Its namespace.
    #[serde(deserialize_with = "bounded::text::<_, NAME>")]
    #[schemars(length(max = NAME))]
    pub namespace: String,
}

/// How failed requests are sent again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RetryPolicySpec {
    /// The failures, as Envoy lists them, separated by commas, such as `5xx` or `connect-failure,503`.
    #[serde(deserialize_with = "bounded::text::<_, FAILURES>")]
    #[schemars(length(max = FAILURES))]
    pub retry_on: String,
    /// The longest that one attempt may take, such as `2s`. Absent: no limit.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, WORD>"
    )]
    #[schemars(length(max = WORD))]
    pub per_try_timeout: Option<String>,
    /// Attempts after the first. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "optional_count")]
    pub num_retries: Option<u32>,
    /// The first wait is a random time below this, later ones are longer, up to ten times of it. Default: `25ms`.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::optional_text::<_, WORD>"
    )]
    #[schemars(length(max = WORD))]
    pub retry_backoff_base_interval: Option<String>,
}

impl RetrySpec {
    /// The service account whose requests are meant, if it is one of this namespace.
    pub fn account(&self, namespace: &str) -> Option<&str> {
        let RetryEndSpec { kind, name, namespace: of } = &self.source;
        (kind == "ServiceAccount" && of == namespace).then_some(name)
    }

    /// The Services, as namespace and name.
    pub fn services(&self) -> impl Iterator<Item = (&str, &str)> {
        let services = self.destinations.iter().filter(|destination| destination.kind == "Service");
        services.map(|service| (service.namespace.as_str(), service.name.as_str()))
    }
}

fn destinations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RetryEndSpec>, D::Error> {
    bounded::list(deserializer, "spec.destinations", MOST_DESTINATIONS)
}
