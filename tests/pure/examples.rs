//! Every file in examples/ is used in a test, and every such test is run.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use support::{project, read};

/// The files, and the module that has each of them used by its tool.
const FILES: [(&str, &str); 18] = [
    ("README.md", "kubectl"),
    ("ansible/bootstrap.yml", "ansible"),
    ("grafana/libvirt-kvm-init.json", "grafana, promtool"),
    ("incident.sh", "shell"),
    ("kubernetes/daemonset/daemonset.yaml", "kubernetes, kubectl"),
    ("kubernetes/daemonset/kustomization.yaml", "kubectl"),
    ("kubernetes/extra-containers.yaml", "kubernetes"),
    ("kubernetes/flatcar/kustomization.yaml", "kubectl"),
    ("kubernetes/sidecar/kustomization.yaml", "kubectl"),
    ("kubernetes/sidecar/patch.yaml", "kubernetes, kubectl"),
    ("kubernetes/textfile/kustomization.yaml", "kubectl"),
    ("kubernetes/textfile/patch.yaml", "kubectl"),
    ("kubernetes/unprivileged/kustomization.yaml", "kubectl"),
    ("node-problem-detector/libvirt-kvm-init-event.json", "npd"),
    ("node-problem-detector/libvirt-kvm-init.json", "npd"),
    ("prometheus/rules-test.yaml", "promtool"),
    ("prometheus/rules.yaml", "promtool"),
    ("systemd/libvirt-kvm-init.service", "systemd"),
];

fn files(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            let name = path.strip_prefix(project("examples")).unwrap();
            found.insert(name.to_str().unwrap().to_owned());
        }
    }
}

#[test]
fn no_example_is_without_a_test() {
    let mut found = BTreeSet::new();
    files(&project("examples"), &mut found);
    let known: BTreeSet<_> = FILES.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(found, known);
    let readme = read("examples/README.md");
    for file in found {
        let folder = file
            .rsplit_once('/')
            .map_or(file.as_str(), |(folder, _)| folder);
        let named = [file.as_str(), folder]
            .iter()
            .any(|it| readme.contains(&format!("]({it})")));
        assert!(named || file == "README.md", "{file} is not in the README");
    }
}

/// A name that matches no test would pass.
#[test]
fn the_runner_runs_every_tools_examples() {
    let runner = read("tests/run");
    for entry in fs::read_dir(project("tests/examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let module = path.file_stem().unwrap().to_str().unwrap();
        let (alone, on_a_node) = text.split_once("mod on_a_node {").unwrap_or((&text, ""));
        let wants = |name: &str, text: &str| {
            let has = text.contains("#[test]");
            let run = runner.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some("example") && words.next() == Some(name)
            });
            assert_eq!(run, has, "{name}");
        };
        if module != "main" {
            wants(module, alone);
            wants(&format!("{module}::on_a_node"), on_a_node);
        }
    }
}
