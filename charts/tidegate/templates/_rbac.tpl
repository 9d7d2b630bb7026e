{{/* Binds a daemon's ClusterRole to its ServiceAccount. Takes (dict "root" $ "name" "tidegate-x"). */}}
{{- define "tidegate.clusterRoleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ include "tidegate.clusterName" . }}
  labels:
    {{- include "tidegate.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ include "tidegate.clusterName" . }}
subjects:
  - kind: ServiceAccount
    name: {{ .name }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* Binds a Role in a namespace to a daemon's ServiceAccount. Takes the same, "namespace", and "roleName" unless it is "name". */}}
{{- define "tidegate.roleBinding" -}}
{{- $roleName := .roleName | default .name -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $roleName }}
  namespace: {{ .namespace }}
  labels:
    {{- include "tidegate.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ $roleName }}
subjects:
  - kind: ServiceAccount
    name: {{ .name }}
    namespace: {{ .root.Release.Namespace }}
{{- end }}

{{/* What a Lease needs, by its name. */}}
{{- define "tidegate.leaseRules" -}}
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ . }}]
  verbs: [get, update]
{{- end }}
