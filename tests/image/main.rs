//! Tests the container image that `make image` builds: it contains only the binary and has the expected configuration.
//! Needs root, podman or buildah, tar, and the binaries of `make build`; it tests each architecture that was built.
//!
//! `cargo test --test image` as root.
#![allow(clippy::disallowed_methods)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use support::{bind, in_namespace, mount_tmpfs, ok, require_commands, scratch};

const NAME: &str = "libvirt-kvm-init:test";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The architectures as named by Rust and by container images.
const ARCHES: [(&str, &str); 2] = [("x86_64", "amd64"), ("aarch64", "arm64")];

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn binary(arch: &str) -> PathBuf {
    let name = format!("target/{arch}-unknown-linux-musl/release/libvirt-kvm-init");
    repository().join(name)
}

/// An image in the OCI layout, which stores blobs by digest.
struct Layout(PathBuf);

impl Layout {
    fn json(&self, descriptor: &Value) -> Value {
        serde_json::from_slice(&fs::read(self.blob(descriptor)).unwrap()).unwrap()
    }

    fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.0.join("blobs").join(digest.replace(':', "/"))
    }

    /// The images in the list, one for each architecture.
    fn images(&self) -> Vec<Value> {
        let index = fs::read(self.0.join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let list = self.json(&index["manifests"][0]);
        list["manifests"].as_array().unwrap().clone()
    }
}

/// Builds with the Makefile, in a separate store.
fn build(arches: &[&str]) -> Layout {
    require_commands(&["tar", "make"]);
    let path = std::env::var_os("PATH").unwrap();
    let installed = |name: &&&str| std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    let builder = ["podman", "buildah"];
    let builder = builder.iter().find(installed);
    let builder = builder.expect("this tier needs podman or buildah");
    let at = |name: &str| scratch().join(name).display().to_string();
    let options = ["--root", &at("store"), "--runroot", &at("run")];
    let options = [&options[..], &["--storage-driver", "vfs"]].concat();
    ok(Command::new("make")
        .current_dir(repository())
        .arg("image-list")
        .arg(format!("ARCHES={}", arches.join(" ")))
        .arg(format!("IMAGE={NAME}"))
        .arg("SOURCE=https://example.org/source")
        .arg(format!("BUILDER={builder} {}", options.join(" "))));
    let layout = scratch().join("layout");
    ok(Command::new(builder)
        .args(options)
        .args(["manifest", "push", "--all", NAME])
        .arg(format!("oci:{}", layout.display())));
    Layout(layout)
}

#[test]
fn image_contains_only_the_binary_for_each_architecture() {
    in_namespace(|| {
        let built = ARCHES.iter().filter(|(arch, _)| binary(arch).is_file());
        let built: Vec<_> = built.collect();
        let own = built
            .iter()
            .find(|(arch, _)| *arch == std::env::consts::ARCH);
        let own = own
            .expect("this tier needs the static binary: `make build`")
            .1;
        let arches: Vec<_> = built.iter().map(|(arch, _)| *arch).collect();
        let layout = build(&arches);
        let images = layout.images();
        assert_eq!(images.len(), built.len());
        for ((arch, name), image) in built.iter().zip(&images) {
            assert_eq!(image["platform"]["architecture"], *name);
            assert_eq!(image["platform"]["os"], "linux");
            let manifest = layout.json(image);
            let config = layout.json(&manifest["config"]);
            assert_eq!(config["architecture"], *name);
            check_config(&config["config"]);
            let layers = manifest["layers"].as_array().unwrap();
            assert_eq!(layers.len(), 1, "{manifest}");
            let (layer, directory) = (layout.blob(&layers[0]), scratch().join(name));
            check_layer(&layer, &directory, arch);
            if name == &own {
                check_run(&directory);
            }
        }
    });
}

fn check_config(config: &Value) {
    assert_eq!(
        config["Entrypoint"],
        serde_json::json!(["/libvirt-kvm-init"])
    );
    assert_eq!(config["Cmd"], serde_json::json!(["apply"]));
    assert!(config["User"].as_str().unwrap_or_default().is_empty());
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].clone();
    assert_eq!(label("title"), "libvirt-kvm-init");
    assert_eq!(label("description"), env!("CARGO_PKG_DESCRIPTION"));
    assert_eq!(label("licenses"), env!("CARGO_PKG_LICENSE"));
    assert_eq!(label("version"), VERSION);
    assert_eq!(label("source"), "https://example.org/source");
}

fn check_layer(layer: &Path, directory: &Path, arch: &str) {
    let list = ok(Command::new("tar")
        .args(["--numeric-owner", "-tvzf"])
        .arg(layer));
    let lines: Vec<_> = list.lines().collect();
    assert_eq!(lines.len(), 1, "{list}");
    assert!(lines[0].starts_with("-rwxr-xr-x 0/0 "), "{list}");
    assert!(lines[0].ends_with(" libvirt-kvm-init"), "{list}");
    fs::create_dir(directory).unwrap();
    ok(Command::new("tar")
        .arg("-xzf")
        .arg(layer)
        .arg("-C")
        .arg(directory));
    let unpacked = fs::read(directory.join("libvirt-kvm-init")).unwrap();
    assert!(unpacked == fs::read(binary(arch)).unwrap());
}

/// Checks that the binary runs without a passwd file, a library or a shell.
fn check_run(root: &Path) {
    let chroot = |args: &[&str]| {
        let mut cmd = Command::new("chroot");
        ok(cmd.arg(root).arg("/libvirt-kvm-init").args(args))
    };
    assert_eq!(
        chroot(&["--version"]),
        format!("libvirt-kvm-init {VERSION}\n")
    );
    for name in ["proc", "volume"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    bind(Path::new("/proc"), &root.join("proc"));
    mount_tmpfs(&root.join("volume"), "mode=777");
    let line = |how| format!("libvirt-kvm-init {VERSION} -> /volume/libvirt-kvm-init ({how})\n");
    assert_eq!(chroot(&["install", "/volume"]), line("written"));
    assert_eq!(chroot(&["install", "/volume"]), line("already there"));
}
