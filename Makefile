# SPDX-License-Identifier: BSD-2-Clause
#
# The words a person types. Each one says what it needs and gets it; see `make help`.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build demo test test-vm vm-shell bench bench-tc-guard bench-imds-watch bench-sslsniff lint fmt vmlinux clean
.PHONY: install uninstall package test-packages

CARGO ?= cargo
# rustup puts it where a shell that was there before does not look.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# One kernel series for test-vm and vm-shell, such as 6.1; all of them for test-vm if it is empty.
KERNEL ?=
# Only tests whose name contains this, for test-vm.
TEST ?=

# Where `make install` puts things. DESTDIR comes before all of them and is for those who build packages.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
DOCDIR ?= $(DATADIR)/doc/ebpfkit
SYSCONFDIR ?= /etc
# Where systemd looks, whatever PREFIX is.
UNITDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/lib,/etc)/systemd/system
SYSUSERSDIR ?= $(if $(filter /usr,$(PREFIX)),/usr/lib,/etc)/sysusers.d
# The program that is installed, and asked for its manual pages and completions.
BINARY ?= target/release/ebpfkit
# For these alone: a package that another word builds has places of its own.
install uninstall: export DESTDIR := $(DESTDIR)
install uninstall: export BINDIR := $(BINDIR)
install uninstall: export DATADIR := $(DATADIR)
install uninstall: export MANDIR := $(MANDIR)
install uninstall: export DOCDIR := $(DOCDIR)
install uninstall: export SYSCONFDIR := $(SYSCONFDIR)
install uninstall: export UNITDIR := $(UNITDIR)
install uninstall: export SYSUSERSDIR := $(SYSUSERSDIR)
install uninstall: export BINARY := $(BINARY)

help: ## this list
	@echo 'make WORD, where WORD is one of:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r word text; do \
		printf '  %-17s %s\n' "$$word" "$$text"; done

build: ## the release binary: target/release/ebpfkit
	packaging/install-deps build
	$(CARGO) build --release

install: ## install what `make build` has built, below PREFIX (/usr/local); DESTDIR for packages
	packaging/install-files install

uninstall: ## remove what `make install` has installed; changed settings stay
	packaging/install-files uninstall

package: ## .deb, .rpm, .apk and Arch packages, with SBOM and checksums, in build/packages
	packaging/install-deps build package
	packaging/make-packages

test-packages: ## build packages, install them into folders, run and remove them (root)
	packaging/install-deps build demo package package-test
	tests/packages/run

demo: ## install what is missing, build, and see the tools at work in network namespaces (root)
	packaging/install-deps build demo
	$(CARGO) build --release
	examples/demo/run

test: ## install what is missing, and run all tests that this machine's kernel can run
	packaging/install-deps build test
	tests/run

test-vm: ## the tests on Debian's kernels in QEMU; KERNEL=6.1 for all on one kernel, TEST=name for some tests
	packaging/install-deps build test vm
	tests/vm/run $(if $(TEST),--filter '$(TEST)') $(KERNEL)

vm-shell: ## a shell on one of these kernels, with the tests in it: make vm-shell KERNEL=6.1
	packaging/install-deps build test vm
	@test -n '$(KERNEL)' || { echo 'vm-shell: which kernel? Such as: make vm-shell KERNEL=6.1' >&2; exit 1; }
	tests/vm/run --shell $(KERNEL)

bench: bench-tc-guard bench-imds-watch bench-sslsniff ## all that is measured, as ratios: a quarter of an hour (root)

bench-sslsniff: ## what watching TLS costs a web server, as ratios: nginx under wrk, and bpftrace for comparison (root)
	packaging/install-deps build bench
	$(CARGO) bench --bench sslsniff

bench-tc-guard: ## what tc-guard costs, against an empty program, no guard, nftables and iptables (root)
	packaging/install-deps build test
	$(CARGO) bench --bench tc-guard

bench-imds-watch: ## what imds-watch costs: in the filter, in wake-ups, on a veth pair (root)
	packaging/install-deps build
	$(CARGO) bench --bench imds_watch

lint: ## formatting, warnings, BPF programs with clang 14 and 19 for x86-64 and arm64, scripts
	packaging/install-deps build lint
	tests/lint

fmt: ## format Rust and C
	$(CARGO) fmt
	find src/bpf -name '*.[ch]' -exec clang-format-19 -i {} +

vmlinux: ## make vmlinux/*/vmlinux.h again, from Debian's kernels
	packaging/install-deps vmlinux
	vmlinux/generate

clean: ## remove what was built
	$(CARGO) clean
