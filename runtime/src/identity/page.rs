//! `GET /certificate` of the admin server: the roots of a process's certificate.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use tokio::sync::watch;

use crate::credentials::Credentials;
use crate::trust_bundle::TrustBundle;

/// The page. Answers 503 until it has a certificate.
#[derive(Clone, Debug, Default)]
pub struct CertificatePage(Arc<OnceLock<CertificateSources>>);

#[derive(Clone, Debug)]
struct CertificateSources {
    credentials: watch::Receiver<Option<Arc<Credentials>>>,
    bundle: watch::Receiver<Arc<TrustBundle>>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CertificateRoots {
    names: String,
    /// RFC 3339.
    not_after: String,
    /// SHA-256 of each root that the process trusts, in hexadecimal.
    trusted_roots: Vec<String>,
    /// The trusted roots under which the certificate is valid.
    certificate_roots: Vec<String>,
}

impl CertificatePage {
    /// The route, to merge into an admin server.
    pub fn routes(&self) -> Router {
        Router::new().route("/certificate", get(show)).with_state(self.clone())
    }

    /// Shows this certificate and these roots from now on. Only the first call has an effect.
    pub fn follow(
        &self,
        credentials: watch::Receiver<Option<Arc<Credentials>>>,
        bundle: watch::Receiver<Arc<TrustBundle>>,
    ) {
        let _ = self.0.set(CertificateSources { credentials, bundle });
    }
}

async fn show(State(page): State<CertificatePage>) -> Response {
    let sources = page.0.get();
    let credentials = sources.and_then(|sources| sources.credentials.borrow().clone());
    let (Some(sources), Some(credentials)) = (sources, credentials) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "there is no certificate yet\n").into_response();
    };
    let bundle = sources.bundle.borrow().clone();
    Json(CertificateRoots {
        names: credentials.leaf.display_names(),
        not_after: humantime::format_rfc3339_seconds(credentials.leaf.not_after).to_string(),
        trusted_roots: bundle.fingerprints(),
        certificate_roots: credentials.roots(&bundle, SystemTime::now()),
    })
    .into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use serde_json::Value;

    use super::*;
    use crate::test_pki::{TestAuthority, bundle, identity};

    async fn shown(page: &CertificatePage) -> (StatusCode, Vec<u8>) {
        let answer = show(State(page.clone())).await;
        let status = answer.status();
        (status, to_bytes(answer.into_body(), 1 << 16).await.unwrap().to_vec())
    }

    #[tokio::test]
    async fn the_roots_under_which_the_certificate_is_good_differ_from_those_that_are_trusted() {
        let page = CertificatePage::default();
        assert_eq!(shown(&page).await.0, StatusCode::SERVICE_UNAVAILABLE);
        let (old, new) = (TestAuthority::root("old"), TestAuthority::root("new"));
        let (sender, credentials) = watch::channel(None);
        page.follow(credentials, watch::channel(Arc::new(bundle(&[&old, &new]))).1);
        assert_eq!(shown(&page).await.0, StatusCode::SERVICE_UNAVAILABLE);
        sender.send_replace(Some(Arc::new(new.credentials(&identity("cart")))));
        let (status, body) = shown(&page).await;
        assert_eq!(status, StatusCode::OK);
        let page: Value = serde_json::from_slice(&body).unwrap();
        let roots = |name: &str| page[name].as_array().unwrap().clone();
        assert_eq!(roots("trustedRoots").len(), 2);
        assert_eq!(roots("certificateRoots"), new.bundle().fingerprints());
    }
}
