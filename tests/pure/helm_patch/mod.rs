//! The patches of helm-patch on what the libvirt chart renders: the manifests in tests/goldens, read as typed
//! Kubernetes objects. The tier `kustomize` shows that they are what is built.

mod changes;
mod commands;
mod pods;
mod values;

use std::fs;

use support::golden::{Way, cases, directory, golden_name};

#[test]
fn there_is_no_golden_without_a_case() {
    let file = |(fixture, way)| {
        let extension = if way == Way::Plain { "yaml" } else { "diff" };
        format!("{}.{extension}", golden_name(fixture, way))
    };
    let mut known: Vec<_> = cases().map(file).collect();
    let found = fs::read_dir(directory()).unwrap();
    let mut found: Vec<_> = found
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    known.sort();
    found.sort();
    assert_eq!(found, known);
}
