//! The client certificate that an ingress controller shows to the mesh: `MeshConfig.spec.certificate.ingressGateway`.
//!
//! [`IngressGatewaySettings`] are the user's settings, checked. [`IngressGateway`] writes a Secret for them and keeps it
//! correct: rewritten at once when settings or roots change, renewed at half of its lifetime, restored when it is deleted
//! or damaged, removed together with the settings. [`Copies`] says which other namespaces get one too, and whether the
//! roots alone also get a Secret of their own, from which some ingress controllers read them.

mod certificate;
mod copies;
mod dependencies;
mod keeper;
mod selector;
mod settings;

pub(crate) use copies::{ANNOTATIONS, Copies};
pub use dependencies::GatewayDependencies;
pub use keeper::GatewayStatus;
pub(crate) use keeper::IngressGateway;
pub use settings::{IngressGatewaySettings, SettingsInput, SettingsProblem};
