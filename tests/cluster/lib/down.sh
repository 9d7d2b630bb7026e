# shellcheck shell=bash
# Stops a cluster. It looks for what exists instead of relying on records, so it also removes the remains of a crash.
# Sourced by `cluster`.

down() {
    require_root
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/tidegate/cluster
    mkdir -p "$cache"
    exec 7>"$cache/$cluster.lock"
    flock 7
    clean
    rm -f "$cache/$cluster.lock"
}

clean() {
    end_processes
    remove_mounts
    remove_shim_sockets
    remove_network
    remove_cgroups
    rm -rf "/var/lib/cni/results/$unique-"*
    remove_log_links
    rm -rf "$folder"
    rmdir "$clusters_folder" 2>/dev/null || true
}

# The kubelet first, because it would restart containers; then the containers, their shims, and the rest. All are found
# by this cluster's own cgroup and network namespace.
end_processes() {
    local pid
    if [ -e "/run/netns/$unique" ]; then
        for pid in $(part_process kubelet); do
            kill_and_wait "$pid"
        done
    fi
    # The next round finds processes that a container starts meanwhile.
    while [ -n "$(container_processes)" ]; do
        # shellcheck disable=SC2046
        kill -9 $(container_processes) 2>/dev/null || true
        sleep 0.05
    done
    if [ -e "/run/netns/$unique" ]; then
        while [ -n "$(living_in_node)" ]; do
            # shellcheck disable=SC2046
            kill -9 $(living_in_node) 2>/dev/null || true
            sleep 0.05
        done
    fi
}

living_in_node() {
    ip netns pids "$unique" 2>/dev/null || true
}

kill_and_wait() {
    kill -9 "$1" 2>/dev/null || true
    while [ -e "/proc/$1/cmdline" ] && [ -n "$(tr -d '\0' <"/proc/$1/cmdline" 2>/dev/null)" ]; do
        sleep 0.02
    done
}

remove_mounts() {
    local mount
    awk -v folder="$folder/" 'index($5, folder) == 1 { print $5 }' /proc/self/mountinfo | sort -r |
        while read -r mount; do
            umount -l "$mount" 2>/dev/null || true
        done
}

# A killed shim leaves its socket behind; its bundle records the path.
remove_shim_sockets() {
    local address
    for address in "$folder"/containerd/state/io.containerd.runtime.v2.task/*/*/address; do
        if [ -e "$address" ]; then
            rm -f "$(sed 's,^unix://,,' "$address")"
        fi
    done
}

# The kubelet keeps links to the containers' logs in a folder that is not configurable.
remove_log_links() {
    local link
    for link in /var/log/containers/*; do
        if [ -L "$link" ] && [[ $(readlink "$link") == "$folder"/* ]]; then
            rm -f "$link"
        fi
    done
    rmdir /var/log/containers 2>/dev/null || true
}
