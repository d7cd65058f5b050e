{{/*
Normalizes the values in place; every other template includes it first. It adopts or
refuses values of Consul's own chart as consul.yaml says, replaces null by the default,
and parses strings that contain YAML.
*/}}
{{- define "connect-inject.init" -}}
{{- include "connect-inject.fill" (list .Values (.Files.Get "defaults.yaml" | fromYaml)) -}}
{{- include "connect-inject.refuse" . -}}
{{- $global := .Values.global -}}
{{- $c := .Values.connectInject -}}

{{- $_ := set $c "enabled" (eq (include "connect-inject.isOn" .) "true") -}}

{{- range $place := list
      (list $global "extraLabels") (list $c "extraLabels") (list $c "annotations")
      (list $c "webhookAnnotations") (list $c.serviceAccount "annotations") (list $c "resources") (list $c.cni "resources") -}}
{{- include "connect-inject.read" (prepend $place $) -}}
{{- end -}}
{{- range $place := list (list $global "imagePullSecrets") (list $c.sidecarProxy "imagePullSecrets") -}}
{{- $secrets := list -}}
{{- range index (index $place 0) (index $place 1) -}}
{{- $secrets = append $secrets (kindIs "string" . | ternary (dict "name" .) .) -}}
{{- end -}}
{{- $_ := set (index $place 0) (index $place 1) $secrets -}}
{{- end -}}

{{- /* Values that have other names in Consul's own chart. */ -}}
{{- if not $c.imageEnvoy -}}
{{- $_ := set $c "imageEnvoy" ($global.imageEnvoy | default "envoyproxy/envoy:v1.40.0") -}}
{{- end -}}
{{- $consul := $global.name | default (printf "%s-consul" .Release.Name) | trunc 63 | trimSuffix "-" -}}
{{- if eq (include "connect-inject.consulValue" (list . "global.tls.enabled")) "true" -}}
{{- if not $c.agent.caCert.secretName -}}
{{- $secret := include "connect-inject.consulValue" (list . "global.tls.caCert.secretName") -}}
{{- $_ := set . "connectInjectTaken" true -}}
{{- $_ := set $c.agent.caCert "secretName" ($secret | default (printf "%s-ca-cert" $consul)) -}}
{{- with include "connect-inject.consulValue" (list . "global.tls.caCert.secretKey") -}}
{{- $_ := set $c.agent.caCert "secretKey" . -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $auto := $c.agent.autoEncrypt -}}
{{- if eq (include "connect-inject.consulValue" (list . "global.tls.enableAutoEncrypt")) "true" -}}
{{- $_ := set $auto "enabled" true -}}
{{- end -}}
{{- if $auto.enabled -}}
{{- if not $auto.serverAddr -}}
{{- $_ := set $auto "serverAddr" (printf "https://%s-server.%s.svc:8501" $consul .Release.Namespace) -}}
{{- $external := .Values.externalServers | default dict -}}
{{- if $external.enabled -}}
{{- $host := $external.hosts | default list | first | default "" | toString -}}
{{- if not (regexMatch "^([-._a-zA-Z0-9]+|\\[[0-9a-fA-F:.]+\\])$" $host) -}}
{{- fail (printf "the first of externalServers.hosts is %q, from which no address can be formed: set connectInject.agent.autoEncrypt.serverAddr to the HTTPS address of a server, such as https://consul.example:8501" $host) -}}
{{- end -}}
{{- $_ := set $auto "serverAddr" (printf "https://%s:%d" $host (int ($external.httpsPort | default 8501))) -}}
{{- end -}}
{{- end -}}
{{- if not $auto.serverName -}}
{{- $_ := set $auto "serverName" (printf "server.%s.%s" ($global.datacenter | default "dc1") ($global.domain | default "consul")) -}}
{{- end -}}
{{- if not $c.agent.caCert.secretName -}}
{{- fail "connectInject.agent.autoEncrypt is on, but connectInject.agent.caCert.secretName is not set: set it to the Secret with the CA of Consul's servers, from which the injector reads the roots of Connect's CA" -}}
{{- end -}}
{{- end -}}
{{- if eq (include "connect-inject.consulValue" (list . "global.acls.manageSystemACLs")) "true" -}}
{{- if not $c.overrideAuthMethodName -}}
{{- $base := include "connect-inject.consulValue" (list . "global.acls.authMethod.name") | default $consul -}}
{{- $_ := set . "connectInjectTaken" true -}}
{{- $_ := set $c "overrideAuthMethodName" (printf "%s-k8s-auth-method" $base) -}}
{{- end -}}
{{- end -}}
{{- $redirection := include "connect-inject.consulValue" (list . "dns.enableRedirection") -}}
{{- if or (eq $redirection "true") (and (eq $redirection "-") $c.transparentProxy.defaultEnabled) -}}
{{- $_ := set $c.transparentProxy "defaultConsulDNS" true -}}
{{- end -}}
{{- if eq (include "connect-inject.consulValue" (list . "connectInject.dataplaneAsSidecarInitContainer.defaultEnabled")) "true" -}}
{{- if eq $c.sidecarProxy.mode "auto" -}}
{{- $_ := set $c.sidecarProxy "mode" "native" -}}
{{- end -}}
{{- end -}}
{{- if and $c.enabled (eq $c.sidecarProxy.mode "native") (include "connect-inject.isVersion" (list . "<1.29-0")) -}}
{{- fail (printf "connectInject.sidecarProxy.mode is native, but Kubernetes %s has no native sidecars: they require 1.29; set it to container or auto" (include "connect-inject.kubernetesVersion" .)) -}}
{{- end -}}
{{- end -}}

{{/*
Fills the first of two maps, given as a list, with the defaults of the second where the
first has no value or null. Resources are left alone: there, null means none.
*/}}
{{- define "connect-inject.fill" -}}
{{- $values := index . 0 -}}
{{- range $key, $default := index . 1 -}}
{{- $value := get $values $key -}}
{{- if or (not (hasKey $values $key)) (kindIs "invalid" (index $values $key)) -}}
{{- $_ := set $values $key $default -}}
{{- else if and (kindIs "map" $default) (kindIs "map" $value) (ne $key "resources") -}}
{{- include "connect-inject.fill" (list $value $default) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Parses a string in a map as a template of YAML: a list of context, map and key. */}}
{{- define "connect-inject.read" -}}
{{- $map := index . 1 -}}
{{- $key := index . 2 -}}
{{- $value := index $map $key -}}
{{- if kindIs "string" $value -}}
{{- $read := tpl $value (index . 0) | fromYaml -}}
{{- if hasKey $read "Error" -}}
{{- fail (printf "%s is a string that is not a YAML map: %s" $key $read.Error) -}}
{{- end -}}
{{- $_ := set $map $key $read -}}
{{- end -}}
{{- end -}}

{{/* Whether the chart installs anything: "true" or "false". */}}
{{- define "connect-inject.isOn" -}}
{{- $enabled := .Values.connectInject.enabled -}}
{{- $on := eq (toString $enabled) "-" | ternary .Values.global.enabled $enabled -}}
{{- and (ne (toString .Values.enabled) "false") (eq (toString $on) "true") -}}
{{- end -}}

{{/* A value as a string, empty if it is not set: a list of context and path. */}}
{{- define "connect-inject.consulValue" -}}
{{- $value := (index . 0).Values -}}
{{- range $key := splitList "." (index . 1) -}}
{{- if kindIs "map" $value -}}
{{- $value = index $value $key -}}
{{- else -}}
{{- $value = "" -}}
{{- end -}}
{{- end -}}
{{- if not (kindIs "invalid" $value) -}}
{{- kindIs "string" $value | ternary $value (toJson $value) -}}
{{- end -}}
{{- end -}}

{{/* Fails if values of Consul's own chart are set that are not supported. */}}
{{- define "connect-inject.refuse" -}}
{{- $refused := list -}}
{{- range (.Files.Get "consul.yaml" | fromYaml).refused -}}
{{- $value := include "connect-inject.consulValue" (list $ .value) -}}
{{- $is := not (has $value (list "" "false" "{}" "[]" "null")) -}}
{{- range .unless -}}
{{- $is = and $is (ne $value (toString .)) -}}
{{- end -}}
{{- range index . "if" -}}
{{- $is = eq $value (toString .) -}}
{{- end -}}
{{- if $is -}}
{{- $refused = append $refused (printf "%s is %s: %s" .value (trim $value) .instead) -}}
{{- end -}}
{{- end -}}
{{- if eq (include "connect-inject.isOn" .) "true" -}}
{{- range $value, $image := dict "image" "connect-inject" "imageInit" "connect-init" -}}
{{- if not (get $.Values.connectInject $value) -}}
{{- $refused = append $refused (printf "connectInject.%s is not set: push the image %s that scripts/image builds to your registry, and set the value to its name there, such as registry.example/mesh/%s:%s" $value $image $image $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (eq (include "connect-inject.consulValue" (list . "global.openshift.enabled")) "true") (eq (include "connect-inject.consulValue" (list . "connectInject.transparentProxy.defaultEnabled")) "true") -}}
{{- $refused = append $refused "connectInject.transparentProxy.defaultEnabled is true: on OpenShift (global.openshift.enabled) no pod can be transparent, because the cluster chooses Envoy's user: set it to false" -}}
{{- end -}}
{{- if eq (include "connect-inject.isOn" .) "true" -}}
{{- range $name := list "sidecarProxy" "initContainer" -}}
{{- $resources := dig $name "resources" nil $.Values.connectInject | default dict -}}
{{- range $resource, $request := dig "requests" nil $resources | default dict -}}
{{- $limit := dig "limits" $resource nil $resources -}}
{{- if not (or (kindIs "invalid" $request) (kindIs "invalid" $limit)) -}}
{{- if gt (include "connect-inject.amount" $request | float64) (include "connect-inject.amount" $limit | float64) -}}
{{- $refused = append $refused (printf "connectInject.%s.resources.requests.%s is %s, above its limit of %s: lower the request or raise the limit" $name $resource (include "connect-inject.written" $request) (include "connect-inject.written" $limit)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.connectInject.image -}}
{{- /* Only the last part of its path: a registry may have any folders. */ -}}
{{- if regexMatch "(^|/)consul-k8s(-control-plane)?([:@]|$)" . -}}
{{- $refused = append $refused (printf "connectInject.image is %s, the image of another injector: set it to the image connect-inject that scripts/image builds" .) -}}
{{- end -}}
{{- end -}}
{{- with $refused -}}
{{- fail (join "\n" .) -}}
{{- end -}}
{{- end -}}
