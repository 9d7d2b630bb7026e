//! The admin servers of pods, which only their own loopback reaches.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Stdio};

use super::Cluster;
use crate::client::Client;
use crate::http1::Message;

/// The admin port of every pod of the mesh.
const ADMIN: u16 = 15000;

/// A port-forward to a pod's admin server; it ends when it is dropped.
#[derive(Debug)]
pub struct Admin {
    process: Child,
    address: SocketAddr,
}

impl Admin {
    /// To this pod.
    #[track_caller]
    pub fn of(cluster: &Cluster, namespace: &str, pod: &str) -> Self {
        let mut command = cluster.command(cluster.kubectl_program());
        command.args(["port-forward", "-n", namespace, pod, &format!(":{ADMIN}"), "--address=127.0.0.1"]);
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        // Forwarding from 127.0.0.1:40123 -> 15000
        let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
        let port: Option<u16> = port.and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("port-forward to {namespace}/{pod}: {line:?}"));
        Self { process, address: (Ipv4Addr::LOCALHOST, port).into() }
    }

    /// The answer to a GET.
    #[track_caller]
    pub fn get(&self, path: &str) -> Message {
        self.request(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"))
    }

    /// The answer to a PUT.
    #[track_caller]
    pub fn put(&self, path: &str, body: &str) -> Message {
        let length = body.len();
        self.request(&format!(
            "PUT {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
        ))
    }

    #[track_caller]
    fn request(&self, request: &str) -> Message {
        let result = Client::to(self.address)
            .connect()
            .and_then(|mut connection| connection.request(request.as_bytes()));
        result.unwrap_or_else(|end| panic!("{}: {end:?}", request.lines().next().unwrap_or_default()))
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
