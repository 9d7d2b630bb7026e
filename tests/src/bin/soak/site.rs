//! What runs, whether on this machine's loopback or on a cluster, and the ways to it.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tidegate_tests::client::{Client, Tls};
use tidegate_tests::load::SecretFiles;

use crate::loads::Loads;

/// Everything that runs, and can be changed while it does.
pub(crate) trait Site {
    /// Starts every client.
    fn start_loads(&self) -> Loads;

    /// Changes a policy that touches no load; returns when the controller has it.
    fn edit(&mut self);

    /// Takes the next step of a root's rotation, or begins to.
    fn rotate(&mut self);

    /// Restarts the next of what is restarted, or begins to.
    fn restart(&mut self);

    /// Waits for what has begun; what was done in all.
    fn finish(&mut self) -> Done;

    /// What is restarted, in the words of the report.
    fn restarted(&self) -> &'static str;

    /// The processes whose memory and files are looked at, by what they are in the report. Several of one name count
    /// together.
    fn processes(&self) -> Vec<(String, u32)>;
}

/// How much was changed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done {
    /// Steps of a rotation.
    pub(crate) rotation_steps: u32,
    pub(crate) restarts: u32,
    /// What could not be changed, and why.
    pub(crate) problems: Vec<String>,
}

/// How to come to one port of the mesh; makes a client of what the Secret holds at the moment.
#[derive(Clone)]
pub(crate) struct Way {
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

impl Way {
    /// In plaintext, or by whatever the mesh makes of it on the way.
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

    /// Moves the calling thread to where its clients are to be.
    pub(crate) fn enter(&self) {
        if let Some(network) = &self.network {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        }
    }

    /// The client as it is now.
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
