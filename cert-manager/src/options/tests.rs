use super::*;

fn parse(arguments: &str) -> Result<CertManagerOptions, String> {
    let arguments = std::iter::once("tidegate-cert-manager").chain(arguments.split_whitespace());
    CertManagerOptions::try_parse_from(arguments).map_err(|error| error.to_string())
}

#[test]
fn every_option_has_help_and_a_stated_default() {
    use clap::CommandFactory;
    let command = CertManagerOptions::command();
    command.clone().debug_assert();
    for argument in command.get_arguments() {
        assert!(argument.get_help().is_some(), "{} has no help", argument.get_id());
        assert!(
            argument.get_env().is_some() || argument.get_id() == "help" || argument.get_id() == "version",
            "{} has no environment variable",
            argument.get_id()
        );
    }
}

#[test]
fn options_that_belong_together_are_demanded_together() {
    assert!(parse("").unwrap_err().contains("--jwt-keys-file"));
    assert!(parse("--jwt-keys-file k --ca-certificate c").unwrap_err().contains("--ca-key"));
    assert!(parse("--jwt-keys-file k --gateway-san a.b").unwrap_err().contains("--gateway-secret"));
}

#[test]
fn kubernetes_takes_the_place_of_every_folder() {
    let kubernetes = "--kubernetes --pod-name tidegate-cert-manager-0";
    let options = parse(kubernetes).unwrap();
    assert_eq!(options.common.namespace, "tidegate-system");
    assert_eq!(options.common.mesh_name, "osm");
    assert_eq!(options.audience(), "tidegate-ca");
    assert!(parse("--kubernetes").unwrap_err().contains("--pod-name"));
    for flag in [
        "--store-dir",
        "--bundle-file",
        "--jwt-keys-file",
        "--jwt-issuer",
        "--gateway-dir",
        "--gateway-validity",
        "--gateway-secret=a/b --gateway-san=a --gateway-dir",
    ] {
        let error = parse(&format!("{kubernetes} {flag} x")).unwrap_err();
        assert!(error.contains("cannot be used with"), "{flag}: {error}");
    }
    // The user's own authority may come from files there too, such as from a mounted Secret.
    parse(&format!("{kubernetes} --ca-certificate a --ca-key b")).unwrap();
}

#[test]
fn the_names_of_the_service_follow_from_its_namespace_unless_they_are_given() {
    let names = |arguments: &str| {
        let options = parse(&format!("--jwt-keys-file k {arguments}")).unwrap();
        options.config().serving_names.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let names_of = |service: &str| {
        vec![format!("DNS:{service}"), "DNS:localhost".into(), "IP:127.0.0.1".into(), "IP:::1".into()]
    };
    assert_eq!(names(""), names_of("tidegate-cert-manager.tidegate-system.svc"));
    assert_eq!(names("--namespace mesh"), names_of("tidegate-cert-manager.mesh.svc"));
    assert_eq!(names("--serving-name a.b"), ["DNS:a.b"]);
}

#[tokio::test]
async fn names_that_kubernetes_does_not_allow_are_reported_with_their_flags() {
    let api = tidegate_kubernetes::fake_api::FakeApi::start().await;
    let options = parse("--kubernetes --pod-name= --namespace A --mesh-name a/b --rate-burst 0").unwrap();
    let problems =
        options.build_on_kubernetes(&api.client(), Metrics::new(), Readiness::new(), LogHandle::detached());
    let problems = problems.err().unwrap().0;
    let flags: Vec<_> = problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
    assert_eq!(flags, ["--rate-burst", "--namespace", "--mesh-name", "--pod-name"]);
}

#[test]
fn all_problems_are_reported_together_each_with_its_flag() {
    let options = parse(
        "--jwt-keys-file /absent/keys --default-lifetime 2h --max-lifetime 1h --rate-burst 0 --gateway-dir /tmp \
         --gateway-secret ns/Name --gateway-san *.a --gateway-validity soon",
    )
    .unwrap();
    let problems = options.build(Metrics::new(), Readiness::new(), LogHandle::detached()).err().unwrap().0;
    let flags: Vec<_> = problems.iter().map(|problem| problem.split(':').next().unwrap()).collect();
    let expected = [
        "--max-lifetime",
        "--rate-burst",
        "--gateway-san",
        "--gateway-validity",
        "--gateway-secret",
        "--jwt-keys-file",
    ];
    assert_eq!(flags, expected, "{problems:?}");
}
