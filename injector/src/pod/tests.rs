//! What is kept of a Pod is bounded by what is read of it.

use serde_json::{Value, json};

use super::*;

const MIB: usize = 1 << 20;
/// What is sent.
const SENT: usize = MIB;

fn repeated(item: &str, bytes: usize) -> String {
    format!("[{}]", vec![item; bytes / (item.len() + 1)].join(","))
}

fn pod_with(field: &str, value: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"a"}},"spec":{{"{field}":{value},"containers":[{{"name":"a","image":"a"}}]}}}}"#
    )
}

/// Bytes that reading it takes at most, and whether it can be read.
fn cost(json: &str) -> (u64, bool) {
    let mut is_read = false;
    let info = allocation_counter::measure(|| is_read = PodView::parse(json).is_ok());
    (info.bytes_max, is_read)
}

#[test]
fn whatever_is_sent_takes_no_more_than_its_double_and_four_mebibytes() {
    let container = |field: &str, value: &str| {
        format!(r#"{{"spec":{{"containers":[{{"name":"a","{field}":{value}}}]}}}}"#)
    };
    let probe = |value: &str| container("livenessProbe", value);
    let lists = ["{}", "[]", "0", "null", r#""""#, r#"{"name":""}"#].map(|item| repeated(item, SENT));
    let mut pods = Vec::new();
    for list in &lists {
        for field in ["volumes", "initContainers", "ephemeralContainers", "tolerations", "nodeSelector", "os"]
        {
            pods.push(pod_with(field, list));
        }
        for field in ["ports", "env", "volumeMounts", "args", "command", "securityContext", "name"] {
            pods.push(container(field, list));
        }
        pods.push(container("securityContext", &format!(r#"{{"capabilities":{{"add":{list}}}}}"#)));
        pods.push(probe(&format!(r#"{{"httpGet":{{"port":80,"httpHeaders":{list}}}}}"#)));
        pods.push(probe(&format!(r#"{{"httpGet":{{"port":{list}}}}}"#)));
        pods.push(format!(r#"{{"metadata":{{"annotations":{{"tidegate.io/a":{list}}},"name":{list}}}}}"#));
        pods.push(format!(r#"{{"metadata":{{"ownerReferences":{list}}},"status":{list}}}"#));
    }
    let entries = |prefix: &str| {
        let entries: Vec<_> = (0..SENT / 30).map(|n| format!(r#""{prefix}{n}":"""#)).collect();
        format!(r#"{{"metadata":{{"annotations":{{{}}}}}}}"#, entries.join(","))
    };
    pods.extend([entries("example.com/"), entries("tidegate.io/")]);
    // Many containers with as much as possible in each.
    let full = json!({
        "name": "a",
        "ports": vec![json!({"containerPort": 1}); 100],
        "livenessProbe": {"httpGet": {"port": 1, "httpHeaders": vec![json!({"name": "", "value": ""}); 50]}},
        "lifecycle": {"preStop": {"httpGet": {"port": "a"}}},
    })
    .to_string();
    pods.push(pod_with("initContainers", &repeated(&full, SENT)));
    for pod in pods {
        let (bytes, _) = cost(&pod);
        assert!(bytes < (2 * SENT + 4 * MIB) as u64, "{bytes} bytes for {}…", &pod[..120]);
    }
    let (bytes, is_read) = cost(&pod_with("volumes", &lists[0]));
    assert!(is_read && bytes < 4096, "volumes that are not ours are not kept: {bytes} bytes");
}

#[test]
fn a_list_that_is_too_long_is_refused_by_its_field_and_one_that_can_be_is_read() {
    let error = |json: &str| PodView::parse(json).unwrap_err().to_string();
    let many = |count: usize| format!("[{}]", vec![r#"{"name":"a"}"#; count].join(","));
    assert!(PodView::parse(&pod_with("initContainers", &many(1000))).is_ok());
    for field in ["initContainers", "ephemeralContainers"] {
        let text = error(&pod_with(field, &many(1001)));
        assert!(text.starts_with(&format!("spec.{field} has more than 1000 items")), "{text}");
    }
    let text = error(r#"{"spec":{"containers":[{"name":"a"},{"name":7}]}}"#);
    assert!(text.starts_with("spec.containers[1]: "), "{text}");
    let ports = format!("[{}]", vec![r#"{"containerPort":1}"#; 1001].join(","));
    let text = error(&format!(r#"{{"spec":{{"containers":[{{"name":"a","ports":{ports}}}]}}}}"#));
    assert!(text.starts_with("spec.containers[0]: ports has more than 1000 items"), "{text}");
}

#[test]
fn null_and_missing_are_the_same_and_unknown_fields_are_passed_over() {
    let null = json!({
        "metadata": {"labels": null, "annotations": null, "name": null},
        "spec": {
            "containers": null, "initContainers": null, "ephemeralContainers": null, "volumes": null,
            "securityContext": null, "nodeSelector": null, "os": null, "hostNetwork": null, "new": [{"a": 1}],
        },
    });
    let json = null.to_string();
    let pod = PodView::parse(&json).unwrap();
    let spec = pod.spec.unwrap();
    assert!(spec.containers.is_empty() && spec.init_containers.is_none() && spec.volumes.is_none());
    assert!(pod.metadata.annotations.is_none());
    let fields = ["ports", "volumeMounts", "livenessProbe", "lifecycle", "securityContext", "restartPolicy"];
    let container: Value = fields.iter().map(|field| ((*field).to_owned(), Value::Null)).collect();
    let json = json!({"spec": {"containers": [container]}}).to_string();
    assert_eq!(PodView::parse(&json).unwrap().spec.unwrap().containers.len(), 1);
}

#[test]
fn one_of_our_containers_that_is_larger_than_we_make_them_is_not_read() {
    let sidecar = json!({"name": "tidegate-sidecar", "restartPolicy": "Always", "args": ["--probes=[]"]});
    let of = |sidecar: &Value| {
        let json = json!({"spec": {"containers": [], "initContainers": [sidecar]}}).to_string();
        PodView::parse(&json).unwrap().sidecar().unwrap().arguments()
    };
    assert_eq!(of(&sidecar), Some(vec!["--probes=[]".to_owned()]));
    let mut large = sidecar;
    large["image"] = json!("x".repeat(MIB));
    assert_eq!(of(&large), None);
}
