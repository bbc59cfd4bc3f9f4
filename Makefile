# The verbs of the project. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

GO ?= go
RUN ?=
SQL ?= SELECT COUNT(*) AS readings FROM robofleet.telemetry_unique
FUZZTIME ?= 10s

# Pinned here and not in go.mod: their hundreds of dependencies are not the product's.
GOTESTSUM := gotest.tools/gotestsum@v1.13.0
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: help
help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: compiler
compiler: # the embedded BigQuery is DuckDB, which is linked with a C compiler
	@cc=$$($(GO) env CC); command -v "$${cc%% *}" >/dev/null || { echo "no C compiler ($$cc): the embedded BigQuery needs one (apt install gcc, or xcode-select --install)" >&2; exit 1; }

.PHONY: run
run: compiler ## the whole platform on this machine with 1,000 robots; RUN='--rate 10' adds flags
	CGO_ENABLED=1 $(GO) run ./simulator $(RUN)

.PHONY: query
query: compiler ## ask the local BigQuery: make query SQL='SELECT …'
	@CGO_ENABLED=1 $(GO) run ./simulator/cmd/query '$(subst ','\'',$(SQL))'

.PHONY: plan
plan: ## print the topics and subscriptions that the Brokers and Triggers become
	@$(GO) run ./eventing/cmd/plan --project robofleet-local --subscriber-url 'https://{name}.robofleet.example.com' $(RUN)

.PHONY: test
test: compiler ## all tests, the end-to-end test with kills among them
	CGO_ENABLED=1 $(GO) run $(GOTESTSUM) --format pkgname -- -count=1 -shuffle=on ./...

.PHONY: race
race: compiler ## all tests under the race detector
	CGO_ENABLED=1 $(GO) run $(GOTESTSUM) --format pkgname -- -race -count=1 ./...

.PHONY: fuzz
fuzz: compiler ## every fuzz target for FUZZTIME (10s)
	@for pkg in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for target in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$pkg/*_test.go | cut -d' ' -f2); do \
	    $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$pkg; \
	  done; \
	done

.PHONY: bench
bench: compiler ## print every figure of the README beside its reference
	@$(GO) run ./simulator/cmd/bench

.PHONY: lint
lint: compiler ## gofmt, go vet and the linters of .golangci.yaml
	$(GO) run $(GOLANGCI_LINT) run ./...

# ko pushes to KO_DOCKER_REPO. kubectl renders.
KO := github.com/google/ko@v0.19.1
OVERLAY ?= prod

.PHONY: images
images: ## build and push one image for each service to KO_DOCKER_REPO, with SBOMs
	$(GO) run $(KO) build --sbom=spdx --base-import-paths ./functions/*/cmd/* ./eventing/cmd/broker-ingress ./eventing/cmd/controller

.PHONY: manifests
manifests: ## print OVERLAY (prod) with images by digest; pushes them to KO_DOCKER_REPO
	@kubectl kustomize knative/overlays/$(OVERLAY) | $(GO) run $(KO) resolve --base-import-paths -f -

.PHONY: manifests-check
manifests-check: ## what a real API server and Knative's webhooks say to every overlay
	knative/check.sh

# Which cluster: the cluster kit's (LAB, or ../shared/knative-lab/lab), if it is there; with CLUSTER=context kubectl's current
# context, with KO_DOCKER_REPO set and RUN='--host …' for the address by which pods reach this machine.
LAB ?= ../shared/knative-lab/lab
CLUSTER ?=

.PHONY: cluster-test
cluster-test: compiler ## a burst from zero on a real cluster, pods deleted, with ledger; RUN='--robots 400' adds flags
	@if [[ "$(CLUSTER)" != context ]]; then \
	  [[ -x "$(LAB)" ]] || { echo "no cluster kit at $(LAB); CLUSTER=context takes kubectl's current context" >&2; exit 2; }; \
	  settings=$$("$(LAB)" env) && eval "$$settings" && export LAB_INGRESS=$$LAB_INGRESS_IP:80; \
	fi; \
	CGO_ENABLED=1 $(GO) run ./simulator/cmd/clustertest $(RUN)

.PHONY: kind
kind: ## the platform on kind; needs Docker and kubectl
	GO='$(GO)' knative/kind/up.sh

.PHONY: clean
clean: ## delete the local platform's data, binaries and logs
	rm -rf .robofleet
