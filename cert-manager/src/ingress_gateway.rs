//! The client certificate that an ingress controller shows to the mesh: `MeshConfig.spec.certificate.ingressGateway`.
//!
//! [`IngressGatewaySettings`] is what the user wrote, checked. [`IngressGateway`] makes a Secret of it and keeps it
//! right: new at once when settings or roots change, renewed at half of its life, put back when somebody deletes or
//! damages it, removed when the settings go.

mod certificate;
mod keeper;
mod settings;

pub use keeper::{GatewayStatus, IngressGateway};
pub use settings::{IngressGatewaySettings, SettingsInput, SettingsProblem};
