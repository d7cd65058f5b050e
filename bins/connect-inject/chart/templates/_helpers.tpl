{{/* The name of all objects. */}}
{{- define "connect-inject.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.global.name | default .Release.Name -}}
{{- if hasSuffix .Chart.Name $name -}}
{{- $name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" ($name | trunc 48 | trimSuffix "-") .Chart.Name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the pods are selected by. */}}
{{- define "connect-inject.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The labels of all objects. */}}
{{- define "connect-inject.labels" -}}
{{ include "connect-inject.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: injector
app.kubernetes.io/part-of: consul
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.global.extraLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Whether the certificate is the injector's own: "true" or nothing. */}}
{{- define "connect-inject.tlsAuto" -}}
{{- if not .Values.connectInject.certs.secretName -}}true{{- end -}}
{{- end -}}

{{/* The Secret with the injector's own certificate, as the injector names it. */}}
{{- define "connect-inject.tlsSecret" -}}
{{- printf "%s-tls" (include "connect-inject.fullname" .) -}}
{{- end -}}

{{/*
The cluster's version, or nothing where none is known. Without a cluster, Helm
has one in .Capabilities all the same: its own.
*/}}
{{- define "connect-inject.kubernetesVersion" -}}
{{- if .Values.connectInject.kubernetesVersion -}}
{{- .Values.connectInject.kubernetesVersion -}}
{{- else if lookup "v1" "Namespace" "" "kube-system" -}}
{{- .Capabilities.KubeVersion.Version -}}
{{- end -}}
{{- end -}}

{{/*
Whether the cluster's version is known and in a range, a list of context and
range: "true" or nothing.
*/}}
{{- define "connect-inject.isVersion" -}}
{{- $version := include "connect-inject.kubernetesVersion" (index . 0) -}}
{{- if $version -}}
{{- if semverCompare (index . 1) $version -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* A text as a template, or anything else, as YAML: a list of context and value. */}}
{{- define "connect-inject.yaml" -}}
{{- $context := index . 0 -}}
{{- $value := index . 1 -}}
{{- if kindIs "string" $value -}}
{{- tpl $value $context -}}
{{- else -}}
{{- toYaml $value -}}
{{- end -}}
{{- end -}}

{{/* A quantity as a text; empty if there is none. */}}
{{- define "connect-inject.quantity" -}}
{{- if kindIs "invalid" . -}}
""
{{- else -}}
{{- toJson . | trimAll "\"" | quote -}}
{{- end -}}
{{- end -}}

{{/* The injector's file with the CA of the agents. */}}
{{- define "connect-inject.caFile" -}}
/consul/ca/{{ .Values.connectInject.agent.caCert.secretKey }}
{{- end -}}

{{/* The HTTP address of a node's agent. */}}
{{- define "connect-inject.agent" -}}
{{- $agent := .Values.connectInject.agent -}}
{{- $agent.httpAddr | default (empty $agent.caCert.secretName | ternary "http://$(HOST_IP):8500" "https://$(HOST_IP):8501") -}}
{{- end -}}

{{/* The policy, as `connect-inject serve --config` reads it. */}}
{{- define "connect-inject.config" -}}
{{- $c := .Values.connectInject -}}
{{- $metrics := eq (toString $c.metrics.defaultEnabled) "-" | ternary .Values.global.metrics.enabled $c.metrics.defaultEnabled -}}
{{- $proxy := $c.sidecarProxy -}}
{{- $release := .Chart.AppVersion -}}
init-image: {{ $c.imageInit | default (printf "localhost/connect-init:%s" $release) | toJson }}
envoy-image: {{ $c.imageEnvoy | toJson }}
global-image-pull-policy: {{ .Values.global.imagePullPolicy | toJson }}
image-pull-secret: {{ range $i, $secret := $proxy.imagePullSecrets }}{{ if not $i }}[{{ else }}, {{ end }}{{ $secret.name | toJson }}{{ else }}[{{ end }}]
default-inject: {{ $c.default }}
allow-k8s-namespace: {{ $c.k8sAllowNamespaces | toJson }}
deny-k8s-namespace: {{ $c.k8sDenyNamespaces | toJson }}
envoy-extra-args: {{ $c.envoyExtraArgs | default "" | toJson }}
default-envoy-proxy-concurrency: {{ $proxy.concurrency }}
{{- range $bound := list "request" "limit" }}
{{- range $resource := list "cpu" "memory" }}
default-sidecar-proxy-{{ $resource }}-{{ $bound }}: {{ dig (print $bound "s") $resource nil $proxy.resources | include "connect-inject.quantity" }}
init-container-{{ $resource }}-{{ $bound }}: {{ dig (print $bound "s") $resource nil $c.initContainer.resources | include "connect-inject.quantity" }}
{{- end }}
{{- end }}
enable-openshift: {{ .Values.global.openshift.enabled }}
default-enable-metrics: {{ $metrics }}
default-prometheus-scrape-port: {{ $c.metrics.defaultPrometheusScrapePort }}
default-prometheus-scrape-path: {{ $c.metrics.defaultPrometheusScrapePath | toJson }}
default-sidecar-proxy-lifecycle-startup-grace-period-seconds: {{ $proxy.lifecycle.defaultStartupGracePeriodSeconds }}
{{- if not (kindIs "invalid" $proxy.lifecycle.defaultShutdownGracePeriodSeconds) }}
default-sidecar-proxy-lifecycle-shutdown-grace-period-seconds: {{ $proxy.lifecycle.defaultShutdownGracePeriodSeconds }}
{{- end }}
default-application-sleep-seconds: {{ $proxy.lifecycle.defaultApplicationSleepSeconds }}
sidecar-mode: {{ $proxy.mode | toJson }}
{{- with include "connect-inject.kubernetesVersion" . }}
kubernetes-version: {{ . | quote }}
{{- end }}
{{- with $c.oldestKubeletVersion }}
oldest-kubelet-version: {{ . | toString | quote }}
{{- end }}
pod-log-level: {{ $proxy.logLevel | default .Values.global.logLevel | toJson }}
pod-log-format: {{ .Values.global.logJSON | ternary "json" "plain" }}
{{- with $c.agent.httpAddr }}
consul-http-addr-template: {{ toJson . }}
{{- end }}
{{- with $c.agent.grpcAddr }}
consul-grpc-addr-template: {{ toJson . }}
{{- end }}
{{- if $c.agent.caCert.secretName }}
consul-ca-cert: {{ include "connect-inject.caFile" . }}
{{- end }}
{{- with $c.agent.tlsServerName }}
consul-tls-server-name: {{ toJson . }}
{{- end }}
acl-auth-method: {{ $c.overrideAuthMethodName | toJson }}
{{- end -}}
