//! A real nginx with what ingress-nginx renders for a backend.
//!
//! The directives are those that ingress-nginx's template writes for the same annotations, so that a client's
//! behaviour on retries, keep-alive and reload is that of the controller that users have.

use std::fmt::Write;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Pid, Signal};

use crate::client::Client;
use crate::http1::Message;
use crate::wait::{self, SOON};

/// Debian's path; a missing nginx is an error of the test.
const PROGRAM: &str = "/usr/sbin/nginx";

/// A backend, as an Ingress's annotations define it.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Where requests go.
    pub target: SocketAddr,
    /// `backend-protocol: HTTPS`, and its settings.
    pub tls: Option<ProxySsl>,
}

/// `proxy-ssl-*`.
#[derive(Clone, Debug)]
pub struct ProxySsl {
    /// Folder with `ca.crt`, `tls.crt` and `tls.key`.
    pub secret: PathBuf,
    /// Whether nginx presents the certificate.
    pub shows_certificate: bool,
    /// `proxy_ssl_name`.
    pub name: String,
    /// `proxy_ssl_server_name`.
    pub sends_server_name: bool,
    /// `proxy_ssl_protocols`.
    pub protocols: &'static str,
}

/// nginx in the foreground, as an ingress controller runs it; ended when dropped.
#[derive(Debug)]
pub struct Nginx {
    process: NginxProcess,
    source: IpAddr,
    front: SocketAddr,
    reloads: usize,
}

/// nginx in the foreground with a configuration of the caller's; ended with its workers when dropped.
#[derive(Debug)]
pub struct NginxProcess {
    folder: PathBuf,
    child: Child,
}

impl ProxySsl {
    /// ingress-nginx's defaults with `proxy-ssl-verify: on`.
    pub fn new(secret: impl Into<PathBuf>, name: &str) -> Self {
        Self {
            secret: secret.into(),
            shows_certificate: true,
            name: name.to_owned(),
            sends_server_name: false,
            protocols: "TLSv1.2",
        }
    }

    /// The directives of the annotations `proxy-ssl-*`.
    fn directives(&self) -> String {
        let folder = self.secret.display();
        let mut lines = String::new();
        if self.shows_certificate {
            writeln!(lines, "proxy_ssl_certificate {folder}/tls.crt;").unwrap();
            writeln!(lines, "proxy_ssl_certificate_key {folder}/tls.key;").unwrap();
        }
        writeln!(lines, "proxy_ssl_trusted_certificate {folder}/ca.crt;").unwrap();
        writeln!(lines, "proxy_ssl_ciphers DEFAULT;").unwrap();
        writeln!(lines, "proxy_ssl_protocols {};", self.protocols).unwrap();
        writeln!(lines, "proxy_ssl_verify on;").unwrap();
        writeln!(lines, "proxy_ssl_verify_depth 1;").unwrap();
        writeln!(lines, "proxy_ssl_name {};", self.name).unwrap();
        writeln!(lines, "proxy_ssl_server_name {};", if self.sends_server_name { "on" } else { "off" })
            .unwrap();
        lines
    }
}

impl Nginx {
    /// Starts in `folder`, listens at `front`, connects from `source`.
    pub fn start(folder: &Path, front: SocketAddr, source: IpAddr, backend: &Backend) -> Self {
        let process =
            NginxProcess::start(&folder.join("nginx"), front, &configuration(front, source, backend));
        Self { process, source, front, reloads: 0 }
    }

    /// Switches to another backend by a reload, as ingress-nginx does.
    pub fn reload(&mut self, backend: &Backend) {
        self.process.configure(&configuration(self.front, self.source, backend));
        self.reloads += 1;
        self.process.signal(Signal::HUP);
        wait::until_true("nginx has reloaded", SOON, || {
            let log = self.error_log();
            // Old workers still accept until they receive the signal; the reload is over when they have ended.
            log.matches("gracefully shutting down").count() >= self.reloads
                && log.matches("start worker process ").count() > self.reloads
        });
    }

    /// GET through it, on its own connection.
    #[track_caller]
    pub fn get(&self, path: &str) -> Message {
        let request = format!("GET {path} HTTP/1.1\r\nHost: httpbin.example\r\nConnection: close\r\n\r\n");
        let result = Client::to(self.front).connect().and_then(|mut front| front.request(request.as_bytes()));
        result.unwrap_or_else(|end| panic!("nginx: {end:?}"))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.front
    }

    /// Its error log.
    pub fn error_log(&self) -> String {
        self.process.error_log()
    }
}

impl NginxProcess {
    /// Starts in `folder`, in the network namespace of the thread, and waits until it listens at `front`. The configuration
    /// has `daemon off` and `error_log logs/error.log notice`.
    pub fn start(folder: &Path, front: SocketAddr, configuration: &str) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing; on Debian: apt-get install nginx");
        fs::create_dir_all(folder.join("logs")).unwrap();
        fs::write(folder.join("nginx.conf"), configuration).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("-p").arg(folder).args(["-c", "nginx.conf", "-e", "logs/error.log"]);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut nginx = Self { folder: folder.to_owned(), child };
        wait::until_true("nginx listens", SOON, || {
            assert!(nginx.child.try_wait().unwrap().is_none(), "nginx ended: {}", nginx.error_log());
            // It listens before it has workers, and forgets a signal that comes before these.
            nginx.error_log().contains("start worker process ") && Client::to(front).connect().is_ok()
        });
        nginx
    }

    fn configure(&self, configuration: &str) {
        fs::write(self.folder.join("nginx.conf"), configuration).unwrap();
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn error_log(&self) -> String {
        fs::read_to_string(self.folder.join("logs/error.log")).unwrap_or_default()
    }
}

impl Drop for NginxProcess {
    fn drop(&mut self) {
        // The master stops its workers only when it is terminated by a signal that it can handle.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("---- nginx\n{}", self.error_log());
        }
    }
}

/// The whole configuration, for a user without root as well.
fn configuration(front: SocketAddr, source: IpAddr, backend: &Backend) -> String {
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let http = http_block(&front.to_string(), &format!("proxy_bind {source};"), backend);
    format!(
        r#"{user}daemon off;
worker_processes 1;
pid nginx.pid;
error_log logs/error.log notice;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{http}
}}
"#
    )
}

/// What ingress-nginx renders for one backend, for use within `http {}`. `more` is one more directive of the location.
pub(crate) fn http_block(listen: &str, more: &str, backend: &Backend) -> String {
    let scheme = if backend.tls.is_some() { "https" } else { "http" };
    let proxy = backend.tls.as_ref().map(ProxySsl::directives).unwrap_or_default();
    let target = backend.target;
    format!(
        r#"    keepalive_timeout 75s;
    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' '';
    }}
    upstream upstream_balancer {{
        server {target};
        keepalive 320;
        keepalive_time 1h;
        keepalive_timeout 60s;
        keepalive_requests 10000;
    }}
    server {{
        listen {listen};
        server_name _;
        location / {{
            client_max_body_size 0;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Request-ID $request_id;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port $server_port;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Scheme $scheme;
            proxy_set_header X-Scheme $scheme;
            proxy_set_header X-Original-Forwarded-For $http_x_forwarded_for;
            proxy_set_header Proxy "";
            proxy_connect_timeout 5s;
            proxy_send_timeout 60s;
            proxy_read_timeout 60s;
            proxy_buffering off;
            proxy_http_version 1.1;
            proxy_cookie_domain off;
            proxy_cookie_path off;
            proxy_next_upstream error timeout;
            proxy_next_upstream_tries 3;
            {more}
            {proxy}
            proxy_pass {scheme}://upstream_balancer;
            proxy_redirect off;
        }}
    }}"#
    )
}
