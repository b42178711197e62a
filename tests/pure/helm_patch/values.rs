//! The Helm values and the scripts in them.
//!
//! Helm is not needed: the chart appends `pod.mounts.libvirt.libvirt.volumeMounts` unchanged to the libvirt
//! container's mounts, and `volumes` to those of the pod, which the tests do themselves. libvirtd runs the hook as
//! /etc/libvirt/hooks/daemon; the container libvirt-init-modules runs the other script.

use std::process::Command;

use serde_json::Value;

use support::golden::Way;
use support::{read, yaml};

/// The script in a values file.
pub fn script(way: Way) -> String {
    let conf = &way.values()["conf"];
    let script = match way {
        Way::Hooks => &conf["hooks"]["scripts"]["daemon"],
        _ => &conf["init_modules"]["script"],
    };
    script.as_str().unwrap().to_owned()
}

/// Collects the key paths of all leaves of an object.
fn keys(prefix: &str, value: &Value, found: &mut Vec<String>) {
    let Some(entries) = value.as_object() else {
        return found.push(prefix.to_owned());
    };
    for (key, value) in entries {
        keys(&format!("{prefix}.{key}"), value, found);
    }
}

/// The chart silently ignores unknown values.
#[test]
fn values_files_use_only_known_chart_keys() {
    for (way, expected) in [
        (
            Way::Hooks,
            &[
                ".conf.hooks.enabled",
                ".conf.hooks.scripts.daemon",
                ".pod.mounts.libvirt.libvirt.volumeMounts",
                ".pod.mounts.libvirt.libvirt.volumes",
            ][..],
        ),
        (
            Way::InitModules,
            &[
                ".conf.init_modules.enabled",
                ".conf.init_modules.script",
                ".pod.mounts.libvirt.libvirt.volumeMounts",
            ],
        ),
    ] {
        let mut found = Vec::new();
        keys("", &way.values(), &mut found);
        found.sort();
        assert_eq!(found, expected, "{way:?}");
    }
    assert_eq!(Way::Hooks.values()["conf"]["hooks"]["enabled"], true);
    assert_eq!(
        Way::InitModules.values()["conf"]["init_modules"]["enabled"],
        true
    );
}

#[test]
fn scripts_are_valid_shell_without_helm_templates() {
    for (way, interpreter) in [(Way::Hooks, "sh"), (Way::InitModules, "bash")] {
        let script = script(way);
        let first = script.lines().next().unwrap();
        assert_eq!(first, format!("#!/bin/{interpreter}"), "{way:?}");
        assert!(
            !script.contains("{{"),
            "{way:?}: Helm would treat it as a template"
        );
        let parsed = Command::new(interpreter)
            .args(["-n", "-c", &script])
            .output();
        let parsed = parsed.unwrap();
        let said = String::from_utf8_lossy(&parsed.stderr);
        assert!(
            parsed.status.success() && said.is_empty(),
            "{way:?}: {said}"
        );
    }
}

/// Helm uses only the list of the last values file, so every file must have the whole list. Genestack's Talos
/// overlay replaces the rendered volumes, so a Component adds them again.
#[test]
fn hooks_extra_containers_and_talos_add_the_same_volumes() {
    let of = |values: &Value| values["pod"]["mounts"]["libvirt"]["libvirt"]["volumes"].clone();
    let hooks = of(&Way::Hooks.values());
    assert_eq!(hooks.as_array().unwrap().len(), 6);
    let extra = read("examples/kubernetes/extra-containers.yaml");
    assert_eq!(of(&yaml::parse(&extra)), hooks);
    // The YAML reader accepts only a mapping, so the list is put below a key.
    let talos = read("helm-patch/values/talos/patch.yaml");
    let talos = &yaml::parse(&format!("patch:\n{talos}"))["patch"];
    let talos = talos.as_array().unwrap().iter();
    let talos: Vec<_> = talos.map(|operation| operation["value"].clone()).collect();
    assert_eq!(Value::from(talos), hooks);
}
