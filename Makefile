# make build   static binary in target/<arch>-unknown-linux-musl/release
# make run     demonstrates the incident and its repair on this machine (root, private namespaces)
# make image   container image, built with podman or buildah without network; for both architectures if the
#              Rust target of the other one is installed. IMAGE=NAME:TAG sets its name, SOURCE=URL its source label
# make test    every tier of tests that this machine supports
# make bench   benchmarks, compared with existing tools: benches/RESULTS.md; BENCH=quick for fewer runs
# make lint    rustfmt, clippy, cargo-deny, and zizmor for the workflows
# make fuzz    each fuzz target for SECONDS=20, with cargo-fuzz
# make sbom    bill of materials of the binary for both architectures, with cargo-cyclonedx
# make man     man pages and shell completions in target/packaging/generated
# make install installs the results of make build and make man below PREFIX=/usr/local, with DESTDIR= as prefix;
#              builds them only if they are missing. make uninstall removes them
# make deb     Debian package in target/debian, with cargo-deb. MAINTAINER="NAME <ADDRESS>" sets the maintainer
# make reproducible   builds twice in different directories and compares the results
# make docs    updates the generated tables of README.md, SECURITY.md and docs/, and the picture of make run

ARCH   := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-musl
BIN    := target/$(TARGET)/release/libvirt-kvm-init

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE   = libvirt-kvm-init:$(VERSION)
# The image builder, with options if needed: BUILDER="podman --root /elsewhere"
BUILDER = $(firstword $(notdir $(shell command -v podman buildah)))
# The architectures of the image, by their Rust names.
ARCHES  = $(ARCH) $(filter-out $(ARCH),$(patsubst %-unknown-linux-musl,%,$(filter \
    x86_64-unknown-linux-musl aarch64-unknown-linux-musl,$(shell rustup target list --installed))))
# Maintainer of the packages.
MAINTAINER = $(shell sed -n '/^.package.metadata.deb.$$/,$$s/^maintainer = "\(.*\)"/\1/p' Cargo.toml)
EPOCH   = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null),0)
OCI_x86_64  := amd64
OCI_aarch64 := arm64

# Panic messages contain source paths. Remap them, so that the binary does not depend on the build directory.
CARGO_HOME ?= $(HOME)/.cargo
REMAP = export CARGO_ENCODED_RUSTFLAGS="$$(printf -- '--remap-path-prefix=%s=/registry\037' \
    "$(CARGO_HOME)"/registry/src/*)--remap-path-prefix=$(CURDIR)=/libvirt-kvm-init"

# Installation directories.
PREFIX  = /usr/local
BINDIR  = $(PREFIX)/bin
MANDIR  = $(PREFIX)/share/man
UNITDIR = $(PREFIX)/lib/systemd/system
BASHDIR = $(PREFIX)/share/bash-completion/completions
ZSHDIR  = $(PREFIX)/share/zsh/site-functions
FISHDIR = $(PREFIX)/share/fish/vendor_completions.d
GENERATED = target/packaging/generated
UNIT    = libvirt-kvm-init.service
# Sets the directory of the program in ExecStart, and removes the comment on manual installation.
unit    = sed -e '/^.   install /d' -e 's|/usr/local/bin/|$(1)/|' examples/systemd/$(UNIT)

.PHONY: build build-x86_64 build-aarch64 image image-list run test bench lint fuzz sbom reproducible docs clean \
    man install uninstall deb deb-list

build:
	rustup target add $(TARGET)
	cargo fetch --locked --quiet --target $(TARGET)
	$(REMAP); cargo build --locked --release --target $(TARGET)

# Needs no cross compiler: rust-lld, which is part of the Rust toolchain, links for both architectures.
build-x86_64 build-aarch64: build-%:
	rustup target add $*-unknown-linux-musl
	cargo fetch --locked --quiet --target $*-unknown-linux-musl
	$(REMAP); CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
	    cargo build --locked --release --target $*-unknown-linux-musl

image: build $(patsubst %,build-%,$(filter-out $(ARCH),$(ARCHES)))
	$(MAKE) image-list

# One image per architecture, and a manifest list with the name. Timestamps are those of the last commit, so that the
# same sources result in the same image.
image-list:
	@[ -n "$(BUILDER)" ] || { echo "make image needs podman or buildah" >&2; exit 1; }
	@$(BUILDER) manifest rm $(IMAGE) >/dev/null 2>&1 || true
	set -e; for arch in $(foreach arch,$(ARCHES),$(OCI_$(arch)):$(arch)); do \
	    $(BUILDER) build --file Containerfile --platform "linux/$${arch%:*}" --format oci --layers=false \
	        --manifest $(IMAGE) --build-arg VERSION=$(VERSION) --timestamp "$(EPOCH)" \
	        $(SOURCE:%=--label org.opencontainers.image.source=%) \
	        "target/$${arch#*:}-unknown-linux-musl/release"; \
	done

# The footers of the pages contain the date of the last commit.
man:
	rm -rf "$(GENERATED)"
	cargo run --locked --quiet --manifest-path packaging/generate/Cargo.toml --target-dir target/packaging \
	    -- "$(GENERATED)" "$$(date -u -d "@$(EPOCH)" +%F)"

# `make install` does not rebuild existing files: it often runs as a different user than `make build`.
$(BIN):
	$(MAKE) build
$(GENERATED):
	$(MAKE) man

# ExecStart needs an absolute path, and make and systemd split words at spaces.
install: $(BIN) $(GENERATED)
	@case "$(BINDIR)" in \
	    /*[!A-Za-z0-9/._+-]* | [!/]* | "") echo "make install: PREFIX and BINDIR must be absolute paths of" \
	        "letters, digits and /._+- (DESTDIR can be any path)" >&2; exit 1;; \
	esac
	install -D -m 0755 $(BIN) "$(DESTDIR)$(BINDIR)/libvirt-kvm-init"
	install -d "$(DESTDIR)$(MANDIR)/man8"
	install -m 0644 $(GENERATED)/man/man8/*.8 "$(DESTDIR)$(MANDIR)/man8"
	install -D -m 0644 $(GENERATED)/completions/bash/libvirt-kvm-init "$(DESTDIR)$(BASHDIR)/libvirt-kvm-init"
	install -D -m 0644 $(GENERATED)/completions/zsh/_libvirt-kvm-init "$(DESTDIR)$(ZSHDIR)/_libvirt-kvm-init"
	install -D -m 0644 $(GENERATED)/completions/fish/libvirt-kvm-init.fish \
	    "$(DESTDIR)$(FISHDIR)/libvirt-kvm-init.fish"
	install -d "$(DESTDIR)$(UNITDIR)"
	$(call unit,$(BINDIR)) >"$(DESTDIR)$(UNITDIR)/$(UNIT)"
	chmod 0644 "$(DESTDIR)$(UNITDIR)/$(UNIT)"

uninstall:
	rm -f "$(DESTDIR)$(BINDIR)/libvirt-kvm-init" "$(DESTDIR)$(UNITDIR)/$(UNIT)" \
	    "$(DESTDIR)$(MANDIR)"/man8/libvirt-kvm-init.8 "$(DESTDIR)$(MANDIR)"/man8/libvirt-kvm-init-*.8 \
	    "$(DESTDIR)$(BASHDIR)/libvirt-kvm-init" "$(DESTDIR)$(ZSHDIR)/_libvirt-kvm-init" \
	    "$(DESTDIR)$(FISHDIR)/libvirt-kvm-init.fish"

deb: build $(patsubst %,build-%,$(filter-out $(ARCH),$(ARCHES))) man
	$(MAKE) deb-list

# One package per architecture, from the existing build. The same sources result in the same package.
deb-list: STAGE = target/packaging/debian
deb-list: $(GENERATED)
	@command -v cargo-deb >/dev/null || \
	    { echo "make deb needs cargo-deb (cargo install --locked cargo-deb)" >&2; exit 1; }
	rm -rf $(STAGE) && mkdir -p $(STAGE)
	$(call unit,/usr/bin) >$(STAGE)/$(UNIT)
	printf '%s (%s-1) unstable; urgency=medium\n\n  * Version %s: see changelog.gz.\n\n -- %s  %s\n' \
	    libvirt-kvm-init $(VERSION) $(VERSION) "$(MAINTAINER)" "$$(date -u -R -d "@$(EPOCH)")" >$(STAGE)/changelog
	set -e; for arch in $(ARCHES); do \
	    SOURCE_DATE_EPOCH=$(EPOCH) cargo deb --locked --no-build --no-strip --quiet --maintainer "$(MAINTAINER)" \
	        --target $$arch-unknown-linux-musl --output target/debian/; \
	done

run: build
	examples/incident.sh $(BIN)

test: build
	KVM_INIT_TEST_BIN="$(CURDIR)/$(BIN)" tests/run

bench: build
	KVM_INIT_TEST_BIN=$(CURDIR)/$(BIN) benches/run

lint:
	cargo fmt --check --all
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path packaging/generate/Cargo.toml
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo clippy --locked --test '*' -- -D warnings
	cargo clippy --locked --no-default-features -- -D warnings
	cargo clippy --locked --manifest-path packaging/generate/Cargo.toml --target-dir target/packaging \
	    --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --document-private-items
	tests/deny
	tests/layers
	tests/lint-workflows

fuzz:
	tests/fuzz $(or $(SECONDS),20)

sbom:
	tests/sbom x86_64 aarch64

reproducible:
	tests/reproducible

docs: build
	KVM_INIT_WRITE_DOCS=1 cargo test --locked --quiet --test pure readme::
	KVM_INIT_WRITE_DOCS=1 KVM_INIT_TEST_BIN="$(CURDIR)/$(BIN)" cargo test --locked --quiet --test root readme::
	docs/record $(BIN) >target/run.svg && mv target/run.svg docs/run.svg

clean:
	cargo clean
