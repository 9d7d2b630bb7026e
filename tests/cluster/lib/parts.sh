# shellcheck shell=bash
# Starts each component of Kubernetes. Sourced by `cluster`.

# start_part PART: in the background, in the node's network namespace, with a log in the cluster's folder.
start_part() {
    local part=$1 bin=$folder/bin pki=$folder/pki
    if [ -n "$(part_process "$part")" ]; then
        fail "$part of cluster $cluster is already running"
    fi
    case $part in
    etcd)
        run etcd "$bin/etcd" --name etcd --data-dir "$folder/etcd" --unsafe-no-fsync \
            --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
            --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
            --initial-cluster etcd=http://127.0.0.1:2380
        ;;
    kube-apiserver)
        run kube-apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 \
            --advertise-address "$node_address" --secure-port 6443 --service-cluster-ip-range "$service_network" \
            --tls-cert-file "$pki/apiserver.crt" --tls-private-key-file "$pki/apiserver.key" \
            --client-ca-file "$pki/ca.crt" \
            --kubelet-client-certificate "$pki/apiserver-kubelet-client.crt" \
            --kubelet-client-key "$pki/apiserver-kubelet-client.key" \
            --kubelet-preferred-address-types InternalIP \
            --service-account-issuer https://kubernetes.default.svc.cluster.local \
            --service-account-key-file "$pki/service-account.pub" \
            --service-account-signing-key-file "$pki/service-account.key" \
            --authorization-mode Node,RBAC --enable-admission-plugins NodeRestriction --allow-privileged \
            --requestheader-client-ca-file "$pki/front-proxy-ca.crt" \
            --requestheader-allowed-names front-proxy-client \
            --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group \
            --requestheader-extra-headers-prefix X-Remote-Extra- \
            --proxy-client-cert-file "$pki/front-proxy-client.crt" \
            --proxy-client-key-file "$pki/front-proxy-client.key" --profiling=false
        ;;
    kube-controller-manager)
        run kube-controller-manager "$bin/kube-controller-manager" \
            --kubeconfig "$folder/kube-controller-manager.kubeconfig" --bind-address 127.0.0.1 \
            --allocate-node-cidrs --cluster-cidr "$pod_network" --node-cidr-mask-size 22 \
            --root-ca-file "$pki/ca.crt" --cluster-signing-cert-file "$pki/ca.crt" \
            --cluster-signing-key-file "$pki/ca.key" \
            --service-account-private-key-file "$pki/service-account.key" \
            --use-service-account-credentials --leader-elect=false
        ;;
    kube-scheduler)
        run kube-scheduler "$bin/kube-scheduler" --kubeconfig "$folder/kube-scheduler.kubeconfig" \
            --bind-address 127.0.0.1 --leader-elect=false
        ;;
    containerd)
        run containerd containerd --config "$folder/containerd.toml"
        ;;
    kubelet)
        run kubelet "$bin/kubelet" --config "$folder/kubelet.yaml" --kubeconfig "$folder/kubelet.kubeconfig" \
            --hostname-override "$node_name" --node-ip "$node_address" --root-dir "$folder/kubelet" \
            --cert-dir "$folder/kubelet-certificates"
        ;;
    kube-proxy)
        # The conntrack settings belong to the machine's initial network namespace; kube-proxy exits if it cannot
        # write them.
        run kube-proxy "$bin/kube-proxy" --kubeconfig "$folder/kube-proxy.kubeconfig" --proxy-mode iptables \
            --cluster-cidr "$pod_network" --hostname-override "$node_name" --conntrack-max-per-core 0 \
            --conntrack-tcp-timeout-established 0 --conntrack-tcp-timeout-close-wait 0 \
            --iptables-min-sync-period 100ms --oom-score-adj 0
        ;;
    *) fail "part \"$part\": not one of ${parts[*]}" ;;
    esac
}

# run PART COMMAND...: in a new session and without this shell's locks, so that it outlives both.
run() {
    local part=$1
    shift
    (
        exec 7>&- 8>&- </dev/null >>"$folder/$part.log" 2>&1
        exec setsid nsenter --net="/run/netns/$unique" -- "$@"
    ) &
    disown
}

# Prints the part's process id, or nothing. A part is the process of that name in the node's namespace.
part_process() {
    local pid
    if [ ! -e "/run/netns/$unique" ]; then
        return
    fi
    for pid in $(ip netns pids "$unique"); do
        if [ "$(tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | head -n1 | xargs -r basename)" = "$1" ]; then
            echo "$pid"
        fi
    done
}

kill_part() {
    local pid
    require_root
    pid=$(part_process "$1")
    if [ -z "$pid" ]; then
        fail "cluster $cluster has no process $1"
    fi
    kill -9 "$pid"
    while [ -e "/proc/$pid" ] && ! grep -q '^State:.Z' "/proc/$pid/status" 2>/dev/null; do
        sleep 0.02
    done
}

status() {
    local part pid whole=0
    if [ ! -e "/run/netns/$unique" ] && [ ! -e "$folder" ]; then
        echo "cluster $cluster: down"
        return 1
    fi
    for part in "${parts[@]}"; do
        pid=$(part_process "$part")
        if [ -z "$pid" ]; then
            whole=1
        fi
        printf '%-24s %s\n' "$part" "${pid:-not running}"
    done
    printf '%-24s %s\n' kubeconfig "$kubeconfig"
    if [ $whole -eq 0 ]; then
        "$folder/bin/kubectl" --kubeconfig "$kubeconfig" --request-timeout 5s get nodes || whole=1
    fi
    return $whole
}
