//! Bounds of the lists and texts of a MeshConfig.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::de::{Deserializer, Error, MapAccess, Visitor};

use crate::bounded::{self, Text};

/// Maximum items of a list, such as ranges or ports.
pub(super) const MOST_ITEMS: usize = 1024;
/// Maximum names in the ingress controller's certificate.
pub(super) const MOST_SUBJECT_ALT_NAMES: usize = 64;
/// Maximum resources with a quantity.
pub(super) const MOST_QUANTITIES: usize = 16;
/// Maximum characters of a text: that of a SPIFFE ID.
pub(super) const MOST_CHARACTERS: usize = 2048;

pub(super) fn text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    bounded::text::<D, MOST_CHARACTERS>(deserializer)
}

pub(super) fn optional_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    bounded::optional_text::<D, MOST_CHARACTERS>(deserializer)
}

pub(super) fn texts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    bounded::optional_texts::<D, MOST_CHARACTERS>(deserializer, "a list of the MeshConfig", MOST_ITEMS)
}

pub(super) fn port_list<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u16>>, D::Error> {
    bounded::optional_list(deserializer, "a list of the MeshConfig", MOST_ITEMS)
}

pub(super) fn subject_alt_names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    const FIELD: &str = "spec.certificate.ingressGateway.subjectAltNames";
    let names = bounded::list::<D, Text<MOST_CHARACTERS>>(deserializer, FIELD, MOST_SUBJECT_ALT_NAMES)?;
    Ok(names.into_iter().map(String::from).collect())
}

/// Quantities by resource.
type Quantities = BTreeMap<String, IntOrString>;

pub(super) fn quantities<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Quantities>, D::Error> {
    deserializer.deserialize_option(QuantitiesVisitor)
}

struct QuantitiesVisitor;

impl<'de> Visitor<'de> for QuantitiesVisitor {
    type Value = Option<Quantities>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at most {MOST_QUANTITIES} quantities")
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Self::Value, A::Error> {
        let mut quantities = BTreeMap::new();
        while let Some((resource, quantity)) = entries.next_entry::<Text<MOST_CHARACTERS>, IntOrString>()? {
            if quantities.len() == MOST_QUANTITIES {
                let message = format!("spec.sidecar.resources: {}", bounded::too_many(MOST_QUANTITIES));
                return Err(A::Error::custom(message));
            }
            quantities.insert(resource.into(), quantity);
        }
        Ok(Some(quantities))
    }
}
