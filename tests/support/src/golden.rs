//! Reads tests/goldens: for each fixture the DaemonSets as kustomize prints them (`-plain.yaml`), and for each patch of
//! helm-patch a unified diff to them.

use std::path::PathBuf;

use serde_json::Value;

use crate::{project, yaml};

/// The fixtures below tests/fixtures: manifests that the chart renders.
pub const FIXTURES: [&str; 4] = [
    "genestack/base",
    "genestack/talos",
    "chart-2026.1",
    "label-overrides",
];

/// A way to patch a fixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Not patched: the fixture as kustomize prints it.
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
    pub const ALL: [Self; 5] = [
        Self::Plain,
        Self::Kustomize,
        Self::Exec,
        Self::Hooks,
        Self::InitModules,
    ];

    /// The part of a golden's name for this way.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Kustomize => "kustomize",
            Self::Exec => "exec",
            Self::Hooks => "values-hooks",
            Self::InitModules => "values-init-modules",
        }
    }

    /// The Helm values file of this way.
    pub fn values(self) -> Value {
        let name = self.name().strip_prefix("values-");
        let name = name.unwrap_or_else(|| panic!("{self:?} has no values file"));
        yaml::parse(&crate::read(&format!("helm-patch/values/{name}.yaml")))
    }
}

/// The directory tests/goldens.
pub fn directory() -> PathBuf {
    project("tests/goldens")
}

/// The manifests of one golden, such as `genestack-base-kustomize`.
pub fn golden(name: &str) -> String {
    let read = |file: &str| crate::read(&format!("tests/goldens/{file}"));
    if name.ends_with("-plain") {
        return read(&format!("{name}.yaml"));
    }
    let diff = read(&format!("{name}.diff"));
    let header = diff.lines().next().unwrap_or_default();
    let plain = header.strip_prefix("--- ").expect("the file to patch");
    patched(&read(plain), &diff)
}

/// Applies a unified diff; its line numbers and context must match the text exactly.
fn patched(old: &str, diff: &str) -> String {
    let old: Vec<_> = old.split_inclusive('\n').collect();
    let (mut new, mut next) = (String::new(), 0);
    for line in diff.split_inclusive('\n').skip(2) {
        if let Some(hunk) = line.strip_prefix("@@ -") {
            let start: usize = hunk.split([',', ' ']).next().unwrap().parse().unwrap();
            new.extend(old[next..start - 1].iter().copied());
            next = start - 1;
            continue;
        }
        let (sign, text) = line.split_at(1);
        if sign != "+" {
            assert_eq!(old[next], text, "line {} of the plain file", next + 1);
            next += 1;
        }
        if sign != "-" {
            new.push_str(text);
        }
    }
    new.extend(old[next..].iter().copied());
    new
}

/// The name of a golden, without its extension.
pub fn golden_name(fixture: &str, way: Way) -> String {
    format!("{}-{}", fixture.replace('/', "-"), way.name())
}

/// The manifests of a golden.
pub fn golden_of(fixture: &str, way: Way) -> String {
    golden(&golden_name(fixture, way))
}

/// Every fixture with every way.
pub fn cases() -> impl Iterator<Item = (&'static str, Way)> {
    FIXTURES
        .into_iter()
        .flat_map(|fixture| Way::ALL.map(|way| (fixture, way)))
}
