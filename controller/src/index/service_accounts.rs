//! ServiceAccounts decide nothing by themselves and are not kept.
//!
//! The kind is in the table so that a manifest in a folder is recognized and not reported as ignored.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ServiceAccount;

use super::part::{Effect, Indexed};
use crate::object::ObjectName;

impl Indexed for ServiceAccount {
    type Part = ();

    fn get<'p>((): &'p (), _: &ObjectName) -> Option<&'p Arc<Self>> {
        None
    }

    fn insert((): &mut (), _: ObjectName, _: Arc<Self>) {}

    fn remove((): &mut (), _: &ObjectName) {}

    fn effects((): &(), _: &ObjectName) -> Vec<Effect> {
        Vec::new()
    }
}
