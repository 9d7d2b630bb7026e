# shellcheck shell=bash
# The node's network namespace and cgroups. Sourced by `cluster`.

# Not `ip netns exec`: that mounts its own /sys, without the cgroup mounts.
in_node() {
    nsenter --net="/run/netns/$unique" -- "$@"
}

make_network() {
    ip netns add "$unique"
    ip link add "$host_veth" type veth peer name "$node_veth" netns "$unique"
    ip address add "$host_address/24" dev "$host_veth"
    ip link set "$host_veth" up
    ip -n "$unique" link set lo up
    ip -n "$unique" address add "$node_address/24" dev "$node_veth"
    ip -n "$unique" link set "$node_veth" up
    # A default route, for programs that refuse to run without one. Nothing is forwarded beyond the host.
    ip -n "$unique" route add default via "$host_address"
    in_node sysctl -q -w net.ipv4.ip_forward=1
}

remove_network() {
    if [ -n "${slot:-}" ]; then
        ip link delete "$host_veth" 2>/dev/null || true
    fi
    if [ -e "/run/netns/$unique" ]; then
        ip netns delete "$unique"
    fi
}

# Each cluster has its own kubelet cgroups: otherwise two kubelets on one machine would kill each other's pods.
make_cgroups() {
    local controller
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        mkdir -p "/sys/fs/cgroup/$unique"
        return
    fi
    for controller in $(cgroup_roots); do
        mkdir -p "$controller/$unique"
        if [ -e "$controller/cpuset.cpus" ]; then
            cat "$controller/cpuset.cpus" >"$controller/$unique/cpuset.cpus"
            cat "$controller/cpuset.mems" >"$controller/$unique/cpuset.mems"
        fi
    done
}

cgroup_roots() {
    local root
    if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
        echo /sys/fs/cgroup
        return
    fi
    for root in /sys/fs/cgroup/*/; do
        if [ -e "$root/cgroup.procs" ]; then
            echo "${root%/}"
        fi
    done
}

# The processes of the cluster's containers.
container_processes() {
    local root
    for root in $(cgroup_roots); do
        if [ -d "$root/$unique" ]; then
            find "$root/$unique" -name cgroup.procs -exec cat {} + 2>/dev/null || true
        fi
    done | sort -u
}

remove_cgroups() {
    local root
    for root in $(cgroup_roots); do
        if [ -d "$root/$unique" ]; then
            find "$root/$unique" -depth -type d -exec rmdir {} \; 2>/dev/null || true
        fi
    done
}
