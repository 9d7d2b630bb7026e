use serde_json::json;
use tidegate_core::contract::labels::{CONTROL_PLANE, IGNORE, INJECTION, MONITORED_BY};

use super::*;

fn namespace(labels: serde_json::Value) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
}

#[test]
fn a_namespace_is_outside_until_it_says_that_it_is_in_and_learns_what_to_do() {
    let mut mesh = MeshNamespaces::new(Some("osm"));
    let add = "`tidegate namespace add shop` puts it in";
    assert_eq!(mesh.outside("shop").unwrap(), format!("namespace shop is in no mesh: {add}"));
    assert!(mesh.apply(&namespace(json!({MONITORED_BY: "osm"}))));
    assert_eq!(mesh.outside("shop"), None);
    assert!(!mesh.apply(&namespace(json!({MONITORED_BY: "osm", "unrelated": "x"}))));
    for label in [IGNORE, CONTROL_PLANE] {
        assert!(mesh.apply(&namespace(json!({MONITORED_BY: "osm", label: "true"}))));
        let reason = format!("namespace shop has the label {label}: {add} once that is gone");
        assert_eq!(mesh.outside("shop").unwrap(), reason);
    }
    mesh.remove("shop");
    assert!(mesh.outside("shop").is_some());
}

#[test]
fn another_mesh_s_namespace_is_not_ours_to_speak_of() {
    let mut mesh = MeshNamespaces::new(Some("osm"));
    assert!(!mesh.is_others("shop"));
    mesh.apply(&namespace(json!({MONITORED_BY: "blue"})));
    assert!(mesh.is_others("shop"));
    let reason = mesh.outside("shop").unwrap();
    assert_eq!(reason, "namespace shop is in mesh \"blue\", not in \"osm\", by its labels");
    let mut mesh = MeshNamespaces::new(Some("blue"));
    mesh.apply(&namespace(json!({INJECTION: "enabled"})));
    assert!(mesh.is_others("shop"), "it is in the mesh of the default name");
}

#[test]
fn in_a_folder_every_namespace_is_in() {
    let mut mesh = MeshNamespaces::new(None);
    assert!(!mesh.apply(&namespace(json!({IGNORE: "true", MONITORED_BY: "blue"}))));
    assert!(mesh.outside("shop").is_none() && !mesh.is_others("shop") && !mesh.knows_every_pod());
}
