# shellcheck shell=bash
# Certificates and kubeconfigs of the control plane and the node. Sourced by `cluster`.

make_certificates() {
    local pki=$folder/pki
    mkdir -p "$pki"
    authority ca
    authority front-proxy-ca
    openssl genrsa -out "$pki/service-account.key" 2048 2>>"$folder/openssl.log"
    openssl rsa -in "$pki/service-account.key" -pubout -out "$pki/service-account.pub" 2>>"$folder/openssl.log"

    leaf ca apiserver /CN=kube-apiserver serverAuth "IP:127.0.0.1,IP:$node_address,IP:$kubernetes_service,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local"
    leaf ca apiserver-kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
    leaf front-proxy-ca front-proxy-client /CN=front-proxy-client clientAuth
    user admin /O=system:masters/CN=admin
    user kube-controller-manager /CN=system:kube-controller-manager
    user kube-scheduler /CN=system:kube-scheduler
    user kube-proxy /CN=system:kube-proxy
    user kubelet "/O=system:nodes/CN=system:node:$node_name"
}

authority() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=$1" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature \
        -keyout "$folder/pki/$1.key" -out "$folder/pki/$1.crt" 2>>"$folder/openssl.log"
}

# leaf AUTHORITY NAME SUBJECT EXTENDED-KEY-USAGE [SANS]
leaf() {
    local pki=$folder/pki name=$2
    {
        echo "basicConstraints=critical,CA:FALSE"
        echo "keyUsage=critical,digitalSignature"
        echo "extendedKeyUsage=$4"
        if [ -n "${5:-}" ]; then
            echo "subjectAltName=$5"
        fi
    } >"$pki/$name.ext"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "$3" \
        -keyout "$pki/$name.key" -out "$pki/$name.csr" 2>>"$folder/openssl.log"
    openssl x509 -req -in "$pki/$name.csr" -CA "$pki/$1.crt" -CAkey "$pki/$1.key" -CAcreateserial -days 3650 \
        -extfile "$pki/$name.ext" -out "$pki/$name.crt" 2>>"$folder/openssl.log"
}

# user NAME SUBJECT: a client certificate and the kubeconfig that holds it.
user() {
    local pki=$folder/pki
    leaf ca "$1" "$2" clientAuth
    cat >"$folder/$1.kubeconfig" <<KUBECONFIG
apiVersion: v1
kind: Config
clusters:
- name: $unique
  cluster:
    server: https://$node_address:6443
    certificate-authority-data: $(base64 -w0 "$pki/ca.crt")
users:
- name: $1
  user:
    client-certificate-data: $(base64 -w0 "$pki/$1.crt")
    client-key-data: $(base64 -w0 "$pki/$1.key")
contexts:
- name: $unique
  context:
    cluster: $unique
    user: $1
current-context: $unique
KUBECONFIG
    chmod 600 "$folder/$1.kubeconfig"
}
