//! Tests of the Prometheus rules, the rules' own tests, and the metrics that they use.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use libvirt_kvm_init::codes::Action;
use libvirt_kvm_init::commands::watch::Metrics;
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::verdict::Verdict;
use serde_json::Value;

use crate::grafana;
use support::{
    Tree, bind, fresh_dev, in_namespace, mknod_kvm, ok, program, project, read, require_kvm, run,
    scratch, set_owner, yaml,
};

const RULES: &str = "examples/prometheus/rules.yaml";

fn rules() -> Vec<Value> {
    let file = yaml::parse(&read(RULES));
    let groups = file["groups"].as_array().unwrap().iter();
    groups
        .flat_map(|group| group["rules"].as_array().unwrap().clone())
        .collect()
}

/// The metric names that the recording rules create.
pub fn records() -> BTreeSet<String> {
    let rules = rules();
    let names = rules.iter().filter_map(|rule| rule["record"].as_str());
    names.map(str::to_owned).collect()
}

/// The names of all metrics of the program, written in a state that has all of them.
fn metrics() -> BTreeSet<String> {
    let mut metrics = Metrics::default();
    metrics.count_repairs([Action::SetDeviceOwner].into_iter());
    metrics.record_check(SystemTime::now());
    let text = metrics.prometheus(&Report::new(Verdict::Ok, ""), true, SystemTime::now());
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| line.split(['{', ' ']).next().unwrap().to_owned())
        .collect()
}

/// The metric names of this program in an expression.
fn names(expression: &str) -> impl Iterator<Item = &str> {
    let words = expression.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    words.filter(|word| word.contains("libvirt_kvm_init"))
}

#[test]
fn rules_use_existing_metrics() {
    let (metrics, records) = (metrics(), records());
    let tests = read("examples/prometheus/rules-test.yaml");
    for rule in rules() {
        let expression = rule["expr"].as_str().unwrap();
        for name in names(expression) {
            assert!(metrics.contains(name) || records.contains(name), "{name}");
        }
        if let Some(alert) = rule["alert"].as_str() {
            assert!(rule["for"].is_string() && rule["labels"]["severity"].is_string());
            for name in ["summary", "description"] {
                assert!(rule["annotations"][name].is_string(), "{alert}");
            }
            // Each alert must have a test in which it fires.
            let fires = format!("alertname: {alert}\n");
            assert!(tests.contains(&fires), "{alert} has no test");
        }
    }
    for word in names(&tests).filter(|word| word.starts_with("libvirt_kvm_init")) {
        assert!(metrics.contains(word), "{word}");
    }
}

fn promtool(args: &[&str], input: Option<&str>) {
    let mut command = Command::new("promtool");
    command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(input.unwrap_or_default().as_bytes())
        .unwrap();
    drop(stdin);
    let result = child.wait_with_output().unwrap();
    let output = [result.stdout, result.stderr].concat();
    let output = String::from_utf8_lossy(&output);
    assert!(result.status.success(), "{args:?}: {output}\n{input:?}");
}

#[test]
fn rules_pass_their_tests() {
    let path = project(RULES);
    promtool(&["check", "rules", path.to_str().unwrap()], None);
    let path = project("examples/prometheus/rules-test.yaml");
    promtool(&["test", "rules", path.to_str().unwrap()], None);
}

/// promtool checks the dashboard's queries as expressions of recording rules.
#[test]
fn dashboard_queries_are_valid_promql() {
    let rules = grafana::queries().into_iter().enumerate();
    let rules: Vec<_> = rules
        .map(|(number, query)| serde_json::json!({ "record": format!("a:b{number}"), "expr": query }))
        .collect();
    let file = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rules.json");
    fs::write(&path, file.to_string()).unwrap();
    promtool(&["check", "rules", path.to_str().unwrap()], None);
}

/// Tests that need root and KVM.
mod on_a_node {
    use super::*;

    /// The metrics that `check` and `watch` write, with and without drift, pass `promtool check metrics`.
    #[test]
    fn promtool_accepts_the_written_metrics() {
        in_namespace(|| {
            require_kvm();
            fresh_dev();
            let (node, pod) = (Tree::host(108), Tree::pod(108));
            bind(Path::new("/dev"), &node.at("dev"));
            let device = Path::new("/dev/kvm");
            mknod_kvm(device, 0, 108, 0o660);
            let command = |name: &str| {
                let mut command = Command::new(program());
                command.arg(name).env_clear();
                command.arg("--host-root").arg(node.path());
                command.arg("--root").arg(pod.path());
                command
            };
            for mode in [0o660, 0o666, 0o000] {
                set_owner(device, 0, 108, mode);
                let (_, text, err) = run(command("check").arg("--format=prometheus"));
                assert!(text.contains("libvirt_kvm_init_verdict"), "{text}{err}");
                promtool(&["check", "metrics"], Some(&text));
            }
            let file = scratch().join("metrics.prom");
            let mut watch = command("watch");
            watch.arg("--metrics-file").arg(&file).stderr(Stdio::null());
            let mut child = watch.stdout(Stdio::null()).spawn().unwrap();
            let until = |wanted: &str| {
                for _ in 0..100 {
                    let text = fs::read_to_string(&file).unwrap_or_default();
                    if text.lines().any(|line| line == wanted) {
                        return text;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                panic!(
                    "no {wanted}: {}",
                    fs::read_to_string(&file).unwrap_or_default()
                )
            };
            until("libvirt_kvm_init_ready 1");
            set_owner(device, 0, 5, 0o660);
            let text = until("libvirt_kvm_init_heals_total{action=\"set-device-owner\"} 1");
            assert!(text.contains("last_heal_timestamp_seconds"), "{text}");
            ok(Command::new("kill").arg(child.id().to_string()));
            assert_eq!(child.wait().unwrap().code(), Some(0));
            promtool(&["check", "metrics"], Some(&text));
            // Limits for the size of one node's metrics.
            let series = text.lines().filter(|line| !line.starts_with('#')).count();
            assert!(
                series <= 26 && text.len() <= 2_500,
                "{series} series\n{text}"
            );
        });
    }
}
