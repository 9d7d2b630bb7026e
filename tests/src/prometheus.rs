//! A real Prometheus, and the official readers of a page of metrics.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::client::Client;
use crate::kubernetes::cluster::run;
use crate::wait::{self, SOON};

const PROGRAM: &str = "/usr/bin/prometheus";
const PROMTOOL: &str = "/usr/bin/promtool";
/// Debian's, for which python3-prometheus-client is installed; the first one in `PATH` may be another.
const PYTHON: &str = "/usr/bin/python3";
/// Reads a page from standard input and prints the name of each family; fails on violations of the specification.
const PARSER: &str = "import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families
for family in text_string_to_metric_families(sys.stdin.read()):
    print(family.name)";

/// Prometheus in the foreground; killed when dropped.
#[derive(Debug)]
pub struct Prometheus {
    address: SocketAddr,
    child: Child,
}

impl Prometheus {
    /// Starts in `folder`, listens at `address`, and scrapes `targets` once a second.
    #[track_caller]
    pub fn start(folder: &Path, address: SocketAddr, targets: &[SocketAddr]) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing; on Debian: apt-get install prometheus");
        let folder = folder.join("prometheus");
        fs::create_dir_all(&folder).unwrap();
        let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
        let configuration = serde_json::json!({
            "global": {"scrape_interval": "1s", "scrape_timeout": "1s"},
            "scrape_configs": [{"job_name": "mesh", "static_configs": [{"targets": targets}]}],
        });
        // JSON is YAML.
        fs::write(folder.join("prometheus.yml"), configuration.to_string()).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg(format!("--web.listen-address={address}"));
        let log = fs::File::create(folder.join("log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut prometheus = Self { address, child: command.spawn().unwrap() };
        wait::until_true("Prometheus listens", SOON, || {
            let ended = prometheus.child.try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(folder.join("log")).unwrap());
            Client::to(address).connect().is_ok()
        });
        prometheus
    }

    /// The current value of a PromQL expression, a vector: `result` of the HTTP API.
    #[track_caller]
    pub fn query(&self, expression: &str) -> Vec<Value> {
        let target = format!("/api/v1/query?query={}", percent_encoded(expression));
        let request = format!("GET {target} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        let answer = Client::to(self.address).connect().unwrap().request(request.as_bytes()).unwrap();
        result(&answer.text())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `result` of an answer of Prometheus' HTTP API.
#[track_caller]
pub fn result(answer: &str) -> Vec<Value> {
    let answer: Value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"));
    assert_eq!(answer["status"], "success", "{answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

/// The number of an element of a vector.
pub fn value(element: &Value) -> f64 {
    element["value"][1].as_str().unwrap().parse().unwrap()
}

/// Text as part of a URL's query.
pub fn percent_encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// Requests a daemon's metrics in both formats; each must pass its official reader without a remark. Returns the names
/// of the families.
#[track_caller]
pub fn check_page(daemon: SocketAddr) -> Vec<String> {
    let get = |accept: &str| {
        let request = format!(
            "GET /metrics HTTP/1.1\r\nhost: {daemon}\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
        );
        Client::to(daemon).connect().unwrap().request(request.as_bytes()).unwrap().text()
    };
    check_text(&get("text/plain"));
    families(&get("application/openmetrics-text"))
}

/// The only remark of promtool's that is accepted: the name is Istio's.
const ACCEPTED: &str =
    "istio_request_duration_milliseconds use base unit \"seconds\" instead of \"milliseconds\"";

/// `promtool check metrics`, which also lints.
#[track_caller]
pub fn check_text(page: &str) {
    assert!(Path::new(PROMTOOL).exists(), "{PROMTOOL} is missing; on Debian: apt-get install prometheus");
    let mut command = Command::new(PROMTOOL);
    if let Err(failure) = run(command.args(["check", "metrics"]), page) {
        let remarks = failure.stdout.lines().chain(failure.stderr.lines());
        assert!(remarks.clone().count() > 0, "{failure}\n{page}");
        assert!(remarks.into_iter().all(|remark| remark == ACCEPTED), "{failure}\n{page}");
    }
}

/// The families of a page that OpenMetrics' reference parser accepts.
#[track_caller]
pub fn families(page: &str) -> Vec<String> {
    let mut command = Command::new(PYTHON);
    let names = run(command.args(["-c", PARSER]), page).unwrap_or_else(|failure| {
        panic!("{failure}\n{page}\nIf it lacks prometheus_client: apt-get install python3-prometheus-client")
    });
    names.lines().map(str::to_owned).collect()
}
