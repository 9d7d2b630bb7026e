//! Checks of a Retry.

use std::time::Duration;

use tidegate_core::go_duration;
use tidegate_core::route::retry::{Backoff, RetryMethods, RetryOn};
use tidegate_core::route::{RetryPolicy, RouteError, Timeouts};

use super::Finding;
use super::findings::Findings;
use crate::retry::{RetryPolicySpec, RetrySpec};

/// Envoy's `num_retries`.
const ATTEMPTS: u32 = 1;

/// All probable mistakes in a Retry of this namespace, in the order of its fields. OSM validated nothing, so nothing is refused;
/// what has no effect is reported.
pub fn retry(namespace: &str, spec: &RetrySpec) -> Vec<Finding> {
    let mut findings = Findings::default();
    if spec.source.kind != "ServiceAccount" {
        findings.add("source", || {
            let message = format!("'{}' is not supported: only ServiceAccount is", spec.source.kind);
            Finding::warning("spec.source.kind", message)
        });
    } else if spec.account(namespace).is_none() {
        findings.add("source", || {
            let message = format!(
                "'{}' is not the namespace of this object, {namespace}, whose workloads alone it is for",
                spec.source.namespace
            );
            Finding::warning("spec.source.namespace", message)
        });
    }
    for (i, destination) in spec.destinations.iter().enumerate().filter(|(_, one)| one.kind != "Service") {
        findings.add("destination", || {
            let message = format!("'{}' is not supported: only Service is", destination.kind);
            Finding::warning(format!("spec.destinations[{i}].kind"), message)
        });
    }
    if let Err(finding) = spec.retry_policy.parse() {
        findings.add("policy", || finding);
    }
    findings.finish()
}

impl RetryPolicySpec {
    /// The policy, and how long an attempt may take. The error is a warning.
    pub fn parse(&self) -> Result<(RetryPolicy, Timeouts), Finding> {
        let warning =
            |field: &str, message: String| Finding::warning(format!("spec.retryPolicy.{field}"), message);
        let wrong =
            |field| move |error: RouteError| warning(field, format!("{:?} {}", error.value, error.problem));
        let time = |field, text: &Option<String>| {
            let parsed = text.as_deref().map(go_duration::parse).transpose();
            parsed.map_err(|error| warning(field, error.to_string()))
        };
        let on = RetryOn::parse(&self.retry_on).map_err(wrong("retryOn"))?;
        let attempt = time("perTryTimeout", &self.per_try_timeout)?;
        let base = time("retryBackoffBaseInterval", &self.retry_backoff_base_interval)?;
        let backoff = |base: Duration| Backoff::new(base, None);
        let backoff = base.map_or_else(|| Ok(Backoff::default()), backoff);
        let backoff = backoff.map_err(wrong("retryBackoffBaseInterval"))?;
        let attempts = self.num_retries.unwrap_or(ATTEMPTS);
        let policy = RetryPolicy::new(on, RetryMethods::All, attempts, backoff, None);
        let timeouts = Timeouts::new(None, attempt).map_err(wrong("perTryTimeout"))?;
        Ok((policy.map_err(wrong("numRetries"))?, timeouts))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn spec(policy: Value) -> RetrySpec {
        let spec = json!({
            "source": {"kind": "ServiceAccount", "name": "buyer", "namespace": "shop"},
            "destinations": [{"kind": "Service", "name": "books", "namespace": "store"}],
            "retryPolicy": policy,
        });
        serde_json::from_value(spec).unwrap()
    }

    fn findings(spec: &RetrySpec) -> Vec<String> {
        retry("shop", spec).iter().map(Finding::with_severity).collect()
    }

    #[test]
    fn a_policy_has_envoy_s_defaults_and_applies_to_every_method() {
        let (policy, timeouts) = spec(json!({"retryOn": "5xx"})).retry_policy.parse().unwrap();
        let expected = (RetryMethods::All, 1, Backoff::default());
        assert_eq!((policy.methods(), policy.attempts(), *policy.backoff()), expected);
        assert_eq!(timeouts, Timeouts::default());
        let all = json!({
            "retryOn": "reset, 503", "numRetries": 5, "perTryTimeout": "1.5s", "retryBackoffBaseInterval": "1s"
        });
        let (policy, timeouts) = spec(all).retry_policy.parse().unwrap();
        assert_eq!((policy.attempts(), policy.on().statuses()), (5, &[(503, 503)][..]));
        assert_eq!(policy.backoff().max(), Duration::from_secs(10));
        assert_eq!(timeouts.backend_request(), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn what_has_no_effect_is_a_warning() {
        assert_eq!(findings(&spec(json!({"retryOn": ""}))), Vec::<String>::new());
        let mut other = spec(json!({"retryOn": "5xx"}));
        other.source.namespace = "other".to_owned();
        other.destinations[0].kind = "Pod".to_owned();
        assert_eq!(
            findings(&other),
            [
                "warning: spec.source.namespace: 'other' is not the namespace of this object, shop, whose workloads \
                 alone it is for",
                "warning: spec.destinations[0].kind: 'Pod' is not supported: only Service is",
            ]
        );
        other.source.kind = "Group".to_owned();
        assert!(findings(&other)[0].contains("'Group' is not supported: only ServiceAccount is"));
        for (policy, field) in [
            (json!({"retryOn": "5xx,sometimes"}), "retryOn: \"sometimes\""),
            (json!({"retryOn": "5xx", "numRetries": 101}), "numRetries: \"101\" is more than 100"),
            (json!({"retryOn": "5xx", "perTryTimeout": "soon"}), "perTryTimeout: \"soon\" is not a duration"),
            (json!({"retryOn": "5xx", "retryBackoffBaseInterval": "1"}), "retryBackoffBaseInterval: \"1\""),
        ] {
            let found = findings(&spec(policy));
            assert!(found[0].starts_with(&format!("warning: spec.retryPolicy.{field}")), "{found:?}");
        }
    }
}
