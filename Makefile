# What can be done here: make help.

GO       ?= go

# Go writes the commit into what it builds, and fails where git refuses the checkout
# (another user's): there it is built without.
ifeq ($(shell git status --porcelain >/dev/null 2>&1 && echo yes),)
export GOFLAGS := $(shell $(GO) env GOFLAGS) -buildvcs=false
endif

# Pinned, so that everybody runs the same.
OAPI     := github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2
GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.DEFAULT_GOAL := help
.PHONY: build test test-users test-providers generate lint fuzz bench cover e2e demo demo-postgres full help servers node clean

build: ## build bin/stint
	@mkdir -p bin
	$(GO) build -trimpath -o bin/stint ./cmd/stint

test: build servers node ## all tests but the heavy ones, against real Redis and PostgreSQL
	$(GO) vet ./...
	STINT_REQUIRE_SERVERS=1 $(GO) test -timeout 20m ./...
	cd client && $(GO) vet ./... && $(GO) test -timeout 5m ./...

e2e: build servers ## the built binary against real Vault, MinIO, Redis and PostgreSQL, and a real browser
	@./scripts/servers.sh chromium
	STINT_REQUIRE_SERVERS=all $(GO) test -tags e2e -timeout 60m -count 1 -v ./e2e/... ./internal/vault/... ./providers/vault/... ./providers/aws/... ./providers/s3/...
	STINT_REQUIRE_SERVERS=all $(GO) test -timeout 60m -count 1 -run "Vault|Browser|AWS|WebIdentity" ./cmd/stint ./api

test-providers: build servers node ## every provider against the most real upstream that runs here; makes the README's table
	@./scripts/servers.sh chromium etcd-server
	rm -rf build/reports/providers
	STINT_REQUIRE_SERVERS=all $(GO) test -tags e2e -timeout 60m -count 1 ./providers/... ./internal/testbed
	STINT_REQUIRE_SERVERS=all $(GO) test -timeout 20m -count 1 -run "Kubectl" ./cmd/stint
	$(GO) run ./scripts/providers

lint: node ## what the compiler does not see
	PATH="$(CURDIR)/interop/node_modules/.newer:$$PATH" REDOCLY_TELEMETRY=off interop/node_modules/.bin/redocly lint openapi.yaml
	@mkdir -p build && sed "s#^output:.*#output: build/adminapi.gen.go#" api/adminapi/oapi.yaml > build/oapi.yaml
	$(GO) run $(OAPI) -config build/oapi.yaml openapi.yaml
	cmp build/adminapi.gen.go api/adminapi/adminapi.gen.go # if they differ: make generate
	$(GO) run $(GOLANGCI) run ./...
	cd client && $(GO) run $(GOLANGCI) run ./...
	$(GO) vet -tags e2e ./...

generate: ## what is made from openapi.yaml
	$(GO) run $(OAPI) -config api/adminapi/oapi.yaml openapi.yaml

test-users: build servers node ## what users meet, counted: build/reports/test-users.json
	@./scripts/servers.sh chromium
	STINT_REQUIRE_SERVERS=all $(GO) test -count 1 -timeout 10m -run TestAdminAnswersAndErrors ./api
	STINT_REQUIRE_SERVERS=all $(GO) test -count 1 -timeout 15m -run "Guide|Browser|Examples" ./cmd/stint
	STINT_REQUIRE_SERVERS=all $(GO) test -count 1 -timeout 30m -tags e2e -run "Readme|Rotations|Upgrade" ./e2e
	$(GO) run ./scripts/report test-users readme examples admin-api mcp-servers upgrade rotation

fuzz: ## every fuzz target for FUZZTIME each (default 20s)
	@./scripts/fuzz.sh $(or $(FUZZTIME),20s)

cover: servers ## coverage of every package: build/coverage.html
	@mkdir -p build
	STINT_REQUIRE_SERVERS=all $(GO) test -timeout 60m -coverprofile build/coverage.out ./...
	$(GO) tool cover -html build/coverage.out -o build/coverage.html
	$(GO) tool cover -func build/coverage.out | tail -1

bench: build ## measure: build/reports/bench.json, and docs/performance.md says what it means
	$(GO) run ./internal/bench -stint bin/stint -report build/reports/bench.json

demo: build ## the main job, played out with sample servers
	bin/stint demo

demo-postgres: build ## the same with a database login that is vended; installs PostgreSQL
	@./scripts/servers.sh postgresql
	bin/stint demo --postgres require

full: test e2e test-providers lint test-users ## all that has to pass before a release: races, fuzzing, coverage
	STINT_REQUIRE_SERVERS=1 $(GO) test -race -timeout 40m ./...
	$(MAKE) fuzz cover

servers: # what tests start, if it is not there
	@./scripts/servers.sh redis-server postgresql nodejs curl systemd

node: # the clients that others wrote
	@./scripts/node.sh

clean: ## remove what was built
	rm -rf bin build interop/node_modules

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
