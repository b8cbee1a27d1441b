{{- define "compllm.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "compllm.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "compllm.labels" -}}
{{ include "compllm.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "compllm.claim" -}}
{{- .Values.storage.existingClaim | default (include "compllm.name" .) -}}
{{- end -}}

{{- define "compllm.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag }}
{{- end -}}

{{/* Where pods of the GPU pool run; the build must see the GPUs that serve. */}}
{{- define "compllm.placement" -}}
serviceAccountName: {{ include "compllm.name" . }}
automountServiceAccountToken: false
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumes:
  - name: data
    persistentVolumeClaim:
      claimName: {{ include "compllm.claim" . }}
  - name: input
    configMap:
      name: {{ include "compllm.name" . }}
  - name: tmp
    emptyDir: {}
  - name: shared-memory
    emptyDir:
      medium: Memory
      sizeLimit: {{ .Values.sharedMemory }}
{{- end -}}

{{- define "compllm.mounts" -}}
- name: data
  mountPath: /data
- name: input
  mountPath: /input
  readOnly: true
- name: tmp
  mountPath: /tmp
- name: shared-memory
  mountPath: /dev/shm
{{- end -}}

{{/* Text of a catalogue is mounted alone: what it names must be on the volume. */}}
{{- define "compllm.checkCatalogue" -}}
{{- $relative := regexFind "(?m)^[ \\t]*(path|head|file)[ \\t]*=[ \\t]*[\"'][^/\"'][^\"'\\n]*" .Values.catalogue -}}
{{- if $relative -}}
{{- fail (printf "catalogue: %s... is a relative path, and only the text is mounted: give an absolute one below /data, or leave catalogue out to serve the shipped one" (trim $relative)) -}}
{{- end -}}
{{- end -}}

{{/* The pod of the build; its hash names the Job, since a Job cannot be changed. */}}
{{- define "compllm.build" -}}
restartPolicy: Never
{{ include "compllm.placement" . }}
containers:
  - name: build
    image: {{ include "compllm.image" . }}
    imagePullPolicy: {{ .Values.image.pullPolicy }}
    # Not `command`: the image's entrypoint prepares CUDA's compatibility with older drivers.
    args:
      {{- concat (list "build.sh") .Values.build.args | toYaml | nindent 6 }}
    env:
      - name: CHECKPOINT
        value: {{ .Values.build.checkpoint | quote }}
      - name: SETTINGS
        value: {{ ternary "/input/gpu.toml" "" (ne .Values.settings "") | quote }}
      - name: CATALOGUE
        value: {{ ternary "/input/experts.toml" "" (ne .Values.catalogue "") | quote }}
      - name: CONFIG
        value: {{ ternary "/input/compllm.toml" "" (ne .Values.config "") | quote }}
    resources:
      requests:
        {{- toYaml .Values.build.resources.requests | nindent 8 }}
      limits:
        nvidia.com/gpu: {{ .Values.gpus }}
        {{- toYaml .Values.build.resources.limits | nindent 8 }}
    securityContext:
      {{- toYaml .Values.securityContext | nindent 6 }}
    volumeMounts:
      {{- include "compllm.mounts" . | nindent 6 }}
{{- end -}}

{{/* Of everything that decides what is built: the servers restart when it changes. */}}
{{- define "compllm.key" -}}
{{- list (include "compllm.build" .) .Values.settings .Values.catalogue .Values.config | toJson | sha256sum | trunc 10 -}}
{{- end -}}
