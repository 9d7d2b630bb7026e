//! Where a local Pod's sidecars listen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Context;
use tidegate_controller::LocalPod;
use tidegate_core::contract::annotations::{APP_ADDRESS, OUTBOUND};
use tidegate_sidecar::options::{InboundListener, OutboundListener};
use tidegate_sidecar::sidecar::Sidecar;

/// For each port of the Pod's policy, and for each destination in its annotation.
#[derive(Debug, Default, PartialEq)]
pub(super) struct PodListeners {
    pub(super) inbound: Vec<InboundListener>,
    pub(super) outbound: Vec<OutboundListener>,
}

impl PodListeners {
    /// Those of a Pod.
    pub(super) fn of(pod: &LocalPod) -> anyhow::Result<Self> {
        let outbound = pod.annotations.get(OUTBOUND).map(String::as_str).unwrap_or_default();
        let outbound = outbound.split(',').map(str::trim).filter(|text| !text.is_empty());
        let outbound = outbound.map(|text| text.parse().with_context(|| format!("annotation {OUTBOUND}")));
        Ok(Self { inbound: inbound(pod)?, outbound: outbound.collect::<anyhow::Result<_>>()? })
    }

    /// Those that none of these sidecars has.
    pub(super) fn without(mut self, sidecars: &[Sidecar]) -> Self {
        let ports: Vec<u16> =
            sidecars.iter().flat_map(|sidecar| sidecar.inbound()).map(|inbound| inbound.app.port()).collect();
        let is_bound =
            |outbound: &OutboundListener| sidecars.iter().any(|sidecar| sidecar.outbound().contains(outbound));
        self.inbound.retain(|inbound| !ports.contains(&inbound.app.port()));
        self.outbound.retain(|outbound| !is_bound(outbound));
        self
    }
}

/// The sidecar listens at the Pod's address, the app at another one.
fn inbound(pod: &LocalPod) -> anyhow::Result<Vec<InboundListener>> {
    if pod.ports.is_empty() {
        return Ok(Vec::new());
    }
    let ip = pod.ip.context("the Pod has no podIP")?;
    let app: IpAddr = match pod.annotations.get(APP_ADDRESS) {
        Some(text) => text.parse().with_context(|| format!("annotation {APP_ADDRESS}: {text:?}"))?,
        None => Ipv4Addr::LOCALHOST.into(),
    };
    anyhow::ensure!(
        app != ip,
        "podIP and annotation {APP_ADDRESS} are both {ip}: the sidecar and the app need different addresses"
    );
    let listener =
        |port: &u16| InboundListener { listen: SocketAddr::new(ip, *port), app: SocketAddr::new(app, *port) };
    Ok(pod.ports.iter().map(listener).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotations: &[(&str, &str)], ports: &[u16]) -> LocalPod {
        LocalPod {
            namespace: "shop".to_owned(),
            name: "cart".to_owned(),
            uid: None,
            ip: Some("10.0.0.1".parse().unwrap()),
            service_account: "cart".to_owned(),
            annotations: annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ports: ports.to_vec(),
        }
    }

    #[test]
    fn ports_and_destinations_have_a_listener_each() {
        let annotations = [
            (OUTBOUND, "127.0.0.1:9000=10.96.0.10:80, 127.0.0.1:9001=10.0.0.2:5432"),
            (APP_ADDRESS, "127.0.0.9"),
        ];
        let listeners = PodListeners::of(&pod(&annotations, &[8080])).unwrap();
        assert_eq!(listeners.inbound, ["10.0.0.1:8080=127.0.0.9:8080".parse().unwrap()]);
        let outbound = ["127.0.0.1:9000=10.96.0.10:80", "127.0.0.1:9001=10.0.0.2:5432"]
            .map(|text| text.parse().unwrap());
        assert_eq!(listeners.outbound, outbound);
        assert_eq!(PodListeners::of(&pod(&[], &[])).unwrap(), PodListeners::default());
    }

    #[test]
    fn a_wrong_annotation_is_named_with_its_value() {
        for (name, value) in [(OUTBOUND, "127.0.0.1:9000"), (APP_ADDRESS, "localhost")] {
            let error = format!("{:#}", PodListeners::of(&pod(&[(name, value)], &[80])).unwrap_err());
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        let error = PodListeners::of(&pod(&[(APP_ADDRESS, "10.0.0.1")], &[80])).unwrap_err().to_string();
        assert!(error.contains("are both 10.0.0.1"), "{error}");
    }
}
