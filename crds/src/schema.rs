//! Checks a value against the schema of a CRD as the API server does, and names every wrong field.
//!
//! Supports the keywords of our own schemas: types, `required`, `minimum`, `maximum`, `minItems`, `maxItems`,
//! `maxLength`, `maxProperties`, `enum`, `nullable`, `additionalProperties` and Kubernetes' extensions for unknown
//! fields and for "integer or string".

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use serde_json::Value;

use crate::bounded::{is_longer, too_long, too_many};
use crate::validate::{Finding, Severity};

/// Maximum findings of one object; further ones are only counted.
const MOST_FINDINGS: usize = 64;

/// All violations of the CRD's schema in an object, with the path of each field. An unknown field, which the API server
/// would silently drop, is a warning.
pub fn check(crd: &CustomResourceDefinition, object: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let schema = crd.spec.versions.first().and_then(|version| version.schema.as_ref());
    let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_ref()) else { return findings };
    let mut checker = Checker { findings: &mut findings, left_out: 0, has_error_left_out: false };
    checker.check(schema, object, "");
    let Checker { left_out, has_error_left_out, .. } = checker;
    if left_out > 0 {
        let severity = if has_error_left_out { Severity::Error } else { Severity::Warning };
        let message = format!("and {left_out} more findings");
        findings.push(Finding { severity, path: "spec".to_owned(), message });
    }
    findings
}

struct Checker<'f> {
    findings: &'f mut Vec<Finding>,
    left_out: usize,
    has_error_left_out: bool,
}

impl Checker<'_> {
    fn check(&mut self, schema: &JSONSchemaProps, value: &Value, path: &str) {
        if value.is_null() {
            if schema.nullable != Some(true) {
                self.error(path, "Invalid value: null");
            }
            return;
        }
        if !self.has_type(schema, value, path) {
            return;
        }
        match value {
            Value::Object(fields) => self.check_object(schema, fields, path),
            Value::Array(items) => self.check_array(schema, items, path),
            Value::Number(number) => self.check_number(schema, number, path),
            Value::String(text) => {
                if let Some(most) = bound(schema.max_length)
                    && is_longer(text, most)
                {
                    self.error(path, &too_long(most));
                } else {
                    self.check_enum(schema, value, path);
                }
            }
            Value::Bool(_) | Value::Null => {}
        }
    }

    fn has_type(&mut self, schema: &JSONSchemaProps, value: &Value, path: &str) -> bool {
        let actual = type_of(value);
        if schema.x_kubernetes_int_or_string == Some(true) {
            let fits = matches!(actual, "integer" | "string");
            if !fits {
                self.error(path, &format!("must be of type integer or string, got {actual}"));
            }
            return fits;
        }
        let Some(expected) = schema.type_.as_deref() else { return true };
        let fits = expected == actual || (expected == "number" && actual == "integer");
        if !fits {
            self.error(path, &format!("must be of type {expected}, got {actual}"));
        }
        fits
    }

    fn check_object(
        &mut self,
        schema: &JSONSchemaProps,
        fields: &serde_json::Map<String, Value>,
        path: &str,
    ) {
        if let Some(most) = bound(schema.max_properties)
            && fields.len() > most
        {
            return self.error(path, &too_many(most));
        }
        for name in schema.required.iter().flatten() {
            if !fields.contains_key(name) {
                self.error(&child(path, name), "Required value");
            }
        }
        for (name, value) in fields {
            let path_of_field = child(path, name);
            let known = schema.properties.as_ref().and_then(|properties| properties.get(name));
            match (known, &schema.additional_properties) {
                (Some(schema), _) => self.check(schema, value, &path_of_field),
                (None, Some(JSONSchemaPropsOrBool::Schema(schema))) => {
                    self.check(schema, value, &path_of_field);
                }
                (None, Some(JSONSchemaPropsOrBool::Bool(true))) => {}
                (None, _) if schema.x_kubernetes_preserve_unknown_fields == Some(true) => {}
                (None, _)
                    if path.is_empty() && matches!(name.as_str(), "apiVersion" | "kind" | "metadata") => {}
                (None, _) => {
                    let message = format!("unknown field \"{path_of_field}\"");
                    self.add(Severity::Warning, &path_of_field, &message);
                }
            }
        }
    }

    fn check_array(&mut self, schema: &JSONSchemaProps, items: &[Value], path: &str) {
        if let Some(least) = schema.min_items
            && i64::try_from(items.len()).is_ok_and(|count| count < least)
        {
            self.error(path, &format!("should have at least {least} items"));
        }
        if let Some(most) = bound(schema.max_items)
            && items.len() > most
        {
            return self.error(path, &too_many(most));
        }
        if let Some(JSONSchemaPropsOrArray::Schema(item_schema)) = &schema.items {
            for (i, item) in items.iter().enumerate() {
                self.check(item_schema, item, &format!("{path}[{i}]"));
            }
        }
    }

    fn check_number(&mut self, schema: &JSONSchemaProps, number: &serde_json::Number, path: &str) {
        let Some(number) = number.as_f64() else { return };
        if let Some(least) = schema.minimum
            && number < least
        {
            self.error(path, &format!("should be greater than or equal to {least}"));
        }
        if let Some(most) = schema.maximum
            && number > most
        {
            self.error(path, &format!("should be less than or equal to {most}"));
        }
    }

    fn check_enum(&mut self, schema: &JSONSchemaProps, value: &Value, path: &str) {
        let Some(allowed) = &schema.enum_ else { return };
        if !allowed.iter().any(|allowed| allowed.0 == *value) {
            let allowed: Vec<_> = allowed.iter().map(|allowed| allowed.0.to_string()).collect();
            self.error(
                path,
                &format!("Unsupported value: {value}: supported values: {}", allowed.join(", ")),
            );
        }
    }

    fn error(&mut self, path: &str, message: &str) {
        self.add(Severity::Error, path, message);
    }

    fn add(&mut self, severity: Severity, path: &str, message: &str) {
        if self.findings.len() >= MOST_FINDINGS {
            self.left_out += 1;
            self.has_error_left_out |= severity == Severity::Error;
            return;
        }
        self.findings.push(Finding { severity, path: path.to_owned(), message: message.to_owned() });
    }
}

fn bound(most: Option<i64>) -> Option<usize> {
    most.and_then(|most| usize::try_from(most).ok())
}

fn child(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;
    use serde_json::json;

    use super::*;
    use crate::{IngressBackend, MeshConfig};

    fn findings(crd: &CustomResourceDefinition, spec: Value) -> Vec<String> {
        let object = json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "x"}, "spec": spec});
        check(crd, &object).iter().map(Finding::with_severity).collect()
    }

    #[test]
    fn every_wrong_field_is_named_with_its_path() {
        let found = findings(
            &IngressBackend::crd(),
            json!({"backends": [
                {"name": "a", "port": {"number": 0, "protocol": "http"}, "tls": {}},
                {"name": 1, "port": {"number": 70000, "protocol": "http", "portocol": "x"}},
                {"name": "a", "port": {"number": "80", "protocol": "http"}},
            ]}),
        );
        assert_eq!(
            found,
            [
                "error: spec.sources: Required value",
                "error: spec.backends[0].port.number: should be greater than or equal to 1",
                "error: spec.backends[0].tls.skipClientCertValidation: Required value",
                "error: spec.backends[1].name: must be of type string, got integer",
                "error: spec.backends[1].port.number: should be less than or equal to 65535",
                "warning: spec.backends[1].port.portocol: unknown field \"spec.backends[1].port.portocol\"",
                "error: spec.backends[2].port.number: must be of type integer, got string",
            ]
        );
    }

    #[test]
    fn what_osm_s_schema_accepted_is_accepted() {
        assert_eq!(
            findings(&IngressBackend::crd(), json!({"backends": [], "sources": []})),
            Vec::<String>::new()
        );
        let odd = json!({
            "backends": [{"name": "", "port": {"number": 1, "protocol": "nonsense"}, "tls": null}],
            "sources": [{"kind": "Pod", "name": "", "namespace": null}],
            "matches": [{"apiGroup": "a", "kind": "b", "name": "c"}],
        });
        assert_eq!(findings(&IngressBackend::crd(), odd), Vec::<String>::new());
    }

    #[test]
    fn lists_and_texts_beyond_their_bounds_are_named_and_findings_are_bounded_themselves() {
        let backend = |name: String| json!({"name": name, "port": {"number": 1, "protocol": "http"}});
        let backends: Vec<_> = (0..257).map(|i| backend(format!("b{i}"))).collect();
        assert_eq!(
            findings(&IngressBackend::crd(), json!({"backends": backends, "sources": []})),
            ["error: spec.backends: Too many: must have at most 256 items"]
        );
        let long = json!({"backends": [backend("b".repeat(254))], "sources": []});
        assert_eq!(
            findings(&IngressBackend::crd(), long),
            ["error: spec.backends[0].name: Too long: may not be more than 253 characters"]
        );
        let wrong: Vec<_> =
            (0..256).map(|_| json!({"name": 1, "port": {"number": 1, "protocol": "http"}})).collect();
        let found = findings(&IngressBackend::crd(), json!({"backends": wrong, "sources": []}));
        assert_eq!(found.len(), MOST_FINDINGS + 1);
        assert_eq!(found.last().unwrap(), "error: spec: and 192 more findings");
    }

    #[test]
    fn status_keeps_fields_that_we_do_not_know() {
        let object = json!({
            "spec": {"backends": [], "sources": []},
            "status": {"currentStatus": "committed", "reason": "x", "mine": {"a": [1]}},
        });
        assert!(check(&IngressBackend::crd(), &object).is_empty());
    }

    #[test]
    fn mesh_config_refuses_values_outside_its_enums_and_an_empty_list_of_names() {
        let found = findings(
            &MeshConfig::crd(),
            json!({
                "sidecar": {"logLevel": "loud", "tlsMinProtocolVersion": "TLSv1_2",
                            "resources": {"limits": {"cpu": 1, "memory": "1Gi"}}},
                "certificate": {
                    "certKeyBitSize": 2048,
                    "ingressGateway": {"subjectAltNames": [], "validityDuration": "24h", "secret": {"name": "x"}},
                },
            }),
        );
        assert_eq!(found.len(), 4, "{found:#?}");
        assert!(found.iter().any(|f| f.contains("spec.sidecar.logLevel: Unsupported value: \"loud\"")));
        assert!(
            found.contains(&"error: spec.certificate.serviceCertValidityDuration: Required value".to_owned())
        );
        assert!(
            found.contains(
                &"error: spec.certificate.ingressGateway.subjectAltNames: should have at least 1 items"
                    .to_owned()
            )
        );
        assert!(
            found.contains(
                &"error: spec.certificate.ingressGateway.secret.namespace: Required value".to_owned()
            )
        );
    }
}
