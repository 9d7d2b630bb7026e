use serde_json::{Value, json};

use super::*;

fn of(metadata: &Value) -> MeshMembership {
    read(&json!({ "metadata": metadata }).to_string(), "osm", "tidegate-system").unwrap().value
}

#[test]
fn a_namespace_takes_no_more_than_what_is_read_of_it_whatever_its_author_puts_in() {
    let many = |count: usize| (0..count).map(|i| (format!("a{i:06}"), Value::from("x"))).collect::<Value>();
    let mut labels = many(50_000);
    labels["openservicemesh.io/monitored-by"] = "osm".into();
    let fields: Value = (0..20_000).map(|i| (format!("f:{i}"), json!({}))).collect();
    let metadata = json!({
        "name": "shop", "labels": labels, "annotations": many(20_000), "managedFields": [{"fieldsV1": fields}],
    });
    let text = json!({"metadata": metadata, "spec": {"finalizers": vec!["kubernetes"; 1000]}}).to_string();
    let held = allocation_counter::measure(|| {
        let MirroredObject { name, value } = read(&text, "osm", "tidegate-system").unwrap();
        assert_eq!(name, named("", "shop"));
        assert_eq!(value, MeshMembership { is_ours: true, is_going: false, labels: None });
    });
    assert!(held.bytes_max < 32 << 10, "{} bytes for {} of text", held.bytes_max, text.len());
}

#[test]
fn labels_are_kept_for_selectors_as_long_as_there_are_not_too_many() {
    let labels = |count: usize| (0..count).map(|i| (format!("l{i}"), Value::from("x"))).collect::<Value>();
    let kept = |labels: Value| of(&json!({"name": "a", "labels": labels})).labels.map(|labels| labels.len());
    assert_eq!((kept(Value::Null), kept(labels(128)), kept(labels(129))), (Some(0), Some(128), None));
    let is_going = json!({"name": "tidegate-system", "deletionTimestamp": "2026-01-01T00:00:00Z"});
    assert_eq!(of(&is_going), MeshMembership { is_ours: true, is_going: true, labels: Some(Arc::default()) });
}
