# make build   the static binary, under target/<arch>-unknown-linux-musl/release
# make run     the incident and its cure, told on this machine (root, private namespaces)
# make test    every tier of tests that this machine can run
# make lint    rustfmt, clippy and cargo-deny

ARCH   := $(shell uname -m)
TARGET := $(ARCH)-unknown-linux-musl
BIN    := target/$(TARGET)/release/libvirt-kvm-init

.PHONY: build build-aarch64 run test lint clean

build:
	rustup target add $(TARGET)
	cargo build --locked --release --target $(TARGET)

# Needs no cross compiler: the linker that comes with Rust does it.
build-aarch64:
	rustup target add aarch64-unknown-linux-musl
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld \
	    cargo build --locked --release --target aarch64-unknown-linux-musl

run: build
	examples/incident.sh $(BIN)

test: build
	KVM_INIT_TEST_BIN=$(CURDIR)/$(BIN) tests/run

lint:
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	tests/deny

clean:
	cargo clean
