//! The patches of helm-patch on what the libvirt chart renders.
//!
//! tests/goldens holds each fixture, and for each patch the difference to it. The pure tier reads the result
//! as typed Kubernetes objects; the tier `kustomize` builds it with `kubectl kustomize` and compares.
//! `KVM_INIT_UPDATE_GOLDENS=1` writes what is built instead (needs diff).
#![allow(clippy::disallowed_methods, missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../common/golden.rs"]
mod golden;
#[path = "../common/yaml.rs"]
mod yaml;

mod build;
mod changes;
mod commands;
mod pods;
mod values;

/// What the chart renders, below tests/fixtures.
const FIXTURES: [&str; 4] = [
    "genestack/base",
    "genestack/talos",
    "chart-2026.1",
    "label-overrides",
];

/// What is done to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Nothing: the fixture as kustomize writes it.
    Plain,
    /// The Component helm-patch/kustomize.
    Kustomize,
    /// The Component helm-patch/exec.
    Exec,
    /// helm-patch/values/hooks.yaml.
    Hooks,
    /// helm-patch/values/init-modules.yaml.
    InitModules,
}

impl Way {
    const ALL: [Self; 5] = [
        Self::Plain,
        Self::Kustomize,
        Self::Exec,
        Self::Hooks,
        Self::InitModules,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Kustomize => "kustomize",
            Self::Exec => "exec",
            Self::Hooks => "values-hooks",
            Self::InitModules => "values-init-modules",
        }
    }
}

/// A path in the project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The name of a golden, without its extension.
fn golden_name(fixture: &str, way: Way) -> String {
    format!("{}-{}", fixture.replace('/', "-"), way.name())
}

/// The manifests of a golden.
fn golden(fixture: &str, way: Way) -> String {
    golden::golden(&golden_name(fixture, way))
}

/// Every fixture with every way.
fn cases() -> impl Iterator<Item = (&'static str, Way)> {
    FIXTURES
        .into_iter()
        .flat_map(|fixture| Way::ALL.map(|way| (fixture, way)))
}
