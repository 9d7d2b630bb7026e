//! Clients that make one request and print the result.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tidegate_tests::client::{Client, Connection, End};
use tidegate_tests::http1::Message;

/// `http://host[:port]/path`.
#[derive(Clone, Debug)]
pub(crate) struct Url {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) path: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// URLs to get: http://host[:port]/path. With several, prints a line for each.
    #[arg(required = true)]
    urls: Vec<Url>,
    /// Fields to send, as `name: value`.
    #[arg(long)]
    header: Vec<String>,
    /// Retry until the status is this one.
    #[arg(long)]
    until: Option<u16>,
    /// Exit code 1 unless the status is this one.
    #[arg(long)]
    expect: Option<u16>,
    /// Seconds to retry.
    #[arg(long, default_value_t = 10)]
    within: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Tcp {
    /// host:port.
    target: String,
    /// The line to send; without it, the server's first words are read.
    line: Option<String>,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 10)]
    within: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Udp {
    /// host:port.
    target: String,
    /// The datagram to send.
    text: String,
    /// Seconds to wait for an answer.
    #[arg(long, default_value_t = 5)]
    within: u64,
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("http://").ok_or_else(|| format!("{text:?}: http:// is missing"))?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') && !port.ends_with(']') => {
                (host, port.parse().map_err(|error| format!("{text:?}: port: {error}"))?)
            }
            _ => (authority, 80),
        };
        Ok(Self { host: host.to_owned(), port, path: format!("/{path}") })
    }
}

impl Url {
    /// As `host:port`.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The request for it.
    pub(crate) fn request(&self, headers: &[String]) -> String {
        let lines: String = headers.iter().map(|line| format!("{line}\r\n")).collect();
        format!("GET {} HTTP/1.1\r\nhost: {}\r\n{lines}\r\n", self.path, self.authority())
    }

    /// A connection to it.
    pub(crate) fn connect(&self) -> Result<Connection, String> {
        let address = resolve(&self.authority())?;
        Client::to(address).connect().map_err(|end| format!("connect: {}", name(&end)))
    }
}

impl Get {
    pub(crate) fn run(&self) -> ExitCode {
        let deadline = Instant::now() + Duration::from_secs(self.within);
        let bad = self.urls.iter().filter(|url| !self.is_good(url, deadline)).count();
        ExitCode::from(u8::from(bad > 0))
    }

    fn is_good(&self, url: &Url, deadline: Instant) -> bool {
        loop {
            let outcome = get(url, &self.header);
            let status = outcome.as_ref().map_or(0, Message::status);
            if self.until.is_none_or(|wanted| wanted == status) || Instant::now() >= deadline {
                println!("{}", describe(&outcome));
                return outcome.is_ok() && self.expect.is_none_or(|wanted| wanted == status);
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

impl Tcp {
    pub(crate) fn run(&self) -> ExitCode {
        print_answer(self.exchange())
    }

    fn exchange(&self) -> Result<String, String> {
        let mut connection =
            Client::to(resolve(&self.target)?).connect().map_err(|end| format!("connect: {}", name(&end)))?;
        if let Some(line) = &self.line {
            connection.write(format!("{line}\n").as_bytes());
        }
        let bytes = connection.read(Duration::from_secs(self.within)).map_err(|end| name(&end))?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    }
}

impl Udp {
    pub(crate) fn run(&self) -> ExitCode {
        print_answer(resolve(&self.target).and_then(|target| {
            self.exchange(target).map_err(|error| match error.kind() {
                // Which of the two depends on whether the kernel is faster than the rule's answer.
                ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied => "refused".to_owned(),
                kind => kind.to_string(),
            })
        }))
    }

    fn exchange(&self, target: SocketAddr) -> io::Result<String> {
        let any: IpAddr =
            if target.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(Duration::from_secs(self.within)))?;
        socket.connect(target)?;
        socket.send(self.text.as_bytes())?;
        let mut datagram = [0; 2048];
        let length = socket.recv(&mut datagram)?;
        Ok(String::from_utf8_lossy(&datagram[..length]).into_owned())
    }
}

/// `{"answer": …}` or `{"error": …}`.
fn print_answer(outcome: Result<String, String>) -> ExitCode {
    let (value, code) = match outcome {
        Ok(answer) => (json!({"answer": answer}), ExitCode::SUCCESS),
        Err(error) => (json!({"error": error}), ExitCode::FAILURE),
    };
    println!("{value}");
    code
}

/// One GET on its own connection.
pub(crate) fn get(url: &Url, headers: &[String]) -> Result<Message, String> {
    url.connect()?.request(url.request(headers).as_bytes()).map_err(|end| name(&end))
}

/// As a line of JSON.
pub(crate) fn describe(outcome: &Result<Message, String>) -> Value {
    match outcome {
        Ok(answer) => json!({
            "status": answer.status(),
            "fields": answer.fields,
            "body": serde_json::from_slice(&answer.body).unwrap_or_else(|_| Value::String(answer.text())),
        }),
        Err(error) => json!({"error": error}),
    }
}

/// How a connection ended, as one word.
pub(crate) fn name(end: &End) -> String {
    match end {
        End::Closed => "closed".to_owned(),
        End::Truncated => "truncated".to_owned(),
        End::Reset => "reset".to_owned(),
        End::Alert(number) => format!("alert {number}"),
        End::OwnRefusal(why) => format!("refused: {why}"),
        End::StillOpen => "timeout".to_owned(),
    }
}

/// The first address of a name.
pub(crate) fn resolve(target: &str) -> Result<SocketAddr, String> {
    let mut addresses = target.to_socket_addrs().map_err(|error| format!("resolve {target}: {error}"))?;
    addresses.next().ok_or_else(|| format!("resolve {target}: no address"))
}
