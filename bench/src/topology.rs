//! The paths of a request that are measured.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::certificates::{ALLOWED, CALLER};

/// How client, proxies and app are connected.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ProxyTopology {
    /// Client → mTLS → proxy → app.
    #[default]
    Ingress,
    /// Client → proxy → mTLS → proxy → app.
    Pair,
    /// Client → its own TLS, through a proxy and a company's forward proxy → app outside the mesh.
    Egress,
}

impl ProxyTopology {
    /// The name in the certificate of the one client that the proxy in front of the app admits.
    pub(crate) fn admitted(self) -> &'static str {
        match self {
            Self::Ingress => ALLOWED,
            Self::Pair | Self::Egress => CALLER,
        }
    }

    /// The name of the report's files, and of its section in bench/README.md.
    pub(crate) fn report_name(self) -> &'static str {
        match self {
            Self::Ingress => "results",
            Self::Pair => "pair",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for ProxyTopology {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ingress => "ingress",
            Self::Pair => "pair",
            Self::Egress => "egress",
        })
    }
}
