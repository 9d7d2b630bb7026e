//! `openssl s_client`, for versions that our own client does not support and as a second opinion on alerts.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::pki::Credentials;

/// What `openssl s_client` saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientResult {
    /// The server's alert.
    pub alert: Option<u8>,
    /// All its output.
    pub output: String,
}

/// Connects with these arguments and, if the handshake succeeds, sends GET.
pub fn s_client(
    target: SocketAddr,
    folder: &Path,
    credentials: Option<&Credentials>,
    arguments: &[&str],
) -> ClientResult {
    let mut command = Command::new("openssl");
    command
        .args(["s_client", "-connect", &target.to_string(), "-noservername", "-ign_eof", "-crlf"])
        .args(arguments);
    if let Some(credentials) = credentials {
        let (certificate, key) = (folder.join("s_client.crt"), folder.join("s_client.key"));
        fs::write(&certificate, credentials.chain_pem()).unwrap();
        fs::write(&key, credentials.key_pem()).unwrap();
        command.arg("-cert").arg(&certificate).arg("-key").arg(&key);
        if credentials.chain.len() > 1 {
            command.arg("-cert_chain").arg(&certificate);
        }
    }
    let request = folder.join("s_client.request");
    fs::write(&request, "GET /get HTTP/1.1\nhost: httpbin.test\nconnection: close\n\n").unwrap();
    let output = command
        .stdin(Stdio::from(fs::File::open(&request).unwrap()))
        .output()
        .unwrap_or_else(|error| panic!("openssl: {error}; on Debian: apt-get install openssl"));
    let output = [output.stdout, output.stderr].concat();
    let output = String::from_utf8_lossy(&output).into_owned();
    let alert = output.split("SSL alert number ").nth(1).map(|rest| {
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    });
    ClientResult { alert, output }
}
