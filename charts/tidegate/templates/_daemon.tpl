{{/*
ServiceAccount, Deployment and PodDisruptionBudget of one daemon. Takes a dict:
  root      $
  name      tidegate-x: of the objects, the container and, in its image, the program
  values    .Values.x
  args      its own flags, YAML
  ports     container ports besides health, YAML
  hasIdentity  whether it gets a certificate from the CA as workloads do
*/}}
{{- define "tidegate.daemon" -}}
{{- $values := .root.Values }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "tidegate.labels" . | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "tidegate.labels" . | nindent 4 }}
spec:
  replicas: {{ .values.replicas }}
  selector:
    matchLabels:
      {{- include "tidegate.selector" . | nindent 6 }}
  {{- $antiAffinity := coalesce .values.podAntiAffinity $values.podAntiAffinity }}
  {{- if and (eq $antiAffinity "hard") (gt (int .values.replicas) 1) }}
  # A new Pod may find that every node already has one of the old Pods.
  strategy:
    rollingUpdate:
      maxUnavailable: 1
  {{- end }}
  template:
    metadata:
      labels:
        {{- include "tidegate.labels" . | nindent 8 }}
        {{- with merge (dict) (.values.podLabels | default dict) $values.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- $annotations := merge (dict) (.values.podAnnotations | default dict) $values.podAnnotations }}
      {{- if $values.prometheusAnnotations }}
      {{- $annotations = merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" "9091" "prometheus.io/path" "/metrics") }}
      {{- end }}
      {{- with $annotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      serviceAccountName: {{ .name }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
      {{- with $values.imagePullSecrets }}
      imagePullSecrets:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with coalesce .values.priorityClassName $values.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with coalesce .values.nodeSelector $values.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with coalesce .values.tolerations $values.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- $affinity := coalesce .values.affinity $values.affinity }}
      {{- if $affinity }}
      affinity:
        {{- toYaml $affinity | nindent 8 }}
      {{- else if ne $antiAffinity "none" }}
      affinity:
        podAntiAffinity:
          {{- if eq $antiAffinity "hard" }}
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector:
                matchLabels:
                  {{- include "tidegate.selector" . | nindent 18 }}
          {{- else }}
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                topologyKey: kubernetes.io/hostname
                labelSelector:
                  matchLabels:
                    {{- include "tidegate.selector" . | nindent 20 }}
          {{- end }}
      {{- end }}
      {{- with coalesce .values.topologySpreadConstraints $values.topologySpreadConstraints }}
      topologySpreadConstraints:
        {{- $selector := dict "labelSelector" (dict "matchLabels" (include "tidegate.selector" $ | fromYaml)) }}
        {{- range . }}
        {{- toYaml (list (merge (dict) . $selector)) | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- with $values.podSecurityContext }}
      securityContext:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .name }}
          image: {{ include "tidegate.image" (dict "root" .root "image" .values.image) | quote }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          command: [/usr/local/bin/{{ .name }}]
          args:
            {{- include "tidegate.commonArgs" .root | nindent 12 }}
            {{- .args | nindent 12 }}
            {{- range .values.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            - name: TIDEGATE_NAMESPACE
              valueFrom:
                fieldRef:
                  fieldPath: metadata.namespace
            - name: TIDEGATE_POD_NAME
              valueFrom:
                fieldRef:
                  fieldPath: metadata.name
            {{- with include "tidegate.proxyEnv" .root | trim }}
            {{- . | nindent 12 }}
            {{- end }}
            {{- with concat $values.extraEnv (.values.extraEnv | default list) }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            {{- .ports | nindent 12 }}
            - name: health
              containerPort: 9091
          livenessProbe:
            httpGet:
              path: /live
              port: health
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet:
              path: /ready
              port: health
            periodSeconds: 2
            timeoutSeconds: 2
            failureThreshold: 3
          {{- with .values.resources }}
          resources:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- with $values.securityContext }}
          securityContext:
            {{- toYaml . | nindent 12 }}
          {{- end }}
          {{- if .hasIdentity }}
          volumeMounts:
            - name: trust
              mountPath: /var/run/tidegate/trust
              readOnly: true
            - name: token
              mountPath: /var/run/tidegate/token
              readOnly: true
          {{- end }}
      {{- if .hasIdentity }}
      volumes:
        # Written by cert-manager; kubelet starts the container once it exists.
        - name: trust
          configMap:
            name: {{ include "tidegate.clusterName" (dict "root" .root "name" "tidegate-trust-bundle") }}
        - name: token
          projected:
            sources:
              - serviceAccountToken:
                  audience: {{ include "tidegate.clusterName" (dict "root" .root "name" "tidegate-ca") }}
                  expirationSeconds: 3600
                  path: token
      {{- end }}
{{- if $values.podDisruptionBudget.enabled }}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "tidegate.labels" . | nindent 4 }}
spec:
  maxUnavailable: {{ $values.podDisruptionBudget.maxUnavailable }}
  selector:
    matchLabels:
      {{- include "tidegate.selector" . | nindent 6 }}
{{- end }}
{{- end }}

{{/* Variables of the way out. Kubernetes replaces $(…). */}}
{{- define "tidegate.proxyEnv" -}}
{{- $proxy := .Values.global.proxy }}
{{- $http := coalesce $proxy.httpProxy .Values.proxy.httpProxy }}
{{- $https := coalesce $proxy.httpsProxy .Values.proxy.httpsProxy }}
{{- if or $http $https }}
{{- range $name, $value := dict "HTTP_PROXY" $http "HTTPS_PROXY" $https }}
{{- with $value }}
- name: {{ $name }}
  value: {{ . | quote }}
{{- end }}
{{- end }}
- name: NO_PROXY
  value: {{ list (coalesce $proxy.noProxy .Values.proxy.noProxy) "localhost,127.0.0.1,::1,.svc" (printf ".%s" .Values.clusterDomain) "$(KUBERNETES_SERVICE_HOST)" | compact | join "," | quote }}
{{- end }}
{{- end }}
