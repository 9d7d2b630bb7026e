# shellcheck shell=bash
# Every name, folder and address of a cluster, all derived from its name. Sourced by `cluster`.

# The components, in start order. This is the only list.
parts=(etcd kube-apiserver containerd kube-controller-manager kube-scheduler kubelet kube-proxy)

clusters_folder=/var/lib/tidegate-cluster
service_network=10.96.0.0/12
kubernetes_service=10.96.0.1
dns_service=10.96.0.10
pod_network=10.244.0.0/16
node_pod_network=10.244.0.0/22

set_names() {
    if [[ ! $1 =~ ^[a-z][a-z0-9]{0,11}$ ]]; then
        fail "cluster name \"$1\": 1 to 12 lower-case letters and digits, a letter first"
    fi
    cluster=$1
    # Network namespace, cgroup, CNI network and node all have this name.
    unique=tidegate-$cluster
    folder=$clusters_folder/$cluster
    kubeconfig=$folder/admin.kubeconfig
    socket=$folder/containerd.sock
    node_name=$unique
    slot_file=$folder/slot
    if [ -e "$slot_file" ]; then
        set_slot "$(cat "$slot_file")"
    fi
}

# The slot is a small number, unique on this machine, from which the subnet and the names of the veth pair derive.
set_slot() {
    slot=$1
    host_address=10.250.$slot.2
    node_address=10.250.$slot.1
    host_veth=tgh$slot
    node_veth=tgn$slot
}

# Takes the first free slot, starting at a hash of the name.
take_slot() {
    local start candidate offset
    start=$(($(cksum <<<"$cluster" | cut -d' ' -f1) % 250))
    mkdir -p "$folder"
    exec 8>"$cache/slots.lock"
    flock 8
    for offset in $(seq 0 249); do
        candidate=$(((start + offset) % 250 + 1))
        if ! ip link show "tgh$candidate" >/dev/null 2>&1 &&
            ! grep -qsx "$candidate" "$clusters_folder"/*/slot; then
            echo "$candidate" >"$slot_file"
            set_slot "$candidate"
            exec 8>&-
            return
        fi
    done
    fail "all 250 subnets for test clusters are in use"
}

say() {
    echo "cluster $cluster: $*" >&2
}

fail() {
    echo "cluster: $*" >&2
    exit 1
}

require_root() {
    if [ "$(id -u)" -ne 0 ]; then
        fail "a node needs root (network namespaces, mounts, cgroups): run it as root"
    fi
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >"$folder/wait.log" 2>&1; do
        if [ "$SECONDS" -ge "$deadline" ]; then
            cat "$folder/wait.log" >&2
            say "timed out waiting until $what"
            return 1
        fi
        sleep 0.05
    done
}
