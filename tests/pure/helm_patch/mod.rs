//! Tests of the patches in helm-patch, applied to the manifests that the libvirt chart renders. They read the
//! manifests in tests/goldens as typed Kubernetes objects; the tier `kustomize` compares the goldens with a build.

mod changes;
mod commands;
mod pods;
mod values;

use std::fs;

use support::golden::{Way, cases, directory, golden_name};

#[test]
fn every_golden_belongs_to_a_case() {
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
