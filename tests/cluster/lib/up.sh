# shellcheck shell=bash
# Starts a cluster. Sourced by `cluster`.

up() {
    require_root
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/cluster
    mkdir -p "$cache"
    exec 7>"$cache/$cluster.lock"
    flock 7
    if status >/dev/null 2>&1; then
        echo "$kubeconfig"
        return
    fi
    clean
    check_machine
    local started=$SECONDS programs
    programs=$("$here/build")
    trap 'up_failed' EXIT
    take_slot
    ln -s "$programs" "$folder/bin"
    make_network
    make_cgroups
    start_part etcd
    make_certificates
    start_part kube-apiserver
    write_node_files
    start_part containerd
    wait_for 30 "containerd answers" ctr -a "$socket" version
    local image
    for image in pause coredns; do
        make_image $image
        load_images "$(image_tar $image)"
    done
    wait_for 60 "the API server is ready" admin get --raw /readyz
    start_part kubelet
    start_part kube-controller-manager
    start_part kube-scheduler
    admin apply -f "$here/coredns.yaml" >&2
    wait_for 60 "the node has registered" admin get node "$node_name"
    # It looks for its node once at startup, and then only after half a minute.
    start_part kube-proxy
    admin wait --for=condition=Ready "node/$node_name" --timeout 60s >&2
    admin -n kube-system rollout status deployment/coredns --timeout 90s >&2
    trap - EXIT
    say "up after $((SECONDS - started)) s"
    echo "$kubeconfig"
}

up_failed() {
    local log
    say "could not be started; the last log lines of its parts:"
    for log in "$folder"/*.log; do
        echo "---- ${log##*/}" >&2
        tail -n 15 "$log" >&2
    done
    clean
    exit 1
}

check_machine() {
    "$here/../install-packages" containerd:containerd ctr:containerd runc:runc \
        /usr/lib/cni/bridge:containernetworking-plugins iptables:iptables conntrack:conntrack ip:iproute2 \
        openssl:openssl nsenter:util-linux sysctl:procps xargs:findutils
    if [ ! -d /sys/fs/cgroup ] || [ -z "$(cgroup_roots)" ]; then
        fail "no cgroups at /sys/fs/cgroup: this machine cannot run a node"
    fi
    if ! ip netns add "$unique-probe" 2>/dev/null; then
        fail "network namespaces cannot be created: this machine cannot run a node"
    fi
    ip netns delete "$unique-probe"
}

admin() {
    "$folder/bin/kubectl" --kubeconfig "$kubeconfig" --cache-dir "$folder/kubectl-cache" "$@"
}

# The image of one of the cluster's own programs is beside the program.
image_tar() {
    echo "$(readlink -f "$folder/bin")/$1.tar"
}

make_image() {
    if [ ! -e "$(image_tar "$1")" ]; then
        "$here/image" --tag "tidegate.test/$1:1" --output "$(image_tar "$1")" --entrypoint "/$1" \
            --program "$folder/bin/$1:/$1"
    fi
}

load() {
    require_root
    [ -S "$socket" ] || fail "cluster $cluster is not running"
    load_images "$@"
}

load_images() {
    local tar
    for tar in "$@"; do
        ctr -a "$socket" -n k8s.io images import --snapshotter overlayfs "$tar" >&2
    done
}

write_node_files() {
    mkdir -p "$folder/cni" "$folder/manifests"
    printf 'nameserver %s\n' "$dns_service" >"$folder/resolv.conf"
    # restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot lower the score, and every sandbox would fail.
    # netns_mounts_under_state_dir: removing the folder removes the pods' namespaces.
    cat >"$folder/containerd.toml" <<TOML
version = 2
root = "$folder/containerd/root"
state = "$folder/containerd/state"
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "$socket"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "tidegate.test/pause:1"
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "$folder/cni"
TOML
    cat >"$folder/cni/10-bridge.conflist" <<JSON
{
  "cniVersion": "1.0.0",
  "name": "$unique",
  "plugins": [
    {
      "type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
      "ipam": {
        "type": "host-local", "dataDir": "$folder/cni-addresses",
        "ranges": [[{"subnet": "$node_pod_network"}]], "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
JSON
    # Eviction and image garbage collection are off: a nearly full disk must not taint the node. Volumes follow their
    # ConfigMaps within seconds; containers that exit are restarted soon, however often they did.
    cat >"$folder/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $folder/pki/ca.crt}
authorization: {mode: Webhook}
cgroupDriver: cgroupfs
cgroupRoot: /$unique
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: [pods]
containerRuntimeEndpoint: unix://$socket
clusterDNS: [$dns_service]
clusterDomain: cluster.local
resolvConf: $folder/resolv.conf
staticPodPath: $folder/manifests
podLogsDir: $folder/pod-logs
volumePluginDir: $folder/volume-plugins
maxPods: 500
containerLogMaxSize: 500Mi
syncFrequency: 10s
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 1Mi, nodefs.available: 1Mi, nodefs.inodesFree: "1", imagefs.available: 1Mi}
oomScoreAdj: 0
registerNode: true
# 0 would select the client's own default of 5 a second.
eventRecordQPS: 200
eventBurst: 400
kubeAPIQPS: 200
kubeAPIBurst: 400
crashLoopBackOff: {maxContainerRestartPeriod: 5s}
featureGates: {KubeletCrashLoopBackOffMax: true}
YAML
}
