//! The Services of a shop, and requests for them.

use tidegate_core::TrustDomain;
use tidegate_core::route::RequestView;

use crate::compile::destination::Resolver;
use crate::compile::route_features::Features;
use crate::index::Index;
use crate::object::ObjectName;

/// Services of namespace `shop`: `cart` with ports of several protocols; `v1` and `v2`, each without some of them; `bytes`, whose port
/// 80 carries bytes; `headless` and `alias`.
pub(crate) const SERVICES: &str = r"
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ports: [{name: http, port: 80}, {name: tcp-db, port: 5432}, {name: web, port: 8080}, {name: dns, port: 53, protocol: UDP}]
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {clusterIP: 10.96.0.11, ports: [{name: http, port: 80}, {name: tcp, port: 81}, {name: tcp-db, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: v2, namespace: shop}
spec: {clusterIP: 10.96.0.12, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bytes, namespace: shop}
spec: {clusterIP: 10.96.0.13, ports: [{name: tcp, port: 80}, {name: tcp-db, port: 5432}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: example.com, ports: [{name: http, port: 80}]}
";

/// A request's head.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) authority: &'static str,
    pub(crate) path: &'static str,
    pub(crate) query: Option<&'static str>,
    pub(crate) headers: &'static [(&'static str, &'static str)],
}

impl RequestView for Request {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn authority(&self) -> &[u8] {
        self.authority.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn query(&self) -> Option<&[u8]> {
        self.query.map(str::as_bytes)
    }

    fn field<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.headers.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_bytes())
    }
}

pub(crate) fn get(path: &'static str) -> Request {
    Request { method: "GET", authority: "anything", path, ..Request::default() }
}

/// The name of Service `cart`.
pub(crate) fn cart() -> ObjectName {
    ObjectName::new("shop", "cart")
}

/// Asks a resolver for which every Pod has a sidecar.
pub(crate) fn with_resolver<T>(index: &Index, features: Features, ask: impl FnOnce(Resolver<'_>) -> T) -> T {
    ask(Resolver { index, trust_domain: &TrustDomain::default(), is_workload: |_| true, features })
}
