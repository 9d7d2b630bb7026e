//! The client certificate that an ingress controller shows to the mesh: `MeshConfig.spec.certificate.ingressGateway`.
//!
//! [`IngressGatewaySettings`] is what the user wrote, checked. [`IngressGateway`] makes a Secret of it and keeps it
//! right: new at once when settings or roots change, renewed at half of its life, put back when it is deleted or
//! damages it, removed when the settings go. [`Copies`] says in which other namespaces there is to be one, too, and
//! whether the roots alone go into a Secret of their own, from which some ingress controllers take them.

mod certificate;
mod copies;
mod keeper;
mod selector;
mod settings;

pub use copies::{ANNOTATIONS, Copies, MOST_NAMESPACES};
pub use keeper::{GatewayStatus, IngressGateway};
pub use settings::{IngressGatewaySettings, SettingsInput, SettingsProblem};
