//! Two machines without Kubernetes, as network namespaces: with the same folder and the same root they are one mesh.
//! Requires root.

// Test helpers may panic, too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use tidegate_tests::app::App;
use tidegate_tests::client::{Client, End, RequestOutcome};
use tidegate_tests::daemon::Daemon;
use tidegate_tests::files::replace;
use tidegate_tests::netns::node::{Node, NodePod};
use tidegate_tests::wait::{self, SOON};

const OK: RequestOutcome = RequestOutcome::Status(200);
const ADMIN: &str = "127.0.0.1:15000";

/// A machine that runs `tidegate standalone`.
struct Machine {
    host: NodePod,
    process: Daemon,
    state: PathBuf,
}

impl Machine {
    /// Starts in the folder `path`, which has the manifests.
    fn start(host: NodePod, path: &Path, name: &str, root: Option<&Path>) -> Self {
        let state = path.join(name);
        if let Some(root) = root {
            fs::create_dir(&state).unwrap();
            let copied = Command::new("cp").arg("-a").arg(root).arg(state.join("ca")).status().unwrap();
            assert!(copied.success());
        }
        let arguments = [
            ("--folder", path.join("manifests").display().to_string()),
            ("--state-dir", state.display().to_string()),
            ("--admin-address", ADMIN.to_owned()),
            ("--access-log-file", path.join(format!("{name}.access.log")).display().to_string()),
        ];
        let arguments = arguments.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]);
        let arguments = std::iter::once("standalone".to_owned()).chain(arguments).collect();
        let mut process = Daemon::new("tidegate", name, path, arguments, Some(address(ADMIN)));
        host.namespace().run(|| process.start_ready());
        Self { host, process, state }
    }

    fn get(&self, address: SocketAddr) -> RequestOutcome {
        self.host.namespace().run(|| Client::to(address).get("/get"))
    }

    /// The lines of its sidecars' access log.
    fn records(&self) -> Vec<Value> {
        let log = fs::read_to_string(self.state.with_extension("access.log")).unwrap_or_default();
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// The example's manifests, with the addresses of these machines.
fn write_manifests(path: &Path, web: &NodePod, cart: &NodePod) {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/machines/shop.yaml");
    let text = fs::read_to_string(example).unwrap();
    let text = text.replace("192.0.2.1\n", &format!("{}\n", web.ips()[0]));
    let text = text.replace("192.0.2.2\n", &format!("{}\n", cart.ips()[0]));
    fs::create_dir(path.join("manifests")).unwrap();
    replace(&path.join("manifests/shop.yaml"), &text);
}

fn two_machines() -> (Node, Machine, Machine, TempDir) {
    let (node, folder) = (Node::new(), tempfile::tempdir().unwrap());
    let (web, cart) = (node.pod(), node.pod());
    write_manifests(folder.path(), &web, &cart);
    let web = Machine::start(web, folder.path(), "web", None);
    let cart = Machine::start(cart, folder.path(), "cart", Some(&web.state.join("ca")));
    (node, web, cart, folder)
}

#[test]
fn two_machines_with_the_same_folder_and_root_are_one_mesh() {
    let (_node, web, cart, _folder) = two_machines();
    let _app = cart.host.namespace().run(|| App::echo(address("127.0.0.1:8080")));
    let served = address(&format!("{}:8080", cart.host.ips()[0]));
    wait::until_true("web's app reaches cart", SOON, || web.get(address("127.0.0.1:9000")) == OK);

    let account = |name: &str| format!("spiffe://cluster.local/ns/shop/sa/{name}");
    wait::until_true("cart's sidecar has verified web's", SOON, || {
        cart.records().iter().any(|record| record.to_string().contains(&account("web")))
    });
    assert_eq!(web.get(served), RequestOutcome::Refused(End::Reset), "in plaintext");
    let runs =
        |machine: &Machine, pod: &str| machine.process.log().contains(&format!("workload=\"shop/{pod}\""));
    assert!(runs(&web, "web") && !runs(&web, "cart"), "{}", web.process.log());
    assert!(runs(&cart, "cart") && !runs(&cart, "web"), "{}", cart.process.log());
}

#[test]
fn a_machine_with_another_root_is_another_mesh() {
    let (node, folder) = (Node::new(), tempfile::tempdir().unwrap());
    let (web, cart) = (node.pod(), node.pod());
    write_manifests(folder.path(), &web, &cart);
    let web = Machine::start(web, folder.path(), "web", None);
    let cart = Machine::start(cart, folder.path(), "cart", None);
    let _app = cart.host.namespace().run(|| App::echo(address("127.0.0.1:8080")));
    assert_eq!(web.get(address("127.0.0.1:9000")), RequestOutcome::Status(503));
    wait::until_true("web's sidecar says why", SOON, || {
        web.records().iter().any(|record| record["response_flags"] == "UF")
    });
}
