# make help lists what can be made.

SHELL   = /bin/sh
GO      = go
# Installation: DESTDIR is put in front of everything, for packagers.
DESTDIR =
PREFIX  = /usr/local
SYSCONFDIR = /etc
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT := $(shell git log -1 --format='%H %cI' 2>/dev/null || echo unknown)
# How often make flake runs the tests.
N = 20
# How long each fuzz test runs.
FUZZTIME = 30s
# How long the tests of one package may take.
TIMEOUT = 40m

LINT = $(GO) tool -modfile=tools/go.mod

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/postern, one static binary
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-X main.version=$(VERSION) -X "main.commit=$(COMMIT)"' -o bin/postern ./cmd/postern

.PHONY: run
run: build ## the daemon in the foreground, with configs/dev.toml and its state in build/dev
	@mkdir -p build/dev && mkdir -p -m 700 /tmp/postern-dev
	@echo
	@echo '  postern runs until Ctrl-C. Ask it something from another terminal, in this directory:'
	@echo
	@echo '    ./bin/postern -c configs/dev.toml ask --client 192.0.2.7 --helo mail.example.org --sender a@example.org --recipient b@example.com'
	@echo '    ./bin/postern -c configs/dev.toml explain --client 198.51.100.9 --sender a@example.org --recipient b@example.com'
	@echo '    ./bin/postern -c configs/dev.toml status'
	@echo
	@echo '  or look at it in a browser: http://127.0.0.1:8025/'
	@echo
	@[ -e build/dev/console.users ] || { echo '  This user and password are shown once:'; echo; bin/postern -c configs/dev.toml console user add admin --role admin --generate | sed 's/^/    /'; echo; }
	@exec bin/postern serve -c configs/dev.toml

.PHONY: deps
deps: ## install what the tests run against (Postfix, Redis, ...), starting nothing
	@scripts/deps.sh

.PHONY: test
test: deps vet race ## everything that must be green, real Postfix and real Redis included

.PHONY: race
race: ## the tests, with the race detector and in random order
	GORACE=atexit_sleep_ms=0 $(GO) test -race -shuffle=on -parallel 4 -timeout $(TIMEOUT) ./...

.PHONY: flake
flake: deps ## the tests N times (20) beside a load: a table of what fails now and then
	@N=$(N) scripts/flake.sh

.PHONY: vet
vet: ## gofmt and go vet
	@files=$$(gofmt -l .); [ -z "$$files" ] || { echo "not as gofmt writes it:" $$files; exit 1; }
	$(GO) vet ./...

.PHONY: lint
lint: ## golangci-lint, pinned in tools/go.mod
	$(LINT) golangci-lint run ./...

.PHONY: check
check: vet lint ## gofmt, vet and lint
	@files=$$($(LINT) gofumpt -l .); [ -z "$$files" ] || { echo "not as gofumpt writes it:" $$files; exit 1; }

.PHONY: bench
bench: ## benchmarks of the packages, then the whole daemon beside a floor (minutes)
	$(GO) test -run '^$$' -bench . -benchmem ./...
	@if [ -d bench ]; then echo $(GO) test -run '^TestFigures$$' -v -timeout 60m ./bench -figures; $(GO) test -run '^TestFigures$$' -v -timeout 60m ./bench -figures; fi

.PHONY: sim
sim: ## a simulated month of mail: what greylisting delays and lets pass, beside postgrey, sqlgrey and rspamd
	$(GO) run ./bench/sim -sweep

# Where the table of make chaos goes.
CHAOS = build/chaos.md

.PHONY: chaos
chaos: deps ## what clients see while Redis, DNS, disks and the daemon itself break: a table in build/chaos.md (minutes)
	@mkdir -p $(dir $(CHAOS))
	$(GO) test -run '^TestFaults$$' -v -count 1 -parallel 2 -timeout $(TIMEOUT) ./chaos -long -table $(abspath $(CHAOS))

.PHONY: pictures
pictures: deps ## pictures of the console's pages, from a running daemon, in build/pictures; some go to docs/pictures
	$(GO) test -count=1 -run '^TestPages$$' ./integration/console -pictures $(CURDIR)/build/pictures
	@mkdir -p docs/pictures
	@for p in login-light overview-light decisions-dark decision-light what-if-asked-light provider-asked-light settings-light decisions-narrow; do \
		cp build/pictures/$$p.png docs/pictures/ || exit 1; \
	done

.PHONY: fuzz
fuzz: ## each fuzz test for FUZZTIME (30s)
	@FUZZTIME=$(FUZZTIME) scripts/fuzz.sh

.PHONY: cover
cover: ## coverage of the whole by the whole, build/cover.html
	@mkdir -p build
	$(GO) test -timeout $(TIMEOUT) -coverpkg=./... -coverprofile=build/cover.out ./...
	$(GO) tool cover -func=build/cover.out | tail -n 1
	$(GO) tool cover -html=build/cover.out -o build/cover.html

# Binary, units and examples are replaced; what is in /etc/postern stays.
.PHONY: install
install: ## into DESTDIR and PREFIX; what is in /etc/postern stays as it is
	@[ -x bin/postern ] || { echo 'first: make build'; exit 1; }
	install -D -m 755 bin/postern $(DESTDIR)$(PREFIX)/bin/postern
	install -d $(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/share/doc/postern $(DESTDIR)$(SYSCONFDIR)/postern/conf.d
	for unit in postern.service postern.socket postern-milter.socket postern-lookup.socket; do \
		sed 's|/usr/local/|$(PREFIX)/|g' systemd/$$unit >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit && \
		chmod 644 $(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit 1; \
	done
	install -D -m 644 systemd/postern.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/postern.conf
	install -D -m 644 systemd/postern.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/postern.conf
	install -m 644 LICENSE README.md CHANGELOG.md $(DESTDIR)$(PREFIX)/share/doc/postern
	for f in configs/postern.toml configs/*.list configs/*.example configs/postfix/*/* configs/prometheus/* configs/grafana/* docs/*.md docs/checks/*.md docs/pictures/*.png; do \
		[ ! -e $$f ] || install -D -m 644 $$f $(DESTDIR)$(PREFIX)/share/doc/postern/$$f || exit 1; \
	done
	install -D -m 644 names/generic.list $(DESTDIR)$(PREFIX)/share/doc/postern/generic-names.list
	install -D -m 644 known/shared-domains.list $(DESTDIR)$(PREFIX)/share/doc/postern/shared-domains.list
	for f in configs/postern.toml configs/*.list; do \
		to=$(DESTDIR)$(SYSCONFDIR)/postern/$${f#configs/}; \
		[ ! -e $$f ] || [ -e $$to ] || install -m 644 $$f $$to || exit 1; \
	done
	@[ -n '$(DESTDIR)' ] || echo 'Next: docs/install.md, or systemd-sysusers; systemd-tmpfiles --create postern.conf; systemctl daemon-reload'

.PHONY: reproducible
reproducible: ## the binary, built in two directories: both sums, which must be one
	scripts/reproducible.sh

.PHONY: package
package: build ## build/postern_*.deb and build/postern-*.rpm
	scripts/package.sh

.PHONY: test-package
test-package: ## the .deb in a clean root made by debootstrap: installed, used, upgraded, purged (root, minutes)
	scripts/test-package.sh

.PHONY: matrix
matrix: ## the tests beside Postfix and Redis on each of RELEASES (Debian 12 and 13), in roots made by debootstrap (root, many minutes)
	scripts/matrix.sh

.PHONY: uninstall
uninstall: ## take away what install has put there; /etc/postern and the state stay
	rm -f $(DESTDIR)$(PREFIX)/bin/postern $(DESTDIR)$(PREFIX)/lib/systemd/system/postern.service $(DESTDIR)$(PREFIX)/lib/systemd/system/postern.socket \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/postern-milter.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/postern-lookup.socket \
		$(DESTDIR)$(PREFIX)/lib/sysusers.d/postern.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/postern.conf
	rm -rf $(DESTDIR)$(PREFIX)/share/doc/postern

.PHONY: clean
clean: ## take away bin and build
	rm -rf bin build
