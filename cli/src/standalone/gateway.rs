//! Passes the ingress controller's certificate settings from MeshConfig to the CA.
//!
//! On a cluster the cert-manager watches the MeshConfig itself. Here it has no source of objects, so the controller's
//! MeshConfig is passed on.

use std::sync::Arc;

use tidegate_cert_manager::ingress_gateway::{IngressGatewaySettings, SettingsInput};
use tidegate_crds::MeshConfigSpec;
use tokio::sync::watch;

/// Keeps the CA's settings in sync with MeshConfig. Invalid settings change nothing: the current certificate stays, and
/// the log names the wrong field.
pub(crate) async fn follow(
    mut mesh_config: watch::Receiver<Option<Arc<MeshConfigSpec>>>,
    settings: watch::Sender<Option<IngressGatewaySettings>>,
) {
    // Until the objects are read, a missing field may only be not read yet.
    while mesh_config.changed().await.is_ok() {
        let spec = mesh_config.borrow_and_update().clone();
        match spec.as_ref().and_then(|spec| spec.ingress_gateway()).map(parse).transpose() {
            Ok(wanted) => {
                settings.send_if_modified(|current| {
                    let is_news = *current != wanted;
                    *current = wanted;
                    is_news
                });
            }
            Err(problems) => {
                for problem in problems {
                    tracing::error!(
                        field = problem.path,
                        problem = problem.problem,
                        "MeshConfig's certificate settings are invalid; keeping the previous ones"
                    );
                }
            }
        }
    }
}

/// The settings as the CA takes them; all invalid fields at once, each with its path.
fn parse(
    wanted: &tidegate_crds::mesh_config::IngressGatewayCertificate,
) -> Result<IngressGatewaySettings, Vec<tidegate_cert_manager::ingress_gateway::SettingsProblem>> {
    IngressGatewaySettings::parse(SettingsInput {
        subject_alt_names: &wanted.subject_alt_names,
        validity_duration: &wanted.validity_duration,
        secret_namespace: &wanted.secret.namespace,
        secret_name: &wanted.secret.name,
    })
}
