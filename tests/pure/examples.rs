//! Checks that a test uses every file in examples/, and that tests/run runs every such test.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use support::{project, read};

/// The files, and the test modules that use them with their tool.
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

fn files(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
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
fn every_example_has_a_test() {
    let mut found = BTreeSet::new();
    files(&project("examples"), &mut found);
    let known: BTreeSet<_> = FILES.iter().map(|(file, _)| (*file).to_owned()).collect();
    assert_eq!(found, known);
    let readme = read("examples/README.md");
    for file in found {
        let directory = file
            .rsplit_once('/')
            .map_or(file.as_str(), |(directory, _)| directory);
        let named = [file.as_str(), directory]
            .iter()
            .any(|it| readme.contains(&format!("]({it})")));
        assert!(
            named || file == "README.md",
            "{file} is not linked in examples/README.md"
        );
    }
}

/// A filter in tests/run that matches no test would pass silently.
#[test]
fn tests_run_covers_the_examples_of_every_tool() {
    let runner = read("tests/run");
    for entry in fs::read_dir(project("tests/examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let module = path.file_stem().unwrap().to_str().unwrap();
        let (alone, on_a_node) = text.split_once("mod on_a_node {").unwrap_or((&text, ""));
        let expect = |name: &str, text: &str| {
            let has = text.contains("#[test]");
            let run = runner.lines().any(|line| {
                let mut words = line.split_whitespace();
                words.next() == Some("example") && words.next() == Some(name)
            });
            assert_eq!(run, has, "{name}");
        };
        if module != "main" {
            expect(module, alone);
            expect(&format!("{module}::on_a_node"), on_a_node);
        }
    }
}
