//! Basic credentials, by the names of their Secrets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::part::{Effect, Indexed};
use crate::object::secret::BasicAuthSecret;
use crate::object::stored::{Scope, Stored};
use crate::object::{Object, ObjectName, OfKind};

#[derive(Clone, Debug, Default)]
pub(crate) struct Secrets(BTreeMap<ObjectName, Arc<BasicAuthSecret>>);

impl Indexed for BasicAuthSecret {
    type Part = Secrets;

    fn get<'p>(part: &'p Secrets, name: &ObjectName) -> Option<&'p Arc<Self>> {
        part.0.get(name)
    }

    fn insert(part: &mut Secrets, name: ObjectName, object: Arc<Self>) {
        part.0.insert(name, object);
    }

    fn remove(part: &mut Secrets, name: &ObjectName) {
        part.0.remove(name);
    }

    fn effects(_: &Secrets, name: &ObjectName) -> Vec<Effect> {
        vec![Effect::Secret(name.clone())]
    }
}

impl Stored for BasicAuthSecret {
    const SCOPE: Scope = Scope::Referenced;
    const HAS_SHARE: bool = false;

    fn decode(text: &str, _: &str) -> serde_json::Result<Object> {
        serde_json::from_str::<Self>(text).map(|object| Self::wrap(object.into()))
    }

    fn size(&self) -> usize {
        0
    }
}
