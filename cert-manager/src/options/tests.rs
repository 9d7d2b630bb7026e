use super::*;

fn parse(arguments: &str) -> Result<Options, String> {
    let arguments = std::iter::once("tidegate-cert-manager").chain(arguments.split_whitespace());
    Options::try_parse_from(arguments).map_err(|error| error.to_string())
}

#[test]
fn every_option_has_help_and_a_stated_default() {
    use clap::CommandFactory;
    let command = Options::command();
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
fn all_problems_are_reported_together_each_with_its_flag() {
    let options = parse(
        "--jwt-keys-file /absent/keys --default-lifetime 2h --max-lifetime 1h --rate-burst 0 --gateway-dir /tmp \
         --gateway-secret ns/Name --gateway-san *.a --gateway-validity soon",
    )
    .unwrap();
    let problems = options.build(Metrics::new(), LogHandle::detached()).err().unwrap().0;
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
