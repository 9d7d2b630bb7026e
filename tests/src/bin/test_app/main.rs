//! The program in the pods of the Kubernetes suites: servers that answer as httpbin does and report what they saw, and
//! clients that print their result as one line of JSON. Start reading at [`Role`].

// A program of the tests: a panic in it fails one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod capture;
mod client;
mod control_plane;
mod grpc;
mod gunicorn;
mod httpbin;
mod load;
mod tls;

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::{Parser, Subcommand};
use tidegate_tests::app::App;
use tidegate_tests::app::h2c::H2cApp;

#[derive(Debug, Parser)]
#[command(name = "tidegate-test-app")]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

/// The role of this process.
#[derive(Debug, Subcommand)]
enum Role {
    /// Servers, until the process is terminated.
    Serve(Serve),
    /// One GET; prints status, fields and body, or how it failed. Exit code 1 unless there was an answer.
    Get(client::Get),
    /// Sends a line over TCP and prints the answer.
    Tcp(client::Tcp),
    /// Sends a datagram and prints the answer.
    Udp(client::Udp),
    /// One request over TLS with any certificate; prints the answer or how the connection ended.
    Tls(tls::TlsExchange),
    /// Requests a certificate from the certificate authority.
    Certify(control_plane::Certify),
    /// Requests a workload's policy from the controller.
    Discover(control_plane::Discover),
    /// A constant load; `/report` at its own port returns the results.
    Load(load::LoadArguments),
    /// Searches the network for a text until standard input ends.
    Capture(capture::Capture),
    /// Copies a file's content to standard output.
    Cat {
        /// The file.
        file: PathBuf,
    },
    /// Copies standard input into a file.
    Write {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
struct Serve {
    /// Ports with httpbin's answers.
    #[arg(long, value_delimiter = ',')]
    http: Vec<u16>,
    /// Ports with the same over TLS, with a certificate created at start.
    #[arg(long, value_delimiter = ',')]
    https: Vec<u16>,
    /// Ports that send back what they receive.
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<u16>,
    /// Ports that send back each datagram.
    #[arg(long, value_delimiter = ',')]
    udp: Vec<u16>,
    /// Ports that send a greeting first, then send back what they receive.
    #[arg(long, value_delimiter = ',')]
    greet: Vec<u16>,
    /// Ports that answer each request of HTTP/2 without TLS with its own body, as gRPC.
    #[arg(long, value_delimiter = ',')]
    h2c: Vec<u16>,
    /// Ports with gRPC's health service.
    #[arg(long, value_delimiter = ',')]
    grpc: Vec<u16>,
    /// A JSON file with an answer for each path, read each time; every other path is not found.
    #[arg(long)]
    answers: Option<PathBuf>,
    /// Listen at this address only.
    #[arg(long)]
    address: Option<std::net::IpAddr>,
    /// Before all else, at the first instruction: GET of this URL. The process ends with code 1 if it fails.
    #[arg(long)]
    first: Option<client::Url>,
    /// After SIGTERM, continue to serve for this many seconds, as a draining server does: each answer is its
    /// connection's last.
    #[arg(long, default_value_t = 0)]
    drain: u64,
}

fn main() -> ExitCode {
    if let Some(gunicorn) = gunicorn::Gunicorn::if_called_so() {
        return gunicorn.run();
    }
    match Arguments::parse().role {
        Role::Serve(serve) => serve.run(),
        Role::Get(get) => get.run(),
        Role::Tcp(tcp) => tcp.run(),
        Role::Udp(udp) => udp.run(),
        Role::Tls(exchange) => exchange.run(),
        Role::Certify(certify) => certify.run(),
        Role::Discover(discover) => discover.run(),
        Role::Load(load) => load.run(),
        Role::Capture(capture) => capture.run(),
        Role::Cat { file } => {
            print!(
                "{}",
                std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
            );
            ExitCode::SUCCESS
        }
        Role::Write { file } => {
            let content = std::io::read_to_string(std::io::stdin()).unwrap();
            std::fs::write(&file, content).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
            ExitCode::SUCCESS
        }
    }
}

impl Serve {
    fn run(self) -> ExitCode {
        if let Some(url) = &self.first {
            let outcome = client::get(url, &[]);
            println!("{}", client::describe(&outcome));
            if !outcome.is_ok_and(|answer| answer.status() == 200) {
                return ExitCode::FAILURE;
            }
        }
        let at = |port| SocketAddr::from((self.address.unwrap_or(Ipv6Addr::UNSPECIFIED.into()), port));
        let health = httpbin::Health::with_answers(self.answers.clone());
        let mut apps = Vec::new();
        for port in &self.http {
            let health = health.clone();
            apps.push(App::unrecorded(at(*port), move |conversation| httpbin::serve(conversation, &health)));
        }
        apps.extend(self.tcp.iter().map(|port| App::tcp_echo(at(*port))));
        apps.extend(self.greet.iter().map(|port| App::server_first(at(*port), b"220 ready\r\n")));
        let _h2c: Vec<_> = self.h2c.iter().map(|port| H2cApp::unrecorded(at(*port))).collect();
        for port in &self.udp {
            udp_echo(at(*port));
        }
        for port in &self.https {
            tls::serve(at(*port), health.clone());
        }
        for port in &self.grpc {
            grpc::serve(at(*port), health.clone());
        }
        wait_for_end();
        health.drain();
        thread::park_timeout(Duration::from_secs(self.drain));
        ExitCode::SUCCESS
    }
}

/// Sends each datagram back to its sender, in a thread of its own.
fn udp_echo(address: SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap_or_else(|error| panic!("udp at {address}: {error}"));
    thread::spawn(move || {
        let mut datagram = [0; 2048];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut datagram) else { continue };
            // A client that has left needs no answer.
            let _ = socket.send_to(&datagram[..length], from);
        }
    });
}

/// Until SIGTERM or SIGINT. The first process of a container has no default action for them.
fn wait_for_end() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).unwrap();
        tokio::select! {
            _ = end.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    });
}
