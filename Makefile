# recast: `sudo make lab` shows it at work, `sudo make test` proves it.
# Needs Go 1.26, git, make and sudo; set-up installs the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build lab test test-long test-boot race fuzz fuzz-ci fuzz-long bench bench-dhcp bench-bmc bench-watch bench-image lint arrows need-go need-root

# Who called: under sudo the user, whose Go, caches and work tree these are.
ROOT := $(filter 0,$(shell id -u))
USER_NAME := $(if $(ROOT),$(filter-out root,$(SUDO_USER)))
USER_HOME := $(if $(USER_NAME),$(shell getent passwd $(USER_NAME) | cut -d: -f6),$(HOME))

# sudo resets PATH; look where Go is put by hand, by its own tool and by Debian.
GO ?= $(shell command -v go || for g in /usr/local/go/bin/go $(USER_HOME)/go/bin/go $(USER_HOME)/sdk/go*/bin/go \
	$(USER_HOME)/.local/go/bin/go /usr/lib/go-1.26/bin/go /usr/lib/go/bin/go /snap/bin/go; do [ ! -x $$g ] || { echo $$g; break; }; done)
export PATH := $(if $(GO),$(dir $(GO)):)$(PATH):/usr/sbin:/sbin

# Steps that write caches and the work tree run as the user.
AS_USER := $(if $(USER_NAME),runuser -u $(USER_NAME) -- env HOME=$(USER_HOME) USER=$(USER_NAME) PATH=$(PATH))
# Tests run as root with root's own build cache, and only read the user's modules.
AS_ROOT := $(if $(USER_NAME),env GOENV=$(USER_HOME)/.config/go/env GOMODCACHE=$$($(AS_USER) $(GO) env GOMODCACHE))
# The tree may belong to somebody whom root's git does not trust.
export GOFLAGS := $(GOFLAGS) -buildvcs=false
VERSION := $(shell $(AS_USER) git describe --always --dirty 2>/dev/null || echo dev)

# What root left in the work tree goes to the user.
GIVE := $(if $(USER_NAME),find . -path ./.git -prune -o -user root -exec chown -h $(SUDO_UID):$(SUDO_GID) {} +,:)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.1.4
VULNDB := ../shared/vulndb
# Findings that do not touch us, each with the reason; another one fails lint.
# GO-2026-5298: its record names no version that mends it. go-attestation 0.6.4 holds the
# mend (b6e905e7ae52), and we never read a signature list (ParseSecurebootState).
VULNS_JUDGED := GO-2026-5298
FUZZTIME ?= 20s
BENCHTIME ?= 1s
# Tests that do more where RECAST_LONG is set.
SOAKS := ^(TestMachineArrivesThoughTheServerIsKilled|TestServerKilledAnywhere|TestRamdiskWritesADisk|TestDebianReleasesMoveWhatChanged|TestDisksCutAnywhereBootTheWholeTruth|TestMachinesCutAnywhereBootTheWholeTruth|TestDebianIsPutBackAndMovesWhatChanged)$$

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

need-go:
	@[ -n "$(GO)" ] || { echo "make: no Go found: install Go 1.26 to /usr/local/go (https://go.dev/dl), or say make GO=/path/to/go" >&2; exit 1; }

need-root:
	@[ -n "$(ROOT)" ] || { echo "make: needs root: sudo make $(firstword $(MAKECMDGOALS))" >&2; exit 1; }

setup: ## install packages, fetch boot loaders and the ramdisk's kernel (sudo)
	@./setup.sh

build: need-go ## build bin/recast and bin/recast-agent
	@mkdir -p bin && { [ -z "$(USER_NAME)" ] || chown $(SUDO_UID):$(SUDO_GID) bin; }
	$(AS_USER) env CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./cmd/recast ./cmd/recast-agent

lab: need-root need-go setup build ## build a virtual rack and deploy it (sudo); ARGS are for `recast lab up`
	bin/recast lab up $(ARGS); status=$$?; $(GIVE); exit $$status

# The longest package goes first: the others fit beside it.
test: need-root need-go setup build ## every test, the ones that boot machines included (sudo)
	@$(AS_USER) $(GO) mod download
	@$(AS_ROOT) $(GO) run testenv/runtests.go -p 2 -timeout 60m ./testenv ./...; status=$$?; $(GIVE); exit $$status

test-long: need-root need-go setup build ## the soaks: more kills, more machines; keeps the result in testenv/LAST-LONG-RUN.txt (sudo)
	@$(AS_USER) $(GO) mod download
	@set -o pipefail; { echo "make test-long of $(VERSION), begun $$(date -u +%FT%TZ)"; \
		RECAST_LONG=1 $(AS_ROOT) $(GO) run testenv/runtests.go -p 1 -timeout 6h -run '$(SOAKS)' ./testenv ./cmd/recast-agent && s=0 || s=$$?; \
		echo "ended $$(date -u +%FT%TZ)"; exit $$s; } 2>&1 | tee testenv/LAST-LONG-RUN.txt; status=$$?; $(GIVE); exit $$status

test-boot: need-root need-go setup build ## boot machines by every firmware and network; keeps the result in testenv/LAST-BOOT-RUN.txt (sudo)
	@./setup.sh arm64
	@$(AS_USER) $(GO) mod download
	@set -o pipefail; { echo "make test-boot of $(VERSION), begun $$(date -u +%FT%TZ)"; \
		RECAST_LONG=1 $(AS_ROOT) $(GO) run testenv/runtests.go -each -p 1 -timeout 2h -run '^(TestMachinesBootToTheAgent|TestMachinesWithoutDHCPArriveByVirtualMedia|TestMachineArrivesByHTTPBootFromAOneTimeAddress|TestGateOnRealFirmware|TestServerAwayOnRealFirmware|TestGateUnderSecureBoot|TestVerityRootOnRealFirmware|TestTPMOnRealFirmwareVouchesForEveryBoot|TestSecureBootReachesItsDisk|TestRealFirmwareReachesItsDisk|TestFirmwareFetchesThroughLoss|TestGRUBFetchesMoreThan65535Blocks|TestLabOf192AndTwoQEMUIsReimagedWithOneApply)$$' ./testenv ./ipxe ./tftp && s=0 || s=$$?; \
		echo "ended $$(date -u +%FT%TZ)"; exit $$s; } 2>&1 | tee testenv/LAST-BOOT-RUN.txt; status=$$?; $(GIVE); exit $$status

race: need-go ## the quick tests under the race detector
	$(AS_USER) $(GO) test -race -short ./...

fuzz: need-go ## each fuzz target for FUZZTIME (20s)
	@$(AS_USER) $(GO) list ./... | while read -r pkg; do \
		for f in $$($(AS_USER) $(GO) test -list '^Fuzz' $$pkg | grep '^Fuzz'); do \
			echo "$$pkg $$f"; $(AS_USER) $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 2s $$pkg || exit 1; \
		done; done

fuzz-ci: need-go ## the fuzz targets of the boot plane for FUZZTIME, two at a time
	$(AS_USER) $(GO) run testenv/fuzzrun.go -for $(FUZZTIME)

fuzz-long: need-go ## every fuzz target for an hour; goes on where it was, keeps the result in testenv/LAST-FUZZ-RUN.txt
	$(AS_USER) chrt --idle 0 $(GO) run testenv/fuzzrun.go -long

bench: need-go ## benchmarks; as root those in network namespaces too
	@$(AS_ROOT) $(GO) test -run '^$$' -bench . -benchmem ./...; status=$$?; $(GIVE); exit $$status

bench-dhcp: need-root need-go ## DHCP alone, five times, against Kea and dnsmasq (sudo)
	@./setup.sh packages peers
	@$(AS_ROOT) $(GO) test -run '^$$' -bench 'Packet|Exchange|Storm|Start|Overload|Flood' -benchtime $(BENCHTIME) -count 5 ./dhcp; status=$$?; $(GIVE); exit $$status

bench-watch: need-go ## a server that watches 10,000 BMCs, each every 300 s: CPU and memory (13 minutes)
	@$(AS_USER) RECAST_BENCH_BMCS=10000 $(GO) test -run '^$$' -bench Watch -benchtime 1x -timeout 40m ./testenv

bench-bmc: need-go ## 500 BMCs by Redfish and IPMI, five times, against sushy and ipmitool where they are installed
	@$(AS_USER) $(GO) test -run '^$$' -bench Fleet -benchtime 1x -count 5 ./bmc

bench-image: need-root need-go ## an image written first and again, against curl|zstd|dd, bmaptool and casync, also over 1 Gbit/s (sudo)
	@./setup.sh packages peers
	@$(AS_ROOT) $(GO) test -run '^$$' -bench '^BenchmarkImage$$' -benchtime 3x -timeout 60m ./testenv

arrows: need-go ## which package may import what
	$(AS_USER) $(GO) test -run '^TestImports' .

lint: need-go ## gofmt, vet, staticcheck, govulncheck
	@files=$$($(AS_USER) $(GO) list -f '{{$$d := .Dir}}{{range .GoFiles}}{{$$d}}/{{.}} {{end}}{{range .TestGoFiles}}{{$$d}}/{{.}} {{end}}{{range .XTestGoFiles}}{{$$d}}/{{.}} {{end}}' ./...); \
		bad=$$(gofmt -l $$files testenv/runtests.go testenv/fuzzrun.go); [ -z "$$bad" ] || { echo "gofmt would change:"; echo "$$bad"; exit 1; }
	$(AS_USER) $(GO) vet ./...
	$(AS_USER) $(GO) vet testenv/runtests.go
	$(AS_USER) $(GO) vet testenv/fuzzrun.go
	$(AS_USER) $(GO) run $(STATICCHECK) ./...
	@if [ -d $(VULNDB) ]; then db="-db file://$$(realpath $(VULNDB))"; \
	elif [ -n "$(CI)" ]; then echo "lint: govulncheck left out: no vulnerability data in $(VULNDB)"; exit 0; fi; \
	out=$$($(AS_USER) $(GO) run $(GOVULNCHECK) $$db ./... 2>&1) && { echo "$$out"; exit 0; }; \
	found=$$(echo "$$out" | sed -n 's/^Vulnerability #[0-9]*: //p'); \
	new=$$(echo "$$found" | grep -vxF -f <(printf "%s\n" $(VULNS_JUDGED))); \
	if [ -z "$$found" ] || [ -n "$$new" ]; then echo "$$out"; exit 1; fi; \
	echo "lint: govulncheck found only what is judged in the Makefile:" $$found
