//! Tests of the configuration for node-problem-detector's custom plugin monitor, and runs of the plugin.

use std::path::Path;
use std::process::Command;

use clap::Parser;
use libvirt_kvm_init::cli::{self, Cli};
use serde::Deserialize;

use support::{
    Tree, bind, fresh_dev, in_namespace, mknod_kvm, program, read, require_kvm, run, set_owner,
};

const CONFIGS: [&str; 2] = ["libvirt-kvm-init", "libvirt-kvm-init-event"];

/// The keys that the monitor reads (pkg/custompluginmonitor/types/config.go). It silently ignores other keys.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Config {
    plugin: String,
    #[serde(rename = "pluginConfig")]
    global: Global,
    source: String,
    conditions: Vec<Condition>,
    rules: Vec<Rule>,
    #[serde(rename = "metricsReporting")]
    _metrics: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Global {
    invoke_interval: String,
    timeout: String,
    max_output_length: usize,
    #[serde(rename = "concurrency")]
    _concurrency: u32,
    #[serde(default, rename = "enable_message_change_based_condition_update")]
    _follows_message: bool,
    #[serde(default, rename = "skip_initial_status")]
    _silent_at_first: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    r#type: String,
    reason: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    r#type: String,
    condition: Option<String>,
    reason: String,
    path: String,
    args: Vec<String>,
    timeout: String,
}

fn config(name: &str) -> Config {
    let text = read(&format!("examples/node-problem-detector/{name}.json"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn seconds(duration: &str) -> u32 {
    let (number, unit) = duration.split_at(duration.len() - 1);
    let factor = if unit == "m" { 60 } else { 1 };
    number.parse::<u32>().unwrap() * factor
}

#[test]
fn configuration_is_valid_for_the_monitor() {
    for name in CONFIGS {
        let config = config(name);
        assert_eq!(config.plugin, "custom");
        assert!(!config.source.is_empty());
        assert_eq!(config.global.max_output_length, 80);
        let timeout = seconds(&config.global.timeout);
        // The proof has a time limit of 10 s.
        assert!(timeout > 10 && timeout < seconds(&config.global.invoke_interval));
        for rule in &config.rules {
            assert!(seconds(&rule.timeout) <= timeout, "{name}");
            let cli = Cli::try_parse_from([std::slice::from_ref(&rule.path), &rule.args].concat());
            assert!(
                matches!(cli.unwrap().command, cli::Command::Check(_)),
                "{name}"
            );
        }
        for condition in &config.conditions {
            assert!(!condition.reason.is_empty() && condition.message.len() <= 80);
        }
    }
    let (lasting, passing) = (config(CONFIGS[0]), config(CONFIGS[1]));
    // The monitor does not start if a permanent problem has no default condition.
    assert_eq!(lasting.rules[0].r#type, "permanent");
    assert_eq!(
        lasting.rules[0].condition.as_ref(),
        Some(&lasting.conditions[0].r#type)
    );
    assert_eq!(passing.rules[0].r#type, "temporary");
    assert!(passing.conditions.is_empty() && passing.rules[0].condition.is_none());
    assert_ne!(lasting.conditions[0].reason, lasting.rules[0].reason);
}

/// Runs the plugin like the monitor; returns its exit code and its output, one line of at most 80 bytes.
fn plugin(rule: &Rule, node: &Tree, pod: &Tree, more: &[(&str, &str)]) -> (i32, String) {
    let mut command = Command::new(program());
    command.args(&rule.args).env_clear();
    command.env("LIBVIRT_KVM_INIT_ROOT", pod.path());
    command.env("LIBVIRT_KVM_INIT_HOST_ROOT", node.path());
    command.envs(more.iter().copied());
    let (code, out, err) = run(&mut command);
    let line = out.trim();
    assert!(line.len() <= 80 && line.lines().count() <= 1, "{out}{err}");
    (code, line.to_owned())
}

/// Tests that need root and KVM.
mod on_a_node {
    use super::*;

    #[test]
    fn plugin_reports_fine_problem_and_unknown() {
        in_namespace(|| {
            require_kvm();
            fresh_dev();
            let (node, pod) = (Tree::host(108), Tree::pod(108));
            bind(Path::new("/dev"), &node.at("dev"));
            let device = Path::new("/dev/kvm");
            for name in CONFIGS {
                for rule in &config(name).rules {
                    assert_eq!(rule.path, "/usr/local/bin/libvirt-kvm-init");
                    let (code, line) = plugin(rule, &node, &pod, &[]);
                    assert!(code == 1 && line.starts_with("absent"), "{code} {line}");
                    mknod_kvm(device, 0, 108, 0o660);
                    let (code, line) = plugin(rule, &node, &pod, &[]);
                    assert!(code == 0 && line.starts_with("ok: "), "{code} {line}");
                    set_owner(device, 0, 5, 0o600);
                    let (code, line) = plugin(rule, &node, &pod, &[]);
                    assert!(
                        code == 1 && line.starts_with("drift (ownership): "),
                        "{code} {line}"
                    );
                    let wrong = [("LIBVIRT_KVM_INIT_GID", "none")];
                    assert_eq!(plugin(rule, &node, &pod, &wrong).0, 2);
                    std::fs::remove_file(device).unwrap();
                }
            }
        });
    }
}
