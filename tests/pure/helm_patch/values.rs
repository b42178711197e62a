//! The Helm values: what the chart makes of them, and their scripts.
//!
//! Helm is not needed: the chart appends `pod.mounts.libvirt.libvirt.volumeMounts` as it stands to the
//! libvirt container's mounts, and `volumes` to the pod's, which is done here by hand. Where it keeps the scripts is its own
//! business: a hook is found by libvirtd at /etc/libvirt/hooks/daemon, and the other is what
//! libvirt-init-modules runs.

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

/// The keys of an object and of the objects in it.
fn keys(prefix: &str, value: &Value, found: &mut Vec<String>) {
    let Some(entries) = value.as_object() else {
        return found.push(prefix.to_owned());
    };
    for (key, value) in entries {
        keys(&format!("{prefix}.{key}"), value, found);
    }
}

/// A value that the chart does not know does nothing, in silence.
#[test]
fn the_values_are_the_charts() {
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
fn the_scripts_are_shell_and_no_template() {
    for (way, interpreter) in [(Way::Hooks, "sh"), (Way::InitModules, "bash")] {
        let script = script(way);
        let first = script.lines().next().unwrap();
        assert_eq!(first, format!("#!/bin/{interpreter}"), "{way:?}");
        assert!(!script.contains("{{"), "{way:?}: Helm would read it");
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

/// Helm takes the list of one file only, whichever comes last; and where Genestack's Talos overlay replaces
/// what Helm has rendered, a Component adds the same ones.
#[test]
fn all_that_add_volumes_add_the_same_ones() {
    let of = |values: &Value| values["pod"]["mounts"]["libvirt"]["libvirt"]["volumes"].clone();
    let hooks = of(&Way::Hooks.values());
    assert_eq!(hooks.as_array().unwrap().len(), 6);
    let extra = read("examples/kubernetes/extra-containers.yaml");
    assert_eq!(of(&yaml::parse(&extra)), hooks);
    // Below a key, since the reader wants a mapping.
    let talos = read("helm-patch/values/talos/patch.yaml");
    let talos = &yaml::parse(&format!("patch:\n{talos}"))["patch"];
    let talos = talos.as_array().unwrap().iter();
    let talos: Vec<_> = talos.map(|operation| operation["value"].clone()).collect();
    assert_eq!(Value::from(talos), hooks);
}
