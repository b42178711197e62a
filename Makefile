# make build   the static binary, under target/<arch>-unknown-linux-musl/release
# make run     the incident and its cure, told on this machine (root, private namespaces)
# make image   the container image, with podman or buildah, without network; for both architectures where
#              the other one's target is installed. IMAGE=NAME:TAG names it, SOURCE=URL labels it
# make test    every tier of tests that this machine can run
# make bench   measures, side by side with what people use today: benches/RESULTS.md; BENCH=quick for less
# make lint    rustfmt, clippy and cargo-deny
# make fuzz    each fuzz target for SECONDS=20, with cargo-fuzz
# make sbom    what the binary is made of, for both architectures, with cargo-cyclonedx
# make reproducible   builds twice in different folders and compares the bytes

ARCH   := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-musl
BIN    := target/$(TARGET)/release/libvirt-kvm-init

VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE   = libvirt-kvm-init:$(VERSION)
# What builds images, with its own options: BUILDER="podman --root /elsewhere"
BUILDER = $(firstword $(notdir $(shell command -v podman buildah)))
# The architectures of the image, as Rust calls them.
ARCHES  = $(ARCH) $(filter-out $(ARCH),$(patsubst %-unknown-linux-musl,%,$(filter \
    x86_64-unknown-linux-musl aarch64-unknown-linux-musl,$(shell rustup target list --installed))))
EPOCH   = $(or $(SOURCE_DATE_EPOCH),$(shell git log -1 --format=%ct 2>/dev/null),0)
OCI_x86_64  := amd64
OCI_aarch64 := arm64

# A binary holds the paths of its sources, for messages. These are the same wherever it was built.
CARGO_HOME ?= $(HOME)/.cargo
REMAP = export CARGO_ENCODED_RUSTFLAGS="$$(printf -- '--remap-path-prefix=%s=/registry\037' \
    "$(CARGO_HOME)"/registry/src/*)--remap-path-prefix=$(CURDIR)=/libvirt-kvm-init"

.PHONY: build build-x86_64 build-aarch64 image image-list run test bench lint fuzz sbom reproducible clean

build:
	rustup target add $(TARGET)
	cargo fetch --locked --quiet --target $(TARGET)
	$(REMAP); cargo build --locked --release --target $(TARGET)

# Needs no cross compiler: the linker that comes with Rust does it.
build-x86_64 build-aarch64: build-%:
	rustup target add $*-unknown-linux-musl
	cargo fetch --locked --quiet --target $*-unknown-linux-musl
	$(REMAP); CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
	    cargo build --locked --release --target $*-unknown-linux-musl

image: build $(patsubst %,build-%,$(filter-out $(ARCH),$(ARCHES)))
	$(MAKE) image-list

# One image for each architecture, and a list of them that carries the name. The same sources give the
# same image: times are those of the last commit.
image-list:
	@[ -n "$(BUILDER)" ] || { echo "make image needs podman or buildah" >&2; exit 1; }
	@$(BUILDER) manifest rm $(IMAGE) >/dev/null 2>&1 || true
	set -e; for arch in $(foreach arch,$(ARCHES),$(OCI_$(arch)):$(arch)); do \
	    $(BUILDER) build --file Containerfile --platform "linux/$${arch%:*}" --format oci --layers=false \
	        --manifest $(IMAGE) --build-arg VERSION=$(VERSION) --timestamp "$(EPOCH)" \
	        $(SOURCE:%=--label org.opencontainers.image.source=%) \
	        "target/$${arch#*:}-unknown-linux-musl/release"; \
	done

run: build
	examples/incident.sh $(BIN)

test: build
	KVM_INIT_TEST_BIN=$(CURDIR)/$(BIN) tests/run

bench: build
	KVM_INIT_TEST_BIN=$(CURDIR)/$(BIN) benches/run

lint:
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo clippy --locked --all-targets -- -D warnings
	tests/deny

fuzz:
	tests/fuzz $(or $(SECONDS),20)

sbom:
	tests/sbom x86_64 aarch64

reproducible:
	tests/reproducible

clean:
	cargo clean
