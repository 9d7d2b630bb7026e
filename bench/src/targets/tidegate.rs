//! Tidegate: the real program with a folder of manifests, its own CA, and the client certificate that it issues.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{ClientFiles, Running, Site};
use crate::certificates::{ALLOWED, FOREIGN, SERVER};
use crate::process::Process;
use crate::template;
use crate::tls::ClientIdentity;

const MANIFESTS: &str = include_str!("../../templates/tidegate.yaml");
const MESH_CONFIG: &str = include_str!("../../templates/tidegate-mesh-config.yaml");
/// Folder of the gateway's certificate, below the state folder.
const GATEWAY: &str = "secrets/osm-system/osm-nginx-client-cert";
/// The pod's address; its sidecar listens there on the port of the app.
const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 7, 1));
/// Longest time until a certificate that was asked for is in its folder.
const ISSUE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A certificate and its key as one state of the gateway's folder.
#[derive(Debug, PartialEq, Eq)]
struct Gateway {
    certificate: String,
    key: String,
}

/// Starts control plane and sidecar and waits until the client's certificates are issued.
///
/// The client that is not admitted needs a certificate of the same CA, which only Tidegate can issue: the gateway
/// is given that client's name first, and the admitted one's after its files have been copied.
pub(super) async fn start(site: &Site<'_>) -> Result<Running> {
    let manifests = site.directory.join("manifests");
    let state = site.directory.join("state");
    fs::create_dir(&manifests)?;
    fs::create_dir(&state)?;
    fs::write(manifests.join("httpbin.yaml"), render(site.app)?)?;
    put_mesh_config(site.directory, &manifests, FOREIGN)?;

    let mut process = Process::start(
        "tidegate",
        site.core,
        site.directory,
        &site.programs.tidegate()?,
        [
            "standalone".as_ref(),
            "-f".as_ref(),
            manifests.as_os_str(),
            "--state-dir".as_ref(),
            state.as_os_str(),
        ],
    )?;

    let gateway = state.join(GATEWAY);
    let first = issued(&mut process, &gateway, None).await?;
    let foreign = ClientIdentity {
        certificate: site.directory.join("foreign.crt"),
        key: site.directory.join("foreign.key"),
    };
    fs::write(&foreign.certificate, &first.certificate)?;
    fs::write(&foreign.key, &first.key)?;
    put_mesh_config(site.directory, &manifests, ALLOWED)?;
    issued(&mut process, &gateway, Some(&first)).await?;

    Ok(Running {
        measured: Some(process.id()),
        processes: vec![process],
        address: SocketAddr::new(POD, site.app.port()),
        tls: Some(ClientFiles {
            ca: gateway.join("ca.crt"),
            server_name: SERVER.to_owned(),
            allowed: ClientIdentity { certificate: gateway.join("tls.crt"), key: gateway.join("tls.key") },
            foreign,
        }),
    })
}

pub(super) fn render(app: SocketAddr) -> Result<String> {
    template::render(
        MANIFESTS,
        &[
            ("port", app.port().to_string()),
            ("app_address", app.ip().to_string()),
            ("pod_address", POD.to_string()),
            ("allowed", ALLOWED.to_owned()),
        ],
    )
    .context("tidegate.yaml")
}

/// Written beside the watched folder and moved into it, so that half a file is never seen.
fn put_mesh_config(directory: &Path, manifests: &Path, gateway_name: &str) -> Result<()> {
    let rendered = template::render(MESH_CONFIG, &[("gateway_name", gateway_name.to_owned())])?;
    let beside = directory.join("mesh-config.yaml");
    fs::write(&beside, rendered)?;
    fs::rename(&beside, manifests.join("mesh-config.yaml"))?;
    Ok(())
}

/// Waits for a certificate other than `previous`.
async fn issued(process: &mut Process, folder: &Path, previous: Option<&Gateway>) -> Result<Gateway> {
    let wait = async {
        loop {
            process.ensure_running()?;
            if let Some(gateway) = Gateway::read(folder)
                && previous.is_none_or(|previous| {
                    previous.certificate != gateway.certificate && previous.key != gateway.key
                })
            {
                return Ok(gateway);
            }
            tokio::time::sleep(POLL).await;
        }
    };
    if let Ok(result) = tokio::time::timeout(ISSUE, wait).await {
        return result;
    }
    bail!("no client certificate in {} after {ISSUE:?}: {}", folder.display(), process.log_tail())
}

impl Gateway {
    /// `None` while there is none, or while it is being replaced.
    fn read(folder: &Path) -> Option<Self> {
        let file = |name: &str| -> Option<String> {
            let path: PathBuf = folder.join(name);
            fs::read_to_string(path).ok().filter(|text| !text.is_empty())
        };
        file("ca.crt")?;
        let read = || Some(Self { certificate: file("tls.crt")?, key: file("tls.key")? });
        let first = read()?;
        (first == read()?).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_folder_counts_only_once_all_three_files_have_content() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Gateway::read(&folder.path().join("not-yet")), None);
        for (name, content) in [("tls.crt", "certificate"), ("tls.key", ""), ("ca.crt", "ca")] {
            assert_eq!(Gateway::read(folder.path()), None);
            fs::write(folder.path().join(name), content).unwrap();
        }
        assert_eq!(Gateway::read(folder.path()), None, "the key is still empty");
        fs::write(folder.path().join("tls.key"), "key").unwrap();
        let gateway = Gateway { certificate: "certificate".to_owned(), key: "key".to_owned() };
        assert_eq!(Gateway::read(folder.path()), Some(gateway));
    }

    #[test]
    fn the_gateways_name_changes_in_one_step() {
        let directory = tempfile::tempdir().unwrap();
        let manifests = directory.path().join("manifests");
        fs::create_dir(&manifests).unwrap();
        for name in [FOREIGN, ALLOWED] {
            put_mesh_config(directory.path(), &manifests, name).unwrap();
            let files: Vec<_> =
                fs::read_dir(&manifests).unwrap().map(|file| file.unwrap().file_name()).collect();
            assert_eq!(files, ["mesh-config.yaml"]);
            let text = fs::read_to_string(manifests.join("mesh-config.yaml")).unwrap();
            assert!(text.contains(&format!("subjectAltNames:\n      - {name}\n")), "{text}");
        }
    }
}
