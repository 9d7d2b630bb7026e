//! Rules about forward proxies.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use tidegate_core::dns_name::DnsPattern;
use tidegate_core::forward_proxy::{
    EgressProxyRule, ForwardedHeaders, NoProxy, ProxyCredentials, ProxySettings,
};

use crate::convert::backend::{tls_from_wire, tls_to_wire};
use crate::convert::duration::{duration_from_wire, duration_to_wire};
use crate::convert::{ConversionError, bad, object_from_wire, object_to_wire, port_number};
use crate::discovery as wire;

/// The only message with a secret.
pub(super) fn egress_proxy_to_wire(rule: &EgressProxyRule) -> wire::EgressProxy {
    let settings = &rule.settings;
    let authorization = settings.credentials.as_ref().map(ProxyCredentials::authorization);
    let forwarded_headers = match settings.forwarded_headers {
        ForwardedHeaders::Append => wire::ForwardedHeaders::Append,
        ForwardedHeaders::Transparent => wire::ForwardedHeaders::Transparent,
        ForwardedHeaders::Delete => wire::ForwardedHeaders::Delete,
    };
    wire::EgressProxy {
        origin: Some(object_to_wire(&settings.origin)),
        hosts: rule.hosts.iter().map(ToString::to_string).collect(),
        ports: rule.ports.iter().map(|port| u32::from(*port)).collect(),
        no_proxy: rule.no_proxy.entries().collect(),
        proxies: rule.proxies.iter().map(address_to_wire).collect(),
        http_proxies: rule.http_proxies.iter().map(address_to_wire).collect(),
        authorization: authorization.unwrap_or_default().to_owned(),
        credentials_version: settings.credentials_version.to_string(),
        tls: settings.tls.as_ref().map(tls_to_wire),
        connect_timeout: Some(duration_to_wire(settings.connect_timeout)),
        response_timeout: Some(duration_to_wire(settings.response_timeout)),
        forwarded_headers: forwarded_headers.into(),
    }
}

/// A rule that is not understood refuses the policy: connections past the proxy would be what the rule forbids. `path` has its
/// place in the list.
pub(super) fn egress_proxy_from_wire(
    path: &str,
    rule: wire::EgressProxy,
) -> Result<EgressProxyRule, ConversionError> {
    let field = |name: &str| format!("{path}.{name}");
    let hosts = rule.hosts.iter().map(|host| DnsPattern::parse(host));
    let hosts = hosts.collect::<Result<_, _>>().map_err(|error| bad(&field("hosts"), error))?;
    let ports = rule.ports.into_iter().map(|port| port_number(&field("ports"), port));
    let no_proxy = NoProxy::parse(rule.no_proxy.iter().map(String::as_str));
    let proxies = addresses_from_wire(&field("proxies"), rule.proxies)?;
    let credentials = match rule.authorization.as_str() {
        "" => None,
        value => Some(
            ProxyCredentials::from_authorization(value)
                .ok_or_else(|| bad(&field("authorization"), "not Basic credentials"))?,
        ),
    };
    let forwarded_headers = match wire::ForwardedHeaders::try_from(rule.forwarded_headers) {
        Ok(wire::ForwardedHeaders::Append) => ForwardedHeaders::Append,
        Ok(wire::ForwardedHeaders::Transparent) => ForwardedHeaders::Transparent,
        Ok(wire::ForwardedHeaders::Delete) => ForwardedHeaders::Delete,
        Ok(wire::ForwardedHeaders::Unspecified) | Err(_) => {
            let problem = format!("unknown value {}", rule.forwarded_headers);
            return Err(bad(&field("forwarded_headers"), problem));
        }
    };
    Ok(EgressProxyRule {
        hosts,
        ports: ports.collect::<Result<_, _>>()?,
        no_proxy: no_proxy.map_err(|error| bad(&field("no_proxy"), error))?,
        proxies,
        http_proxies: addresses_from_wire(&field("http_proxies"), rule.http_proxies)?,
        settings: Arc::new(ProxySettings {
            origin: object_from_wire(&field("origin"), rule.origin)?,
            credentials,
            credentials_version: rule.credentials_version.into(),
            tls: rule.tls.map(|tls| tls_from_wire(&field("tls"), tls)).transpose()?,
            connect_timeout: duration_from_wire(&field("connect_timeout"), rule.connect_timeout)?,
            response_timeout: duration_from_wire(&field("response_timeout"), rule.response_timeout)?,
            forwarded_headers,
        }),
    })
}

fn address_to_wire(address: &SocketAddr) -> wire::ProxyAddress {
    wire::ProxyAddress { address: address.ip().to_string(), port: address.port().into() }
}

fn addresses_from_wire(
    path: &str,
    addresses: Vec<wire::ProxyAddress>,
) -> Result<Vec<SocketAddr>, ConversionError> {
    let address = |wire::ProxyAddress { address, port }| {
        let ip: IpAddr =
            address.parse().map_err(|_| bad(path, format!("{address:?} is not an IP address")))?;
        Ok(SocketAddr::new(ip, port_number(path, port)?))
    };
    addresses.into_iter().map(address).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use tidegate_core::tls_origination::{ServerName, ServerVerification, TlsOrigination, TrustRoots};
    use tidegate_core::{DnsName, ObjectRef};

    use super::*;

    pub(in super::super) fn egress_proxy() -> EgressProxyRule {
        let name = DnsName::parse("proxy.corp.example").unwrap();
        EgressProxyRule {
            hosts: vec![DnsPattern::parse("*.example").unwrap()],
            ports: vec![80, 443],
            no_proxy: NoProxy::parse(["10.0.0.0/8", ".corp.example:8080"]).unwrap(),
            proxies: vec!["10.9.9.9:3128".parse().unwrap(), "[fd00::9]:3128".parse().unwrap()],
            http_proxies: vec!["10.9.9.8:8080".parse().unwrap()],
            settings: Arc::new(ProxySettings {
                origin: ObjectRef::new("EgressProxy", "a", "squid"),
                credentials: ProxyCredentials::basic("mesh", "s3cret").ok(),
                credentials_version: "17".into(),
                tls: Some(TlsOrigination {
                    sni: Some("proxy.corp.example".into()),
                    verify: ServerVerification {
                        roots: TrustRoots::Pem("pem".into()),
                        names: vec![ServerName::Dns(name)],
                    },
                    client_certificate: None,
                }),
                connect_timeout: Duration::from_secs(5),
                response_timeout: Duration::from_millis(1500),
                forwarded_headers: ForwardedHeaders::Delete,
            }),
        }
    }

    #[test]
    fn what_is_not_understood_names_the_field_and_no_credentials() {
        let spoil = |change: fn(&mut wire::EgressProxy)| {
            let mut rule = egress_proxy_to_wire(&egress_proxy());
            change(&mut rule);
            egress_proxy_from_wire("egress_proxies[0]", rule).unwrap_err().to_string()
        };
        assert_eq!(spoil(|rule| rule.ports[0] = 0), "egress_proxies[0].ports: 0 is not a port");
        assert_eq!(
            spoil(|rule| rule.authorization = "Bearer s3cret".into()),
            "egress_proxies[0].authorization: not Basic credentials"
        );
        assert_eq!(
            spoil(|rule| rule.forwarded_headers = 9),
            "egress_proxies[0].forwarded_headers: unknown value 9"
        );
        assert!(spoil(|rule| rule.no_proxy[0] = "a b".into()).starts_with("egress_proxies[0].no_proxy: "));
        assert_eq!(spoil(|rule| rule.connect_timeout = None), "egress_proxies[0].connect_timeout: missing");
    }
}
