//! Flags that several programs share, with the same name, variable, default and help everywhere.

use clap::Args;
use tidegate_core::TrustDomain;
use tidegate_core::contract::flags;

/// The domain part of identities.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustDomainOptions {
    /// The mesh's trust domain, the suffix of every identity's name
    #[arg(
        long = flags::TRUST_DOMAIN,
        env = "TIDEGATE_TRUST_DOMAIN",
        value_name = "NAME",
        default_value_t,
        value_parser = |text: &str| TrustDomain::parse(text)
    )]
    pub trust_domain: TrustDomain,
}
