use super::*;
use crate::certificates::RunCertificates;
use crate::load::tests::tls_server;
use crate::targets::ClientFiles;

#[tokio::test]
async fn a_listener_that_admits_every_client_of_the_ca_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(directory.path()).unwrap();
    let (address, _) = tls_server(&certificates).await;
    let files = ClientFiles::of(&certificates, &certificates.caller);
    let mut running = Running::without_proxy(address);
    running.inner = Some(MtlsListener { address, files, protocols: &[] });
    let error = refuses_others(&running, ProxyTopology::Pair).await.unwrap_err();
    assert_eq!(format!("{error:#}"), "a client with another name: admitted with status 200");

    let listener = running.guarded().unwrap();
    let refused = refusal(&endpoint(&listener, None).unwrap()).await.unwrap();
    assert!(refused.contains("CertificateRequired"), "{refused}");
}

#[tokio::test]
async fn a_listener_that_refuses_every_client_is_found_out() {
    let directory = tempfile::tempdir().unwrap();
    let certificates = RunCertificates::create(directory.path()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let other = RunCertificates::create(elsewhere.path()).unwrap();
    let (address, _) = tls_server(&certificates).await;
    let mut files = ClientFiles::of(&certificates, &other.caller);
    files.foreign = other.foreign;
    let mut running = Running::without_proxy(address);
    running.inner = Some(MtlsListener { address, files, protocols: &[] });
    let error = refuses_others(&running, ProxyTopology::Pair).await.unwrap_err();
    assert!(format!("{error:#}").starts_with("admitted client: "), "{error:#}");
}
