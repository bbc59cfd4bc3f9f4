#!/usr/bin/env bash
# The platform on kind, for a machine with Docker: cluster, Knative, images, the overlay "local". Safe to repeat.
#
#   knative/kind/up.sh          kind delete cluster --name robofleet    takes it away
#   HOST_IP=… knative/kind/up.sh   where pods find this machine, if what the script finds is wrong
set -euo pipefail
cd "$(dirname "$0")/../.."

# knative-v1.23 is the release of the modules v0.50 that go.mod names.
KNATIVE=knative-v1.23.0
KIND=sigs.k8s.io/kind@v0.31.0
KO=github.com/google/ko@v0.19.1
GO=${GO:-go}

for tool in docker kubectl "$GO"; do
  command -v "$tool" >/dev/null || { echo "$tool is needed" >&2; exit 2; }
done
docker info >/dev/null || { echo "the Docker daemon does not answer" >&2; exit 2; }

step() { printf '\n== %s\n' "$1"; }

step "cluster"
"$GO" run "$KIND" get clusters 2>/dev/null | grep -qx robofleet || "$GO" run "$KIND" create cluster --config knative/kind/cluster.yaml
kubectl config use-context kind-robofleet >/dev/null
apply() { kubectl apply --server-side --force-conflicts -f "$@"; }
settings() { kubectl -n "$1" patch configmap "$2" --type merge -p "$3"; }

step "Knative Serving, with Kourier as its gateway"
serving=https://github.com/knative/serving/releases/download/$KNATIVE
apply "$serving/serving-crds.yaml"
kubectl wait --for=condition=Established --timeout=120s crd --all >/dev/null
apply "$serving/serving-core.yaml"
apply "https://github.com/knative-extensions/net-kourier/releases/download/$KNATIVE/kourier.yaml"
settings knative-serving config-network '{"data":{"ingress-class":"kourier.ingress.networking.knative.dev"}}'
settings knative-serving config-domain '{"data":{"127.0.0.1.sslip.io":""}}'
# ko loads images into the node; no registry could tell their digests.
settings knative-serving config-deployment '{"data":{"registries-skipping-tag-resolving":"kind.local,ko.local,dev.local"}}'
kubectl -n kourier-system patch service kourier --type merge \
  -p '{"spec":{"type":"NodePort","ports":[{"name":"http2","port":80,"targetPort":8080,"nodePort":31080}]}}'

step "Knative Eventing"
eventing=https://github.com/knative/eventing/releases/download/$KNATIVE
apply "$eventing/eventing-crds.yaml"
kubectl wait --for=condition=Established --timeout=120s crd --all >/dev/null
apply "$eventing/eventing-core.yaml"
for namespace in knative-serving kourier-system knative-eventing; do
  kubectl -n "$namespace" wait --for=condition=Available --timeout=300s deployment --all
done

step "the platform"
# Where pods find this machine: Docker Desktop has a name for it, Docker on Linux the gateway of kind's network.
host=${HOST_IP:-$(docker exec robofleet-control-plane getent ahostsv4 host.docker.internal 2>/dev/null | awk 'NR == 1 {print $1}')}
host=${host:-$(docker network inspect kind -f '{{range .IPAM.Config}}{{println .Gateway}}{{end}}' | grep -m1 -F .)}
mkdir -p .robofleet/kind
# The overlay "local" with this cluster's addresses.
cat >.robofleet/kind/kustomization.yaml <<EOF
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: robofleet
resources:
  - ../../knative/overlays/local
configMapGenerator:
  - name: platform
    namespace: robofleet
    behavior: merge
    envs: [platform.env]
  - name: pubsub-broker-settings
    namespace: robofleet
    behavior: merge
    envs: [pubsub-broker.env]
EOF
for settings in platform.env pubsub-broker.env; do
  sed -e "s#10\.200\.0\.1#$host#" -e "s#10\.96\.0\.80\.sslip\.io#127.0.0.1.sslip.io#" \
    "knative/overlays/local/$settings" >".robofleet/kind/$settings"
done
kubectl kustomize .robofleet/kind |
  KO_DOCKER_REPO=kind.local KIND_CLUSTER_NAME=robofleet KO_DEFAULTPLATFORMS="linux/$("$GO" env GOARCH)" "$GO" run "$KO" resolve -f - |
  apply -
kubectl -n robofleet get broker,trigger,ksvc

cat <<EOF

The stages are on the cluster; the embedded cloud and the robots run on this machine, where pods reach it at $host. Stages are at
http://NAME.robofleet.127.0.0.1.sslip.io. Their events:  kubectl -n robofleet get events --watch

Not checked by the project's gate, which has no Docker: kind itself, Kourier, the releases of Knative as they are downloaded, and pods
reaching this machine through Docker's network. The same manifests are checked on a cluster made of the same code: make cluster-test.
EOF
