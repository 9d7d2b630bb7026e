{{/* Labels of every object. Takes (dict "root" $ "name" "tidegate-x"). */}}
{{- define "tidegate.labels" -}}
{{ include "tidegate.selector" . }}
app.kubernetes.io/part-of: tidegate
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* Labels that Deployments and Services select by; they never change. */}}
{{- define "tidegate.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Values.meshName }}
{{- end }}

{{/* The name of an object in a place that meshes share, such as one that belongs to no namespace: each has its own. */}}
{{- define "tidegate.clusterName" -}}
{{- if eq .root.Values.meshName "osm" -}}{{ .name }}{{- else -}}{{ .name }}-{{ .root.Values.meshName }}{{- end -}}
{{- end }}

{{/* An image's name. Takes (dict "root" $ "image" .Values.x.image). */}}
{{- define "tidegate.image" -}}
{{- with .root.Values.image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- .image.repository -}}
{{- if .image.digest -}}
@{{ .image.digest }}
{{- else -}}
:{{ coalesce .image.tag .root.Values.image.tag .root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Where the CA is, and how a daemon or a sidecar proves who it is. */}}
{{- define "tidegate.caArgs" -}}
- --ca-address=https://tidegate-cert-manager.{{ .Release.Namespace }}.svc:15012
- --ca-server-name=tidegate-cert-manager.{{ .Release.Namespace }}.svc
- --ca-trust-bundle=/var/run/tidegate/trust/ca.crt
- --token-file=/var/run/tidegate/token/token
{{- end }}

{{/* Flags that all daemons have. */}}
{{- define "tidegate.commonArgs" -}}
- --kubernetes
- --mesh-name={{ .Values.meshName }}
- --trust-domain={{ .Values.trustDomain }}
- --health-address=[::]:9091
- --admin-address=127.0.0.1:15000
- --log-level={{ .Values.log.level }}
- --log-format={{ .Values.log.format }}
{{- end }}

{{/* Both names of a Service of the control plane, as --service-names has them. Takes (dict "root" $ "name" …). */}}
{{- define "tidegate.serviceNames" -}}
{{ .root.Release.Namespace }}/{{ .name }}={{ .name }}.{{ .root.Release.Namespace }}.svc+{{ .name }}.{{ .root.Release.Namespace }}.svc.{{ .root.Values.clusterDomain }}
{{- end }}

{{/*
How a namespace joins the mesh: by a label that names the mesh, or by one that names none and means the default mesh. JSON,
because a template returns text.
*/}}
{{- define "tidegate.waysIn" -}}
{{- if eq .Values.meshName "osm" }}["monitored-by", "injection"]{{ else }}["monitored-by"]{{ end }}
{{- end }}

{{/*
namespaceSelectors of the mesh's namespaces: a webhook selects by conjunctions only, so there is one for each way in, of
which never both hold. Takes (dict "root" $ "by" a way in).
*/}}
{{- define "tidegate.meshedNamespaces" -}}
matchExpressions:
  {{- if eq .by "monitored-by" }}
  - key: openservicemesh.io/monitored-by
    operator: In
    values: [{{ .root.Values.meshName | quote }}]
  {{- else }}
  - key: tidegate.io/injection
    operator: In
    values: [enabled]
  - key: openservicemesh.io/monitored-by
    operator: DoesNotExist
  {{- end }}
  - key: openservicemesh.io/ignore
    operator: DoesNotExist
  - key: control-plane
    operator: DoesNotExist
  - key: kubernetes.io/metadata.name
    operator: NotIn
    values:
      - kube-system
      - kube-public
      - kube-node-lease
      - {{ .root.Release.Namespace }}
{{- end }}
