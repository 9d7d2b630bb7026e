//! Which Pods of a folder are workloads of the mesh, and which of these run on this machine.
//!
//! Several machines with the same folder form one mesh: each runs the sidecars of its own Pods. So what a Pod is must be
//! the same on all of them, which only an annotation can say of a Pod that runs elsewhere.

use std::net::{IpAddr, UdpSocket};

use k8s_openapi::api::core::v1::Pod;
use tidegate_core::contract::annotations::SIDECAR_INJECTION;

use crate::object::pod::has_ended;

/// Whether a Pod has a sidecar: as its annotation says, or else if it runs on this machine. Other Pods only count as endpoints.
/// One that has ended has none.
pub fn is_workload(pod: &Pod) -> bool {
    !has_ended(pod) && annotated(pod).unwrap_or_else(|| pod_ip(pod).is_some_and(is_of_this_machine))
}

/// Whether this machine has an address: one of loopback, or of an interface. Where the system lets programs bind any address
/// (`net.ipv4.ip_nonlocal_bind`), it seems to have all.
pub fn is_of_this_machine(address: IpAddr) -> bool {
    address.is_loopback()
        || (!address.is_unspecified() && !address.is_multicast() && UdpSocket::bind((address, 0)).is_ok())
}

/// What the Pod's annotation says about its sidecar, in the words that the injector knows; others say nothing.
fn annotated(pod: &Pod) -> Option<bool> {
    let value = pod.metadata.annotations.as_ref()?.get(SIDECAR_INJECTION)?;
    match value.trim().to_ascii_lowercase().as_str() {
        "enabled" | "yes" | "true" => Some(true),
        "disabled" | "no" | "false" => Some(false),
        _ => None,
    }
}

fn pod_ip(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(annotation: Option<&str>, status: &str) -> Pod {
        let annotations =
            annotation.map(|value| format!(", annotations: {{{SIDECAR_INJECTION}: '{value}'}}"));
        let annotations = annotations.unwrap_or_default();
        let text = format!("{{metadata: {{name: p{annotations}}}, status: {status}}}");
        serde_saphyr::from_str(&text).unwrap()
    }

    #[test]
    fn a_pod_at_an_address_of_this_machine_has_a_sidecar_unless_it_has_ended_or_its_annotation_says_no() {
        for (annotation, status, expected) in [
            (None, "{podIP: 127.0.0.9}", true),
            (None, "{podIP: '::1', phase: Running}", true),
            (None, "{podIP: 192.0.2.9}", false),
            (None, "{podIP: 127.0.0.9, phase: Failed}", false),
            (None, "{}", false),
            (None, "{podIP: 0.0.0.0}", false),
            (Some("disabled"), "{podIP: 127.0.0.9}", false),
            (Some("maybe"), "{podIP: 127.0.0.9}", true),
            (Some("enabled"), "{podIP: 192.0.2.9}", true),
            (Some(" Yes"), "{podIP: 192.0.2.9}", true),
            (Some("enabled"), "{podIP: 192.0.2.9, phase: Succeeded}", false),
        ] {
            assert_eq!(is_workload(&pod(annotation, status)), expected, "{annotation:?} {status}");
        }
    }

    #[test]
    fn addresses_of_interfaces_are_this_machine_s_and_others_are_not() {
        let route = UdpSocket::bind("0.0.0.0:0").unwrap();
        // Sends nothing, and binds the socket to the address of an interface, if there is one.
        if route.connect("192.0.2.1:9").is_ok() {
            assert!(is_of_this_machine(route.local_addr().unwrap().ip()));
        }
        assert!(!is_of_this_machine("192.0.2.1".parse().unwrap()));
        assert!(!is_of_this_machine("2001:db8::1".parse().unwrap()));
    }
}
