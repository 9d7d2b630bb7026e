//! A Secret with Basic credentials (`kubernetes.io/basic-auth`): what is kept of Secrets, and nothing else.
//!
//! A Secret's annotations may repeat its content (`kubectl.kubernetes.io/last-applied-configuration`), so of its metadata
//! only what identifies it is kept. `Debug` shows no credentials.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Deserializer};
use tidegate_core::forward_proxy::ProxyCredentials;

/// The key of the user.
const USERNAME: &str = "username";
/// The key of the password.
const PASSWORD: &str = "password";

/// The Basic credentials in a Secret.
#[derive(Clone, Debug, PartialEq)]
pub struct BasicAuthSecret {
    /// Namespace, name and version.
    pub metadata: ObjectMeta,
    /// The credentials, or why there are none.
    pub(crate) credentials: Result<ProxyCredentials, Arc<str>>,
    /// Identifies its state without giving it away: the object's resource version, or a hash with a secret of this process.
    pub(crate) version: Arc<str>,
}

impl BasicAuthSecret {
    fn new(stored: StoredSecret) -> Self {
        let StoredSecret { metadata, data, string_data } = stored;
        let value = |key: &str| {
            let decoded = data.get(key).map(|value| String::from_utf8_lossy(&value.0).into_owned());
            string_data.get(key).cloned().or(decoded).ok_or_else(|| Arc::from(format!("it has no key {key}")))
        };
        let credentials = value(USERNAME).and_then(|user| {
            let credentials = ProxyCredentials::basic(&user, &value(PASSWORD)?);
            credentials.map_err(|error| error.to_string().into())
        });
        let version = metadata.resource_version.clone().unwrap_or_else(|| {
            static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
            let authorization = credentials.as_ref().ok().map(ProxyCredentials::authorization);
            format!("{:016x}", KEY.hash_one(authorization))
        });
        let ObjectMeta { name, namespace, .. } = metadata;
        let metadata = ObjectMeta { name, namespace, ..ObjectMeta::default() };
        Self { metadata, credentials, version: version.into() }
    }
}

/// What is decoded of a Secret, for a moment.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct StoredSecret {
    metadata: ObjectMeta,
    #[serde(default)]
    data: BTreeMap<String, ByteString>,
    #[serde(default)]
    string_data: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for BasicAuthSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        StoredSecret::deserialize(deserializer).map(Self::new)
    }
}

impl Resource for BasicAuthSecret {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Secret".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "secrets".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(content: serde_json::Value) -> BasicAuthSecret {
        let mut object = json!({"metadata": {
            "name": "squid", "namespace": "shop", "resourceVersion": "17",
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "s3cret"},
        }});
        object.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn the_credentials_are_read_and_nothing_shows_them() {
        let stored =
            secret(json!({"data": {"username": "bWVzaA==", "password": "czNjcmV0", "other": "eA=="}}));
        let credentials = stored.credentials.as_ref().unwrap();
        assert_eq!(credentials.authorization(), "Basic bWVzaDpzM2NyZXQ=");
        assert_eq!(&*stored.version, "17");
        let shown = format!("{stored:?}");
        assert!(
            !shown.contains("s3cret") && !shown.contains("czNjcmV0") && !shown.contains("bWVzaDpz"),
            "{shown}"
        );
        let plain = secret(json!({"stringData": {"username": "mesh", "password": "s3cret"}}));
        assert_eq!(plain.credentials, stored.credentials);
    }

    #[test]
    fn a_secret_without_credentials_says_what_is_missing() {
        let reason = |content| secret(content).credentials.unwrap_err();
        assert_eq!(&*reason(json!({})), "it has no key username");
        assert_eq!(&*reason(json!({"stringData": {"username": "a"}})), "it has no key password");
        let colon = json!({"stringData": {"username": "a:b", "password": "c"}});
        assert_eq!(&*reason(colon), "the username must not contain ':'");
    }

    #[test]
    fn a_secret_in_a_file_has_a_version_that_changes_with_its_content_and_does_not_tell_it() {
        let version = |password: &str| {
            let content = json!({"username": "mesh", "password": password});
            let object = json!({"metadata": {"name": "squid"}, "stringData": content});
            serde_json::from_value::<BasicAuthSecret>(object).unwrap().version
        };
        assert_eq!(version("a"), version("a"));
        assert_ne!(version("a"), version("b"));
    }
}
