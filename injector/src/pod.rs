//! A Pod, as far as injection reads it.
//!
//! Anybody may send one, so what is kept of it is bounded by what is read here, not by what was sent: everything else is
//! skipped, lists are bounded, and our own containers and volumes stay text until they are compared.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tidegate_crds::injection::{CONTROLLER_FLAG, INTERCEPT_CONTAINER, SIDECAR_CONTAINER};

use crate::containers::{TOKEN_VOLUME, TRUST_VOLUME};

/// The most containers of each of a Pod's three lists.
const MAX_CONTAINERS: usize = 1000;
/// The most items of any list within a container.
const MAX_ITEMS: usize = 1000;
/// The most labels or annotations that are ours.
const MAX_ENTRIES: usize = 100;
/// The most bytes of one of our containers or volumes. What is larger, we did not make.
const MAX_OWN_BYTES: usize = 512 * 1024;
/// The most bytes of a name in an error.
const MAX_NAME: usize = 253;
/// What labels and annotations that mean something to injection begin with.
const PREFIXES: [&str; 3] = ["openservicemesh.io/", "tidegate.io/", "prometheus.io/"];

/// A Pod.
#[derive(Deserialize, Clone, Debug, Default)]
pub struct PodView<'a> {
    #[serde(default)]
    pub(crate) metadata: Metadata,
    #[serde(borrow, default)]
    pub(crate) spec: Option<PodSpec<'a>>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Metadata {
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) generate_name: Option<String>,
    #[serde(default, deserialize_with = "entries")]
    pub(crate) labels: Option<BTreeMap<String, String>>,
    #[serde(default, deserialize_with = "entries")]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PodSpec<'a> {
    #[serde(default)]
    pub(crate) security_context: Option<SecurityContext>,
    #[serde(default)]
    pub(crate) host_network: Option<bool>,
    #[serde(default)]
    pub(crate) node_selector: Option<NodeSelector>,
    #[serde(default)]
    pub(crate) os: Option<Os>,
    #[serde(borrow, default, deserialize_with = "init_containers")]
    pub(crate) init_containers: Option<Vec<Container<'a>>>,
    #[serde(borrow, default, deserialize_with = "containers")]
    pub(crate) containers: Vec<Container<'a>>,
    #[serde(borrow, default, deserialize_with = "ephemeral_containers")]
    pub(crate) ephemeral_containers: Option<Vec<Container<'a>>>,
    #[serde(borrow, default)]
    pub(crate) volumes: Option<Volumes<'a>>,
}

#[derive(Deserialize, Clone, Debug)]
pub(crate) struct NodeSelector {
    #[serde(default, rename = "kubernetes.io/os")]
    pub(crate) os: Option<String>,
}

#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Os {
    #[serde(default)]
    pub(crate) name: String,
}

/// A container, and its text if it has one of our names.
#[derive(Clone, Debug)]
pub(crate) struct Container<'a> {
    pub(crate) fields: ContainerFields,
    pub(crate) own: Option<&'a RawValue>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerFields {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) restart_policy: Option<String>,
    #[serde(default)]
    pub(crate) security_context: Option<SecurityContext>,
    #[serde(default, deserialize_with = "ports")]
    pub(crate) ports: Option<Vec<ContainerPort>>,
    /// Names of the volumes of ours that it mounts, each with its place in `volumeMounts`.
    #[serde(default, rename = "volumeMounts")]
    pub(crate) mounts: Option<Mounts>,
    #[serde(default)]
    pub(crate) liveness_probe: Option<Probe>,
    #[serde(default)]
    pub(crate) readiness_probe: Option<Probe>,
    #[serde(default)]
    pub(crate) startup_probe: Option<Probe>,
    #[serde(default)]
    pub(crate) lifecycle: Option<Lifecycle>,
}

#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SecurityContext {
    #[serde(default)]
    pub(crate) run_as_user: Option<i64>,
    #[serde(default)]
    pub(crate) privileged: Option<bool>,
    #[serde(default)]
    pub(crate) capabilities: Option<Capabilities>,
}

#[derive(Deserialize, Clone, Debug, Default)]
pub(crate) struct Capabilities {
    #[serde(default, deserialize_with = "capabilities")]
    pub(crate) add: Option<Vec<String>>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContainerPort {
    pub(crate) container_port: i32,
    #[serde(default)]
    pub(crate) name: Option<String>,
    #[serde(default)]
    pub(crate) protocol: Option<String>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Probe {
    #[serde(default)]
    pub(crate) http_get: Option<HttpGet>,
    #[serde(default)]
    pub(crate) tcp_socket: Option<TcpSocket>,
    #[serde(default)]
    pub(crate) grpc: Option<Grpc>,
    #[serde(default)]
    pub(crate) timeout_seconds: Option<i32>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HttpGet {
    #[serde(default)]
    pub(crate) path: Option<String>,
    pub(crate) port: Port,
    #[serde(default)]
    pub(crate) host: Option<String>,
    #[serde(default)]
    pub(crate) scheme: Option<String>,
    #[serde(default)]
    pub(crate) protocol: Option<String>,
    #[serde(default, deserialize_with = "headers")]
    pub(crate) http_headers: Option<Vec<HttpHeader>>,
}

#[derive(Deserialize, Clone, Debug)]
pub(crate) struct HttpHeader {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) value: String,
}

#[derive(Deserialize, Clone, Debug)]
pub(crate) struct TcpSocket {
    pub(crate) port: Port,
    #[serde(default)]
    pub(crate) host: Option<String>,
}

#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Grpc {
    pub(crate) port: i32,
    #[serde(default)]
    pub(crate) service: Option<String>,
    #[serde(default)]
    pub(crate) mode: Option<String>,
}

/// A port by number, or by the name that a container gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Number(i32),
    Name(String),
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Lifecycle {
    #[serde(default)]
    pub(crate) post_start: Option<Handler>,
    #[serde(default)]
    pub(crate) pre_stop: Option<Handler>,
}

#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Handler {
    #[serde(default)]
    pub(crate) http_get: Option<HttpGet>,
}

/// The first volume of each of our names, with its place among all and its text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Volumes<'a>(pub(crate) Vec<(usize, &'static str, &'a RawValue)>);

/// The first mount of each volume of our names, with its place among all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Mounts(pub(crate) Vec<(usize, &'static str)>);

impl<'a> PodView<'a> {
    /// Reads a Pod's JSON.
    pub fn parse(json: &'a str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(json)
    }

    /// Whether a sidecar is in it, whatever its labels say: [`tidegate_crds::injection::has_sidecar`].
    pub(crate) fn has_sidecar(&self) -> bool {
        self.sidecar().is_some()
    }

    /// The sidecar's container: [`tidegate_crds::injection::sidecar_container`].
    pub(crate) fn sidecar(&self) -> Option<&Container<'a>> {
        self.spec.as_ref()?.init_containers.iter().flatten().find(|container| {
            container.fields.name == SIDECAR_CONTAINER
                && container.fields.restart_policy.as_deref() == Some("Always")
        })
    }

    /// The namespace of the control plane that its sidecar listens to: [`tidegate_crds::injection::control_plane_of`].
    pub(crate) fn control_plane(&self) -> Option<String> {
        let name = self.sidecar()?.argument(CONTROLLER_FLAG)?;
        let (namespace, _trust_domain) = name.split_once('.')?;
        Some(shortened(namespace).to_owned())
    }
}

impl Container<'_> {
    /// What follows `flag` in the first argument that begins with it, for a container of ours.
    pub(crate) fn argument(&self, flag: &str) -> Option<String> {
        #[derive(Deserialize)]
        struct Arguments {
            #[serde(default, deserialize_with = "arguments")]
            args: Option<Vec<String>>,
        }
        let Arguments { args } = self.read_own()?;
        args?.into_iter().find_map(|argument| argument.strip_prefix(flag).map(str::to_owned))
    }

    /// Its image, for a container of ours.
    pub(crate) fn image(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Image {
            image: String,
        }
        self.read_own().map(|Image { image }| image)
    }

    fn read_own<T: DeserializeOwned>(&self) -> Option<T> {
        read_own(self.own?)
    }
}

/// Reads one of our containers or volumes; `None` if it is none that we would have made.
pub(crate) fn read_own<T: DeserializeOwned>(own: &RawValue) -> Option<T> {
    let text = own.get();
    if text.len() > MAX_OWN_BYTES { None } else { serde_json::from_str(text).ok() }
}

/// A name for an error.
pub(crate) fn shortened(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

fn our_volume(name: &str) -> Option<&'static str> {
    [TRUST_VOLUME, TOKEN_VOLUME].into_iter().find(|ours| *ours == name)
}

impl<'de: 'a, 'a> Deserialize<'de> for Volumes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct VolumesVisitor<'a>(PhantomData<&'a ()>);

        impl<'de: 'a, 'a> Visitor<'de> for VolumesVisitor<'a> {
            type Value = Volumes<'a>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of volumes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Volumes<'a>, A::Error> {
                let mut ours: Vec<(usize, &'static str, &'a RawValue)> = Vec::new();
                let mut index = 0;
                while let Some(volume) = list.next_element::<&'a RawValue>()? {
                    let Named { name } = serde_json::from_str(volume.get()).map_err(A::Error::custom)?;
                    if let Some(name) = our_volume(&name).filter(|name| ours.iter().all(|our| our.1 != *name))
                    {
                        ours.push((index, name, volume));
                    }
                    index += 1;
                }
                Ok(Volumes(ours))
            }
        }
        deserializer.deserialize_seq(VolumesVisitor(PhantomData))
    }
}

#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    name: String,
}

impl<'de> Deserialize<'de> for Mounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MountsVisitor;

        impl<'de> Visitor<'de> for MountsVisitor {
            type Value = Mounts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of volume mounts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Mounts, A::Error> {
                let mut ours: Vec<(usize, &'static str)> = Vec::new();
                let mut index = 0;
                while let Some(Named { name }) = list.next_element()? {
                    if let Some(name) = our_volume(&name).filter(|name| ours.iter().all(|our| our.1 != *name))
                    {
                        ours.push((index, name));
                    }
                    index += 1;
                }
                Ok(Mounts(ours))
            }
        }
        deserializer.deserialize_seq(MountsVisitor)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Container<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <&'a RawValue>::deserialize(deserializer)?;
        let fields: ContainerFields = serde_json::from_str(text.get()).map_err(D::Error::custom)?;
        let is_ours = [SIDECAR_CONTAINER, INTERCEPT_CONTAINER].contains(&fields.name.as_str());
        Ok(Self { fields, own: is_ours.then_some(text) })
    }
}

impl<'de> Deserialize<'de> for Port {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PortVisitor;

        impl Visitor<'_> for PortVisitor {
            type Value = Port;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a port's number or name")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Port, E> {
                i32::try_from(number)
                    .map(Port::Number)
                    .map_err(|_| E::custom(format_args!("{number} is not a port")))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Port, E> {
                i32::try_from(number)
                    .map(Port::Number)
                    .map_err(|_| E::custom(format_args!("{number} is not a port")))
            }

            fn visit_str<E: Error>(self, name: &str) -> Result<Port, E> {
                Ok(Port::Name(name.to_owned()))
            }
        }
        deserializer.deserialize_any(PortVisitor)
    }
}

/// Labels or annotations that mean something to injection.
fn entries<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<BTreeMap<String, String>>, D::Error> {
    struct Entries;

    impl<'de> Visitor<'de> for Entries {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a map of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut entries = BTreeMap::new();
            while let Some(name) = map.next_key::<String>()? {
                if !PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
                if entries.len() == MAX_ENTRIES {
                    let problem = format_args!(
                        "metadata has more than {MAX_ENTRIES} labels or annotations for the mesh"
                    );
                    return Err(A::Error::custom(problem));
                }
                entries.insert(name, map.next_value()?);
            }
            Ok(entries)
        }
    }

    struct EntriesSeed;

    impl<'de> DeserializeSeed<'de> for EntriesSeed {
        type Value = BTreeMap<String, String>;

        fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_map(Entries)
        }
    }
    optional(deserializer, EntriesSeed)
}

/// A list of at most so many items.
struct Bounded<T> {
    field: &'static str,
    most: usize,
    item: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Bounded<T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Bounded<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list in {}", self.field)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let Self { field, most, .. } = self;
        let mut items = Vec::new();
        loop {
            let at = items.len();
            let item = list
                .next_element()
                .map_err(|error| A::Error::custom(format_args!("{field}[{at}]: {error}")))?;
            let Some(item) = item else { return Ok(items) };
            if at == most {
                return Err(A::Error::custom(format_args!("{field} has more than {most} items")));
            }
            items.push(item);
        }
    }
}

/// What a seed makes of a value that may be null.
fn optional<'de, D: Deserializer<'de>, S: DeserializeSeed<'de>>(
    deserializer: D,
    seed: S,
) -> Result<Option<S::Value>, D::Error> {
    struct Optional<S>(S);

    impl<'de, S: DeserializeSeed<'de>> Visitor<'de> for Optional<S> {
        type Value = Option<S::Value>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a value or null")
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            self.0.deserialize(deserializer).map(Some)
        }
    }
    deserializer.deserialize_option(Optional(seed))
}

fn bounded<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
    field: &'static str,
    most: usize,
) -> Result<Option<Vec<T>>, D::Error> {
    optional(deserializer, Bounded { field, most, item: PhantomData })
}

fn init_containers<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Container<'a>>>, D::Error> {
    bounded(deserializer, "spec.initContainers", MAX_CONTAINERS)
}

fn containers<'de: 'a, 'a, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Container<'a>>, D::Error> {
    bounded(deserializer, "spec.containers", MAX_CONTAINERS).map(Option::unwrap_or_default)
}

fn ephemeral_containers<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<Container<'a>>>, D::Error> {
    bounded(deserializer, "spec.ephemeralContainers", MAX_CONTAINERS)
}

fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<ContainerPort>>, D::Error> {
    bounded(deserializer, "ports", MAX_ITEMS)
}

fn capabilities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    bounded(deserializer, "securityContext.capabilities.add", MAX_ITEMS)
}

fn headers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<HttpHeader>>, D::Error> {
    bounded(deserializer, "httpHeaders", MAX_ITEMS)
}

fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    bounded(deserializer, "args", MAX_ITEMS)
}

#[cfg(test)]
mod tests;
