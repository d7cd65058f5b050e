{{/*
The chart's name, which the audit looks for. Where this chart is a dependency with an alias,
.Chart.Name is the alias, which may not even be valid in an object's name.
*/}}
{{- define "connect-inject.name" -}}
connect-inject
{{- end -}}

{{/* The name of all objects. It has an alias in a form that is valid there. */}}
{{- define "connect-inject.fullname" -}}
{{- $chart := .Chart.Name | kebabcase | replace "_" "-" | trunc 14 | trimSuffix "-" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- $name := .Values.global.name | default .Release.Name -}}
{{- if hasSuffix $chart $name -}}
{{- $name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" ($name | trunc 48 | trimSuffix "-") $chart -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* The audit's name, short enough for the names of a CronJob's Jobs. */ -}}
{{- define "connect-inject.audit" -}}
{{- printf "%s-audit" (include "connect-inject.fullname" . | trunc 46 | trimSuffix "-") -}}
{{- end }}

{{/* The labels that select the injector's pods. */}}
{{- define "connect-inject.selector" -}}
app.kubernetes.io/name: {{ include "connect-inject.name" . }}
app.kubernetes.io/instance: {{ include "connect-inject.instance" . }}
{{- end -}}

{{/*
The release; with an alias also the alias, because a release may have the chart twice, and
each injector must select only its own pods.
*/}}
{{- define "connect-inject.instance" -}}
{{- if eq .Chart.Name (include "connect-inject.name" .) -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/*
The labels of all objects, each key once. Those of global.extraLabels take precedence,
except over the labels that select pods.
*/}}
{{- define "connect-inject.labels" -}}
{{- include "connect-inject.labelsWith" (list . dict) -}}
{{- end -}}

{{/* These labels and additional ones: a list of context and labels. */}}
{{- define "connect-inject.labelsWith" -}}
{{- $context := index . 0 -}}
{{- with $context -}}
{{- $labels := dict
      "app.kubernetes.io/version" .Chart.AppVersion
      "app.kubernetes.io/component" "injector"
      "app.kubernetes.io/part-of" "consul"
      "app.kubernetes.io/managed-by" .Release.Service
      "helm.sh/chart" (printf "%s-%s" (include "connect-inject.name" .) .Chart.Version | replace "+" "_") -}}
{{- $selector := include "connect-inject.selector" . | fromYaml -}}
{{- $more := list .Values.global.extraLabels (index $ 1) -}}
{{- range $each := $more -}}
{{- range $key, $value := $each -}}
{{- if hasKey $selector $key -}}
{{- fail (printf "extraLabels: %s is a label that selects the injector's pods: choose another key" $key) -}}
{{- end -}}
{{- $_ := set $labels $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml (merge $selector $labels) -}}
{{- end -}}
{{- end -}}

{{/* Whether the injector issues its own certificate: "true" or nothing. */}}
{{- define "connect-inject.tlsAuto" -}}
{{- if not .Values.connectInject.certs.secretName -}}true{{- end -}}
{{- end -}}

{{/* The Secret with the injector's own certificate, as the injector names it. */}}
{{- define "connect-inject.tlsSecret" -}}
{{- printf "%s-tls" (include "connect-inject.fullname" .) -}}
{{- end -}}

{{/*
Whether Helm's capabilities are those of the real cluster: "true" or nothing. Where Helm
only renders, it assumes a version of its own. With access to the cluster, a lookup finds
a Namespace. Without, as in Argo CD, the list of APIs tells: Helm's built-in list lacks
apiregistration.k8s.io, which every cluster has.
*/}}
{{- define "connect-inject.knowsCluster" -}}
{{- if or (.Capabilities.APIVersions.Has "apiregistration.k8s.io/v1") (lookup "v1" "Namespace" "" "kube-system") -}}
true
{{- end -}}
{{- end -}}

{{/* The cluster's version, or nothing if it is not known. */}}
{{- define "connect-inject.kubernetesVersion" -}}
{{- if .Values.connectInject.kubernetesVersion -}}
{{- .Values.connectInject.kubernetesVersion -}}
{{- else if include "connect-inject.knowsCluster" . -}}
{{- .Capabilities.KubeVersion.Version -}}
{{- end -}}
{{- end -}}

{{/*
The version that the injector gets as a flag: the one in the values or, if the injector
can't ask the API server, the one at the time of the installation.
*/}}
{{- define "connect-inject.versionToTell" -}}
{{- if or .Values.connectInject.kubernetesVersion (not (include "connect-inject.tlsAuto" .)) -}}
{{- include "connect-inject.kubernetesVersion" . -}}
{{- end -}}
{{- end -}}

{{/*
Whether the cluster's version is known and in a range: "true" or nothing. Takes a list of
context and range.
*/}}
{{- define "connect-inject.isVersion" -}}
{{- $version := include "connect-inject.kubernetesVersion" (index . 0) -}}
{{- if $version -}}
{{- if semverCompare (index . 1) $version -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* The failure policy for pods that ask for a sidecar. */}}
{{- define "connect-inject.failurePolicy" -}}
{{- .Values.connectInject.failurePolicy | default (include "connect-inject.isVersion" (list . ">=1.28-0") | empty | ternary "Ignore" "Fail") -}}
{{- end -}}

{{/*
The namespaces for whose pods the API server never calls the webhook: the injector's own,
and those without which a cluster does not start or recover.
*/}}
{{- define "connect-inject.systemNamespaces" -}}
{{- concat (list .Release.Namespace) (list
      "kube-system" "kube-public" "kube-node-lease"
      "calico-system" "calico-apiserver" "tigera-operator" "kube-flannel" "cilium" "cilium-secrets"
      "metallb-system" "local-path-storage" "longhorn-system" "openebs" "rook-ceph"
      "gmp-system" "gke-managed-cim" "gke-managed-system"
      "cert-manager" "gatekeeper-system" "kyverno"
    ) | uniq | toJson -}}
{{- end -}}

{{/*
Label selector of the namespaces for whose pods the API server calls the webhook:
connectInject.namespaceSelector without system namespaces, restricted to the namespaces
that the policy allows.
*/}}
{{- define "connect-inject.namespaceSelector" -}}
{{- $label := index . 1 -}}
{{- $root := index . 0 -}}
{{- $c := $root.Values.connectInject -}}
{{- $selector := dict -}}
{{- with $c.namespaceSelector -}}
{{- $selector = include "connect-inject.yaml" (list $root .) | fromYaml -}}
{{- if hasKey $selector "Error" -}}
{{- fail (printf "connectInject.namespaceSelector is not a label selector: %s" $selector.Error) -}}
{{- end -}}
{{- end -}}
{{- $name := "kubernetes.io/metadata.name" -}}
{{- $without := concat (include "connect-inject.systemNamespaces" $root | fromJsonArray) $c.k8sDenyNamespaces | uniq -}}
{{- $expressions := concat ($selector.matchExpressions | default list) (list
      (dict "key" $name "operator" "NotIn" "values" $without)
      (dict "key" "openshift.io/cluster-monitoring" "operator" "DoesNotExist")) -}}
{{- if not $c.k8sAllowNamespaces -}}
{{- /* Every namespace has this label, so that the selector matches none. */ -}}
{{- $expressions = append $expressions (dict "key" $name "operator" "DoesNotExist") -}}
{{- else if not (has "*" $c.k8sAllowNamespaces) -}}
{{- $expressions = append $expressions (dict "key" $name "operator" "In" "values" $c.k8sAllowNamespaces) -}}
{{- end -}}
{{- toYaml (set $selector "matchExpressions" (append $expressions $label)) -}}
{{- end -}}

{{/*
A namespace for the example in the notes, whose pods are injected if they ask; nothing if
no such namespace is known.
*/}}
{{- define "connect-inject.exampleNamespace" -}}
{{- $c := .Values.connectInject -}}
{{- $without := concat (include "connect-inject.systemNamespaces" . | fromJsonArray) $c.k8sDenyNamespaces -}}
{{- $allowed := has "*" $c.k8sAllowNamespaces | ternary (list "default") $c.k8sAllowNamespaces -}}
{{- $found := "" -}}
{{- range $each := $allowed -}}
{{- if not (or $found (has $each $without)) -}}
{{- $found = $each -}}
{{- end -}}
{{- end -}}
{{- $found -}}
{{- end -}}

{{/*
The node selector of a pod, from a list of context and value. The images are for Linux.
*/}}
{{- define "connect-inject.nodes" -}}
{{- $nodes := dict "kubernetes.io/os" "linux" -}}
{{- with index . 1 -}}
{{- $nodes = merge (include "connect-inject.yaml" (list (index $ 0) .) | fromYaml) $nodes -}}
{{- end -}}
{{- dict "nodeSelector" $nodes | toYaml -}}
{{- end -}}

{{/* A value as YAML; a string is a template of it. A list of context and value. */}}
{{- define "connect-inject.yaml" -}}
{{- $context := index . 0 -}}
{{- $value := index . 1 -}}
{{- if kindIs "string" $value -}}
{{- tpl $value $context -}}
{{- else -}}
{{- toYaml $value -}}
{{- end -}}
{{- end -}}

{{/* A quantity as a string, empty if it is not set. */}}
{{- define "connect-inject.quantity" -}}
{{- if kindIs "invalid" . -}}
""
{{- else -}}
{{- include "connect-inject.written" . | quote -}}
{{- end -}}
{{- end -}}

{{/* A number or string as it was written: Go would print 100000000 as 1e+08. */}}
{{- define "connect-inject.written" -}}
{{- toJson . | trimAll "\"" -}}
{{- end -}}

{{/* A quantity as a number, for comparisons. */}}
{{- define "connect-inject.amount" -}}
{{- $text := include "connect-inject.written" . -}}
{{- $suffix := regexFind "([numkMGTPE]|[KMGTPE]i)$" $text -}}
{{- $units := dict "n" 1e-9 "u" 1e-6 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18
      "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624
      "Ei" 1152921504606846976 -}}
{{- mulf (trimSuffix $suffix $text | float64) (get $units $suffix | default 1) -}}
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
init-image: {{ $c.imageInit | toJson }}
envoy-image: {{ $c.imageEnvoy | toJson }}
global-image-pull-policy: {{ .Values.global.imagePullPolicy | toJson }}
image-pull-secret: {{ range $i, $secret := $proxy.imagePullSecrets }}{{ if not $i }}[{{ else }}, {{ end }}{{ $secret.name | toJson }}{{ else }}[{{ end }}]
default-inject: {{ $c.default }}
allow-k8s-namespace: {{ $c.k8sAllowNamespaces | toJson }}
deny-k8s-namespace: {{ $c.k8sDenyNamespaces | toJson }}
envoy-extra-args: {{ $c.envoyExtraArgs | default "" | toJson }}
default-envoy-proxy-concurrency: {{ int $proxy.concurrency }}
{{- range $bound := list "request" "limit" }}
{{- range $resource := list "cpu" "memory" "ephemeral-storage" }}
default-sidecar-proxy-{{ $resource }}-{{ $bound }}: {{ dig (print $bound "s") $resource nil $proxy.resources | include "connect-inject.quantity" }}
init-container-{{ $resource }}-{{ $bound }}: {{ dig (print $bound "s") $resource nil $c.initContainer.resources | include "connect-inject.quantity" }}
{{- end }}
{{- end }}
enable-openshift: {{ .Values.global.openshift.enabled }}
default-enable-metrics: {{ $metrics }}
default-enable-metrics-merging: {{ $c.metrics.defaultEnableMerging }}
default-merged-metrics-port: {{ $c.metrics.defaultMergedMetricsPort }}
default-prometheus-scrape-port: {{ $c.metrics.defaultPrometheusScrapePort }}
default-prometheus-scrape-path: {{ $c.metrics.defaultPrometheusScrapePath | toJson }}
default-sidecar-proxy-startup-failure-seconds: {{ $proxy.defaultStartupFailureSeconds }}
default-sidecar-proxy-liveness-failure-seconds: {{ $proxy.defaultLivenessFailureSeconds }}
default-sidecar-proxy-lifecycle-startup-grace-period-seconds: {{ $proxy.lifecycle.defaultStartupGracePeriodSeconds }}
{{- if not (kindIs "invalid" $proxy.lifecycle.defaultShutdownGracePeriodSeconds) }}
default-sidecar-proxy-lifecycle-shutdown-grace-period-seconds: {{ $proxy.lifecycle.defaultShutdownGracePeriodSeconds }}
{{- end }}
default-application-sleep-seconds: {{ $proxy.lifecycle.defaultApplicationSleepSeconds }}
default-transparent-proxy: {{ $c.transparentProxy.defaultEnabled }}
transparent-proxy-by: {{ $c.cni.enabled | ternary "cni" "init-container" }}
default-transparent-proxy-overwrite-probes: {{ $c.transparentProxy.defaultOverwriteProbes }}
default-consul-dns: {{ $c.transparentProxy.defaultConsulDNS }}
default-use-proxy-health-check: {{ $proxy.defaultUseProxyHealthCheck }}
sidecar-mode: {{ $proxy.mode | toJson }}
{{- with include "connect-inject.versionToTell" . }}
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
enable-auto-encrypt: {{ $c.agent.autoEncrypt.enabled }}
{{- with $c.agent.tlsServerName }}
consul-tls-server-name: {{ toJson . }}
{{- end }}
acl-auth-method: {{ $c.overrideAuthMethodName | toJson }}
{{- end -}}
