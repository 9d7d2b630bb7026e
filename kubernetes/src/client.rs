//! Connects to the API server.
//!
//! In a pod it uses the pod's service account; elsewhere the same configuration as `kubectl`. Proxies of the
//! environment are honoured as in `kubectl`: `HTTPS_PROXY` (`HTTP_PROXY` for an API server without TLS), and `NO_PROXY`
//! for the API server's own name. Connecting, reading and writing have timeouts, so that no call waits forever on a
//! connection whose peer is gone.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use http::Uri;
use http::uri::Scheme;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tidegate_runtime::forward_proxy::no_proxy;

/// Timeout of the TCP and TLS handshakes with the API server.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a daemon waits for the next byte of a response. Longer than a watch is ever silent: see
/// [`WatchTiming`](crate::watch::WatchTiming).
const READ_TIMEOUT: Duration = Duration::from_secs(45);
/// Timeout for the kernel to accept sent data.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// Selects the cluster and the user.
#[derive(Args, Clone, Debug, Default)]
pub struct ClientOptions {
    /// The kubeconfig file. Default: the pod's own service account, else $KUBECONFIG, else ~/.kube/config.
    #[arg(long, env = "TIDEGATE_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The context of the kubeconfig. Default: its current one.
    #[arg(long, env = "TIDEGATE_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
}

/// Why a client could not be created.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig is invalid.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The pod's service account is unusable.
    #[error("service account of this pod: {0}")]
    InCluster(#[from] kube::config::InClusterError),
    /// A proxy of the environment is not a URL.
    #[error("{variable}: not a proxy's URL: {value:?}: {source}")]
    Proxy {
        /// The environment variable.
        variable: String,
        /// Its value.
        value: String,
        /// The parse error.
        source: http::uri::InvalidUri,
    },
    /// The configuration cannot be made into a client, for instance because its CA is not a certificate.
    #[error("Kubernetes client: {0}")]
    Build(#[from] kube::Error),
}

/// A client for a daemon: every response has a timeout. Does not connect yet.
pub async fn connect(options: &ClientOptions) -> Result<Client, ClientError> {
    let mut config = config(options).await?;
    bound_reads(&mut config);
    Ok(Client::try_from(config)?)
}

/// The configuration for a command line: streams such as port-forwards may be silent for any length of time.
pub async fn config(options: &ClientOptions) -> Result<Config, ClientError> {
    let is_named = options.kubeconfig.is_some() || options.context.is_some();
    let environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_in_pod = environment("KUBERNETES_SERVICE_HOST").is_some() && environment("KUBECONFIG").is_none();
    let (mut config, has_own_proxy) = if is_in_pod && !is_named {
        (Config::incluster()?, false)
    } else {
        let kubeconfig = match &options.kubeconfig {
            Some(path) => Kubeconfig::read_from(path)?,
            None => Kubeconfig::read()?,
        };
        let has_own_proxy = has_own_proxy(&kubeconfig, options.context.as_deref());
        let selected = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
        (Config::from_custom_kubeconfig(kubeconfig, &selected).await?, has_own_proxy)
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.write_timeout = Some(WRITE_TIMEOUT);
    if !has_own_proxy {
        config.proxy_url = proxy(&config.cluster_url, environment)?;
    }
    Ok(config)
}

/// Sets a timeout for each byte of a response. It counts from the last byte sent, not from when the connection became
/// idle.
fn bound_reads(config: &mut Config) {
    config.read_timeout = Some(READ_TIMEOUT);
    config.reset_reader_on_write = true;
}

/// Whether the kubeconfig sets a proxy for the selected cluster, which then takes precedence.
fn has_own_proxy(kubeconfig: &Kubeconfig, context: Option<&str>) -> bool {
    let name = context.or(kubeconfig.current_context.as_deref());
    let context = kubeconfig.contexts.iter().find(|context| Some(context.name.as_str()) == name);
    let cluster = context.and_then(|context| context.context.as_ref()).map(|context| &context.cluster);
    let cluster = kubeconfig.clusters.iter().find(|named| Some(&named.name) == cluster);
    let url = cluster.and_then(|named| named.cluster.as_ref()).and_then(|cluster| cluster.proxy_url.as_ref());
    url.is_some_and(|url| !url.is_empty())
}

/// The environment's proxy for this API server, if any.
fn proxy(server: &Uri, environment: impl Fn(&str) -> Option<String>) -> Result<Option<Uri>, ClientError> {
    let name = if server.scheme() == Some(&Scheme::HTTP) { "HTTP_PROXY" } else { "HTTPS_PROXY" };
    let either = |name: &str| {
        let lower = name.to_ascii_lowercase();
        environment(name).map(|value| (name.to_owned(), value)).or_else(|| {
            let value = environment(&lower)?;
            Some((lower, value))
        })
    };
    let Some((variable, value)) = either(name) else { return Ok(None) };
    let excluded = either("NO_PROXY").map(|(_, list)| no_proxy(&list));
    let port = server.port_u16().unwrap_or(if name == "HTTP_PROXY" { 80 } else { 443 });
    let host = server.host().unwrap_or_default().trim_matches(['[', ']']);
    if excluded.is_some_and(|excluded| excluded.has_host(host, port)) {
        return Ok(None);
    }
    // As in curl and Go, a proxy without a scheme uses HTTP.
    let url = if value.contains("://") { value.clone() } else { format!("http://{value}") };
    match url.parse() {
        Ok(url) => Ok(Some(url)),
        Err(source) => Err(ClientError::Proxy { variable, value, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'e>(pairs: &'e [(&str, &str)]) -> impl Fn(&str) -> Option<String> + 'e {
        |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn the_api_server_is_reached_through_the_proxy_of_the_environment_unless_it_is_excluded() {
        let server = "https://10.96.0.1:443".parse().unwrap();
        let chosen =
            |pairs: &[(&str, &str)]| proxy(&server, environment(pairs)).unwrap().map(|url| url.to_string());
        assert_eq!(chosen(&[]), None);
        assert_eq!(chosen(&[("HTTP_PROXY", "http://p:3128")]), None);
        assert_eq!(chosen(&[("HTTPS_PROXY", "http://p:3128")]).as_deref(), Some("http://p:3128/"));
        assert_eq!(chosen(&[("https_proxy", "p:3128")]).as_deref(), Some("http://p:3128/"));
        let excluded = [("HTTPS_PROXY", "http://p:3128"), ("NO_PROXY", "10.96.0.0/12,.svc")];
        assert_eq!(chosen(&excluded), None);
        let elsewhere = [("HTTPS_PROXY", "http://p:3128"), ("no_proxy", "10.0.0.0/24,p")];
        assert_eq!(chosen(&elsewhere).as_deref(), Some("http://p:3128/"));
    }

    #[test]
    fn a_proxy_that_is_not_a_url_is_named_with_its_variable() {
        let server = "https://10.96.0.1".parse().unwrap();
        let error = proxy(&server, environment(&[("https_proxy", "http://a b")])).unwrap_err().to_string();
        assert!(error.starts_with("https_proxy: not a proxy's URL: \"http://a b\""), "{error}");
    }

    #[tokio::test]
    async fn a_kubeconfig_s_own_proxy_and_context_count() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config");
        let text = "{apiVersion: v1, kind: Config, current-context: a, contexts: [\
            {name: a, context: {cluster: a, user: u}}, {name: b, context: {cluster: b, user: u}}], clusters: [\
            {name: a, cluster: {server: 'https://a.test:6443'}}, \
            {name: b, cluster: {server: 'https://b.test:6443', proxy-url: 'http://proxy.test:3128'}}], \
            users: [{name: u, user: {token: t}}]}";
        std::fs::write(&file, text).unwrap();
        let options = |context: Option<&str>| ClientOptions {
            kubeconfig: Some(file.clone()),
            context: context.map(str::to_owned),
        };
        let a = config(&options(None)).await.unwrap();
        assert_eq!(a.cluster_url.host(), Some("a.test"));
        let b = config(&options(Some("b"))).await.unwrap();
        assert_eq!(b.cluster_url.host(), Some("b.test"));
        assert_eq!(b.proxy_url.unwrap().to_string(), "http://proxy.test:3128/");
        let error = config(&options(Some("c"))).await.unwrap_err();
        assert!(matches!(error, ClientError::Kubeconfig(_)), "{error}");
    }
}
