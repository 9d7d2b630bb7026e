use proptest::prelude::*;

use super::*;

fn problems(text: &str) -> Vec<String> {
    parse("a.yaml", text).problems.iter().map(ToString::to_string).collect()
}

fn names(parsed: &ParsedFile) -> Vec<String> {
    parsed.objects.iter().map(|parsed| format!("{} at {}", parsed.object.key(), parsed.line)).collect()
}

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n";

#[test]
fn a_file_holds_many_documents_and_lists() {
    let text = format!(
        "# a comment\n---\n{NAMESPACE}---\n\n--- # nothing but a comment\n# x\n---\napiVersion: v1\nkind: List\nitems:\n\
         - apiVersion: v1\n  kind: Service\n  metadata: {{name: s}}\n- {{apiVersion: v1, kind: ServiceAccount, \
         metadata: {{name: sa, namespace: x}}}}\n...\n--- {{apiVersion: v1, kind: Pod, metadata: {{name: p}}}}\n"
    );
    let parsed = parse("a.yaml", &text);
    assert_eq!(parsed.problems, []);
    assert_eq!(
        names(&parsed),
        ["Namespace a at 3", "Service default/s at 15", "ServiceAccount x/sa at 18", "Pod default/p at 20"]
    );
}

#[test]
fn json_is_read_as_well() {
    let parsed = parse(
        "a.json",
        "{\"apiVersion\": \"v1\", \"kind\": \"Namespace\",\n \"metadata\": {\"name\": \"x\"}}",
    );
    assert_eq!(names(&parsed), ["Namespace x at 1"]);
}

#[test]
fn a_document_that_is_not_yaml_leaves_the_others_alone_and_is_reported_with_its_line() {
    let text = format!(
        "{NAMESPACE}---\nkind: [unclosed\nmetadata: x\n---\n{}",
        NAMESPACE.replace("name: a", "name: b")
    );
    let parsed = parse("a.yaml", &text);
    assert_eq!(names(&parsed), ["Namespace a at 1", "Namespace b at 9"]);
    assert!(parsed.has_unknown);
    let [problem] = parsed.problems.as_slice() else { panic!("{:?}", parsed.problems) };
    assert!((6..=8).contains(&problem.line), "{problem}");
}

#[test]
fn a_wrong_type_is_reported_with_line_column_and_field() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\nspec:\n  ports:\n  - port: 80\n  - port: eighty\n";
    let parsed = parse("a.yaml", text);
    assert_eq!(parsed.broken.len(), 1);
    assert!(!parsed.has_unknown);
    let [problem] = parsed.problems.as_slice() else { panic!() };
    assert_eq!((problem.line, problem.column), (7, 11));
    assert_eq!(problem.field.as_deref(), Some("spec.ports[1].port"));
    assert_eq!(problem.object.as_deref(), Some("Service default/s"));
    assert!(problem.message.contains("eighty"), "{problem}");
}

#[test]
fn every_wrong_field_of_a_policy_is_reported_at_once_and_unknown_ones_are_warnings() {
    let text = "\
apiVersion: policy.openservicemesh.io/v1alpha1
kind: IngressBackend
metadata: {name: ib, namespace: x}
spec:
  backends:
  - name: 5
    port:
      number: 0
      protocol: http
  sources: []
  surces: []
";
    assert_eq!(
        problems(text),
        [
            "a.yaml:6:11: error: spec.backends[0].name: must be of type string, got integer",
            "a.yaml:8:15: error: spec.backends[0].port.number: should be greater than or equal to 1",
            "a.yaml:11:11: warning: spec.surces: unknown field \"spec.surces\"",
        ]
    );
    assert!(parse("a.yaml", text).objects.is_empty());
}

#[test]
fn what_admission_would_refuse_is_reported_and_kept_so_that_it_can_deny() {
    let text = "\
apiVersion: policy.openservicemesh.io/v1alpha1
kind: IngressBackend
metadata: {name: ib, namespace: x}
spec:
  backends: [{name: a, port: {number: 1, protocol: grpc}}]
  sources: [{kind: IPRange, name: 10.0.0.0/8}]
";
    let parsed = parse("a.yaml", text);
    assert_eq!(names(&parsed), ["IngressBackend x/ib at 1"]);
    assert_eq!(
        problems(text),
        [
            "a.yaml:5:52: error: spec.backends[0].port.protocol: Expected 'port.protocol' to be 'http' or 'https', got: grpc"
        ]
    );
}

#[test]
fn what_the_mesh_has_no_use_for_is_left_out_with_a_word() {
    assert_eq!(
        problems("apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: x}\n"),
        ["a.yaml:1:1: info: networking.k8s.io/v1 Ingress is not used by the mesh and is ignored"]
    );
    assert!(problems("a: 1\n")[0].contains("not a Kubernetes object"));
    assert!(
        problems("apiVersion: policy.openservicemesh.io/v1\nkind: IngressBackend\n")[0]
            .contains("error: apiVersion")
    );
}

#[test]
fn names_that_kubernetes_would_refuse_are_refused() {
    for metadata in ["{}", "{name: ''}", "{name: A}", "{name: a/b}", "{name: 5}", "{name: a, namespace: b.c}"]
    {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {metadata}\n");
        let parsed = parse("a.yaml", &text);
        assert!(parsed.objects.is_empty() && parsed.has_unknown, "{metadata}");
    }
}

#[test]
fn a_mesh_config_of_the_older_version_is_read_and_of_any_other_the_right_one_is_named() {
    let config = |version: &str| {
        format!(
            "apiVersion: config.openservicemesh.io/{version}\nkind: MeshConfig\nmetadata: {{name: c}}\nspec: {{}}\n"
        )
    };
    assert_eq!(problems(&config("v1alpha2")), Vec::<String>::new());
    assert_eq!(
        problems(&config("v1alpha1")),
        ["a.yaml:1:13: warning: apiVersion: config.openservicemesh.io/v1alpha1 is deprecated: \
             config.openservicemesh.io/v1alpha2 has the same fields"]
    );
    assert_eq!(parse("a.yaml", &config("v1alpha1")).objects.len(), 1);
    assert_eq!(
        problems(&config("v1alpha3")),
        [
            "a.yaml:1:13: error: apiVersion: MeshConfig is not served in version config.openservicemesh.io/v1alpha3: use \
             config.openservicemesh.io/v1alpha2"
        ]
    );
    let backend = "apiVersion: policy.flomesh.io/v1alpha1\nkind: IngressBackend\nmetadata: {name: b}\n";
    assert!(problems(backend)[0].ends_with(": use policy.openservicemesh.io/v1alpha1"));
}

#[test]
fn policies_that_are_not_enforced_are_warned_about_by_kind_and_name() {
    let text = "apiVersion: policy.openservicemesh.io/v1alpha1\nkind: Telemetry\nmetadata: {name: out, namespace: shop}\n---\n\
                apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: app}\n";
    let found: Vec<_> = parse("a.yaml", text).problems;
    let found: Vec<_> = found.iter().map(|p| (p.to_string(), p.object.as_deref().unwrap_or(""))).collect();
    let found: Vec<_> = found.iter().map(|(text, object)| (text.as_str(), *object)).collect();
    assert_eq!(
        found,
        [
            (
                "a.yaml:1:1: warning: Telemetry is not enforced yet: the MeshConfig and flags configure logs and metrics",
                "Telemetry shop/out"
            ),
            ("a.yaml:5:1: info: apps/v1 Deployment is not used by the mesh and is ignored", ""),
        ]
    );
}

#[test]
fn numbers_may_be_quantities() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: a\n    resources: \
                {limits: {cpu: 1, memory: 128Mi}, requests: {cpu: 0.5}}\n";
    assert_eq!(problems(text), Vec::<String>::new());
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut text = "a: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, of) in ('b'..='k').zip('a'..) {
        let items = vec![format!("*{of}"); 10].join(", ");
        text.push_str(&format!("{name}: &{name} [{items}]\n"));
    }
    let parsed = parse("a.yaml", &text);
    assert!(parsed.has_unknown && parsed.objects.is_empty());
}

#[test]
fn a_document_nested_without_end_is_refused() {
    let parsed = parse("a.yaml", &"[".repeat(100_000));
    assert!(parsed.has_unknown && parsed.objects.is_empty());
}

const MANIFESTS: &str = "\
apiVersion: policy.openservicemesh.io/v1alpha1
kind: IngressBackend
metadata: {name: ib, namespace: x}
spec:
  backends: [{name: a, port: {number: 1, protocol: https}, tls: {skipClientCertValidation: false}}]
  sources: [{kind: IPRange, name: 10.0.0.0/8}]
---
apiVersion: v1
kind: Pod
metadata: {name: p, labels: {app: a}}
spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 127.0.0.2, conditions: [{type: Ready, status: 'True'}]}
";

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic_or_points_outside_the_file(
        at in 0..MANIFESTS.len(),
        length in 0..40_usize,
        insert in "[ -~\n\t\u{0}é]{0,12}",
    ) {
        let end = (at + length).min(MANIFESTS.len());
        let text = format!("{}{insert}{}", &MANIFESTS[..at], &MANIFESTS[end..]);
        let parsed = parse("a.yaml", &text);
        let lines = text.lines().count() as u64 + 1;
        for problem in &parsed.problems {
            prop_assert!((1..=lines).contains(&problem.line), "{}", problem);
        }
        for object in &parsed.objects {
            prop_assert!((1..=lines).contains(&object.line));
        }
    }
}
