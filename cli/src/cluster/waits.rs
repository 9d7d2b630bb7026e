//! Finds init containers that wait for a server only by connecting. In the mesh such a wait ends before the server is
//! up: the kernel accepts each connection for the sidecar, and the sidecar resets it if no server listens at the
//! address.
//!
//! What a container does is guessed from its command line: the usual scripts (`wait-for-it`, `nc -z`, `dockerize`,
//! bash's `/dev/tcp`). Other ways to wait are not recognized, and a command that only looks like one leads to a
//! warning, never to a failure.

use k8s_openapi::api::core::v1::{Container, Pod};
use kube::api::ResourceExt;
use tidegate_core::contract::annotations::OUTBOUND_PORT_EXCLUSIONS;

/// The names of those containers, as far as their commands show it. Empty if the Pod excludes outbound ports: the wait
/// may be for one of them.
pub(crate) fn by_connecting(pod: &Pod) -> Vec<String> {
    if pod.annotations().contains_key(OUTBOUND_PORT_EXCLUSIONS) {
        return Vec::new();
    }
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    containers.filter(|container| connects(container)).map(|container| container.name.clone()).collect()
}

/// Whether the command line calls one of the programs in the way that only connects.
fn connects(container: &Container) -> bool {
    let words = container.command.iter().chain(&container.args).flatten();
    let words: Vec<&str> = words.flat_map(|word| word.split_whitespace()).collect();
    let is_called = |names: &[&str]| {
        words.iter().any(|word| {
            let program = word.trim_matches(['(', ')', ';', '!', '"', '\'']).rsplit('/').next();
            program.is_some_and(|program| names.contains(&program))
        })
    };
    let scans =
        || words.iter().any(|word| word.starts_with('-') && !word.starts_with("--") && word.contains('z'));
    let asks_tcp = || words.iter().any(|word| word.starts_with("tcp://"));
    is_called(&["wait-for-it", "wait-for-it.sh", "wait-for", "wait-for.sh"])
        || words.iter().any(|word| word.contains("/dev/tcp/"))
        || (is_called(&["nc", "ncat", "netcat"]) && scans())
        || (is_called(&["dockerize"]) && asks_tcp())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn waits(annotations: Value, command: Value, args: Value) -> bool {
        let container = json!({"name": "wait", "command": command, "args": args});
        let pod = json!({
            "metadata": {"name": "a", "annotations": annotations},
            "spec": {"containers": [], "initContainers": [{"name": "migrate", "args": ["up"]}, container]},
        });
        let found = by_connecting(&serde_json::from_value(pod).unwrap());
        assert!(found.is_empty() || found == ["wait"], "{found:?}");
        !found.is_empty()
    }

    #[test]
    fn a_wait_for_a_connection_differs_from_one_for_an_answer() {
        for command in [
            json!(["sh", "-c", "until nc -z db 5432; do sleep 1; done"]),
            json!(["/bin/nc", "-vz", "db", "5432"]),
            json!(["sh", "-c", "while ! nc -w1 -z db 5432; do sleep 1; done"]),
            json!(["bash", "-c", "until (echo > /dev/tcp/db/5432); do sleep 1; done"]),
            json!(["/wait-for-it.sh", "db:5432"]),
            json!(["dockerize", "-wait", "tcp://db:5432"]),
        ] {
            assert!(waits(json!({}), command.clone(), json!([])), "{command}");
            assert!(waits(json!({}), json!([]), command.clone()), "{command}");
            let excluded = json!({"openservicemesh.io/outbound-port-exclusion-list": "5432"});
            assert!(!waits(excluded, command, json!([])));
        }
        for command in [
            json!(["sh", "-c", "until pg_isready -h db; do sleep 1; done"]),
            json!(["curl", "-z", "now", "http://db"]),
            json!(["tar", "-xzf", "a"]),
            json!(["migrate", "tcp://db:3306"]),
            json!(["tidegate-sidecar", "wait", "--for", "tcp://db:5432"]),
            json!(["wait", "--for=tcp://db:5432"]),
        ] {
            assert!(!waits(json!({}), command.clone(), json!([])), "{command}");
        }
    }
}
