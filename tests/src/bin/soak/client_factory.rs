//! Clients for one port of the mesh.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tidegate_tests::client::{Client, Tls};
use tidegate_tests::load::SecretFiles;

/// Creates clients of one port of the mesh, from the Secret's current content.
#[derive(Clone)]
pub(crate) struct ClientFactory {
    plain: Client,
    tls: Option<OverTls>,
    network: Option<Arc<File>>,
}

#[derive(Clone)]
struct OverTls {
    secret: SecretFiles,
    server_name: String,
    protocols: &'static [&'static str],
}

impl ClientFactory {
    /// In plaintext, or as the mesh transports it.
    pub(crate) fn plain(client: Client) -> Self {
        Self { plain: client, tls: None, network: None }
    }

    /// With the ingress controller's certificate, to a server of this name; offers these protocols.
    pub(crate) fn over_tls(
        client: Client,
        secret: SecretFiles,
        server_name: &str,
        protocols: &'static [&'static str],
    ) -> Self {
        let tls = OverTls { secret, server_name: server_name.to_owned(), protocols };
        Self { plain: client, tls: Some(tls), network: None }
    }

    /// From this network namespace instead of the process's own.
    pub(crate) fn inside(mut self, network: &Arc<File>) -> Self {
        self.network = Some(network.clone());
        self
    }

    /// Moves the calling thread into the clients' network namespace.
    pub(crate) fn enter_network(&self) {
        if let Some(network) = &self.network {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        }
    }

    /// A client with the current certificate.
    pub(crate) fn client(&self) -> Client {
        let client = self.plain.clone();
        match &self.tls {
            None => client,
            Some(OverTls { secret, server_name, protocols }) => client.tls(
                Tls::new(secret.roots(), server_name).credentials(secret.credentials()).protocols(protocols),
            ),
        }
    }

    /// A number that changes when the client does.
    pub(crate) fn version(&self) -> u64 {
        self.tls.as_ref().map_or(0, |tls| tls.secret.version())
    }
}
