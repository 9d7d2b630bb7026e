//! A minimal API server for the injector: lists that never change.

use std::net::SocketAddr;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};
use tidegate_tests::app::App;

/// Serves a namespace `shop` of the mesh, and the injector's webhook configuration with these roots.
pub(crate) fn start(address: SocketAddr, bundle: &str) -> App {
    let roots = BASE64_STANDARD.encode(bundle);
    App::unrecorded(address, move |conversation| {
        while let Some(request) = conversation.request()? {
            let (path, query) = request.target().split_once('?').unwrap_or((request.target(), ""));
            if query.contains("watch=") {
                conversation.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n",
                )?;
                conversation.hold()?;
                return Ok(());
            }
            let body = answer(path, &roots).to_string();
            let length = body.len();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
            );
            conversation.write(format!("{head}{body}").as_bytes())?;
        }
        Ok(())
    })
}

/// A kubeconfig for it.
pub(crate) fn kubeconfig(address: SocketAddr) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lists",
        "contexts": [{"name": "lists", "context": {"cluster": "lists", "user": "lists"}}],
        "clusters": [{"name": "lists", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "lists", "user": {}}],
    })
    .to_string()
}

fn answer(path: &str, roots: &str) -> Value {
    let metadata = |name: &str| json!({"name": name, "uid": name, "resourceVersion": "1"});
    let items = match path.rsplit('/').next().unwrap_or_default() {
        "version" => return json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0"}),
        "namespaces" => {
            let mut metadata = metadata("shop");
            metadata["labels"] = json!({"tidegate.io/injection": "enabled"});
            json!([{"metadata": metadata}])
        }
        "mutatingwebhookconfigurations" => json!([{
            "metadata": metadata("tidegate-injector"),
            "webhooks": [{
                "name": "a.tidegate.io",
                "clientConfig": {
                    "service": {"name": "tidegate-injector", "namespace": "tidegate-system"},
                    "caBundle": roots,
                },
                "admissionReviewVersions": ["v1"],
                "sideEffects": "None",
            }],
        }]),
        _ => json!([]),
    };
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": items})
}
