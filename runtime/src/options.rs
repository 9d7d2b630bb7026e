//! Flags that several programs have, spelled out once: the same name, variable, default and help everywhere.

use clap::Args;
use tidegate_core::TrustDomain;

/// Where identities end.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustDomainOptions {
    /// The mesh's trust domain, the end of every identity's name
    #[arg(
        long,
        env = "TIDEGATE_TRUST_DOMAIN",
        value_name = "NAME",
        default_value = "cluster.local",
        value_parser = |text: &str| TrustDomain::parse(text)
    )]
    pub trust_domain: TrustDomain,
}
