//! Compares tests/goldens with what `kubectl kustomize` builds from the fixtures and the patches of helm-patch:
//! `cargo test --test kustomize`. `KVM_INIT_UPDATE_GOLDENS=1` updates the goldens instead (needs diff).
#![allow(clippy::disallowed_methods)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::golden::{Way, cases, directory, golden_name, golden_of};
use support::{copy, project, read, yaml};

/// A directory with copies of the fixtures and Components, to which a test adds overlays.
fn workspace() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(&project("tests/fixtures"), &dir.path().join("fixtures"));
    copy(&project("helm-patch"), &dir.path().join("helm-patch"));
    dir
}

/// Builds `kustomization` in an overlay directory next to the fixtures; returns the manifests or the error.
fn try_build(workspace: &Path, kustomization: &str) -> Result<String, String> {
    let overlay = workspace.join("overlay");
    fs::create_dir_all(&overlay).unwrap();
    fs::write(overlay.join("kustomization.yaml"), kustomization).unwrap();
    kustomize(&overlay)
}

fn kustomize(overlay: &Path) -> Result<String, String> {
    let output = Command::new("kubectl")
        .arg("kustomize")
        .arg(overlay)
        .output()
        .expect("this tier needs kubectl");
    let stderr = String::from_utf8(output.stderr).unwrap();
    if output.status.success() {
        assert_eq!(stderr, "", "kustomize printed a warning");
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    Err(stderr)
}

fn kustomization(fixture: &str, way: Way) -> String {
    let resources = format!("resources:\n  - ../fixtures/{fixture}\n");
    match way {
        Way::Plain => resources,
        Way::Kustomize | Way::Exec => format!(
            "{resources}components:\n  - ../helm-patch/{}\nimages:\n  - name: libvirt-kvm-init\n    \
             newName: YOUR-REGISTRY/libvirt-kvm-init\n    newTag: YOUR-TAG\n",
            way.name()
        ),
        Way::Hooks | Way::InitModules => resources + &as_the_chart_renders_them(way),
    }
}

/// Patches that add the values' volumes and mounts to the pod, as the chart's template does.
fn as_the_chart_renders_them(way: Way) -> String {
    let lists = &way.values()["pod"]["mounts"]["libvirt"]["libvirt"];
    let added = |list: &str, path: &str| -> Vec<Value> {
        let entries = lists[list].as_array().into_iter().flatten();
        entries
            .map(|entry| serde_json::json!({ "op": "add", "path": path, "value": entry }))
            .collect()
    };
    let mounts = "/spec/template/spec/containers/0/volumeMounts/-";
    let mut operations = added("volumeMounts", mounts);
    operations.extend(added("volumes", "/spec/template/spec/volumes/-"));
    let operations = Value::from(operations);
    let target = serde_json::json!({
        "kind": "DaemonSet", "labelSelector": "application=libvirt,component=libvirt",
    });
    let patch = serde_json::json!({ "target": target, "patch": operations.to_string() });
    format!("patches:\n  - {patch}\n")
}

/// Helm renders the values before any overlay is applied. Genestack's overlay for Talos replaces the volumes, so a
/// Component adds them again.
fn rendered_then_talos(workspace: &Path, way: Way) -> String {
    let rendered = workspace.join("rendered");
    fs::create_dir_all(&rendered).unwrap();
    let text = kustomization("genestack/base", way);
    fs::write(rendered.join("kustomization.yaml"), text).unwrap();
    let talos = workspace.join("talos");
    fs::create_dir_all(&talos).unwrap();
    let text = read("tests/fixtures/genestack/talos/kustomization.yaml");
    assert!(text.contains("  - ../base\n"));
    let text = text.replace("  - ../base\n", "  - ../rendered\n");
    fs::write(talos.join("kustomization.yaml"), text).unwrap();
    let again = match way {
        Way::Hooks => "components:\n  - ../helm-patch/values/talos\n",
        _ => "",
    };
    format!("resources:\n  - ../talos\n{again}")
}

/// Writes a golden: the plain DaemonSets in full, a patched variant as a diff to them.
fn update(fixture: &str, way: Way, built: &str) {
    let (plain, name) = (golden_name(fixture, Way::Plain), golden_name(fixture, way));
    let at = |name: &str, extension: &str| directory().join(format!("{name}.{extension}"));
    if way == Way::Plain {
        return fs::write(at(&plain, "yaml"), built).unwrap();
    }
    let new = tempfile::NamedTempFile::new().unwrap();
    fs::write(&new, built).unwrap();
    let mut diff = Command::new("diff");
    // Each hunk header shows the list of the pod that it changes.
    diff.args(["-U1", "--show-function-line=^      [a-zA-Z]"]);
    for name in [&plain, &name] {
        diff.arg(format!("--label={name}.yaml"));
    }
    let output = diff.arg(at(&plain, "yaml")).arg(new.path()).output();
    let output = output.expect("diff");
    assert_eq!(output.status.code(), Some(1), "{name}: {output:?}");
    fs::write(at(&name, "diff"), output.stdout).unwrap();
}

#[test]
fn goldens_match_the_kustomize_output() {
    let workspace = workspace();
    let writes = std::env::var_os("KVM_INIT_UPDATE_GOLDENS").is_some_and(|value| value == "1");
    for (fixture, way) in cases() {
        let overlay = match (fixture, way) {
            ("genestack/talos", Way::Hooks | Way::InitModules) => {
                rendered_then_talos(workspace.path(), way)
            }
            _ => kustomization(fixture, way),
        };
        let built = try_build(workspace.path(), &overlay).unwrap();
        if writes {
            update(fixture, way, &built);
        }
        assert!(
            golden_of(fixture, way) == built,
            "{fixture} {way:?} differs from the build. Run `KVM_INIT_UPDATE_GOLDENS=1 cargo test --test \
             kustomize` to update it, and review the change with git diff"
        );
    }
}

/// The YAML block in helm-patch/README.md that contains `part`.
fn block(part: &str) -> String {
    let readme = read("helm-patch/README.md");
    let mut blocks = readme.split("```yaml\n").skip(1);
    let block = blocks.find_map(|block| {
        let block = block.split("```").next()?;
        block.contains(part).then(|| block.to_owned())
    });
    block.unwrap_or_else(|| panic!("no YAML block with {part} in helm-patch/README.md"))
}

/// Tests the overlay in helm-patch/README.md.
#[test]
fn readme_overlay_builds_the_golden() {
    let overlay = block("\ncomponents:\n");
    for (way, fixture, resource) in [
        (Way::Kustomize, "genestack/base", "../base"),
        (Way::Exec, "genestack/talos", "../talos"),
    ] {
        // Genestack's directories base and talos, and the operator's overlay.
        let workspace = tempfile::tempdir().unwrap();
        copy(&project("tests/fixtures/genestack"), workspace.path());
        let component = project("helm-patch").join(way.name());
        copy(&component, &workspace.path().join("overlay/kvm-init"));
        let overlay = overlay.replace("../base", resource);
        let built = try_build(workspace.path(), &overlay).unwrap();
        assert!(built == golden_of(fixture, way), "{fixture}: {built}");
    }
}

/// The patch for testing one node first sets OnDelete for all DaemonSets of the chart.
#[test]
fn readme_on_delete_patch_applies_to_every_daemonset() {
    let workspace = workspace();
    let overlay = kustomization("label-overrides", Way::Kustomize) + &block("OnDelete");
    let built = try_build(workspace.path(), &overlay).unwrap();
    let (mut waiting, mut rolling) = (0, 0);
    for document in yaml::documents(&built) {
        let strategy = &document["spec"]["updateStrategy"];
        waiting += u32::from(*strategy == serde_json::json!({ "type": "OnDelete" }));
        rolling += u32::from(strategy["type"] == "RollingUpdate");
    }
    assert_eq!((waiting, rolling), (2, 0), "{built}");
}

/// The patches test their assumptions about the pod, so that an unexpected pod fails the build instead of being patched
/// wrongly.
#[test]
fn unexpected_pod_fails_the_build() {
    for (way, change, why) in [
        (
            Way::Kustomize,
            "- {op: replace, path: /spec/template/spec/containers/0/name, value: other}",
            "/spec/template/spec/containers/0/name",
        ),
        (
            Way::Exec,
            "- {op: replace, path: /spec/template/spec/containers/0/name, value: other}",
            "/spec/template/spec/containers/0/name",
        ),
        (
            Way::Exec,
            "- {op: remove, path: /spec/template/spec/containers/0/command}",
            "/spec/template/spec/containers/0/command",
        ),
    ] {
        let workspace = workspace();
        let changed = workspace.path().join("fixtures/changed");
        fs::create_dir(&changed).unwrap();
        let text = format!(
            "resources:\n  - ../chart-2026.1\npatches:\n  - target:\n      kind: DaemonSet\n    \
             patch: |-\n      {change}\n"
        );
        fs::write(changed.join("kustomization.yaml"), text).unwrap();
        let error = try_build(workspace.path(), &kustomization("changed", way)).unwrap_err();
        assert!(error.contains(why), "{way:?} {change}: {error}");
    }
}

/// The pod of the first DaemonSet, built from a changed fixture with these Components.
fn pod_after(change: &str, components: &[&str]) -> Result<serde_json::Value, String> {
    let workspace = workspace();
    let changed = workspace.path().join("fixtures/changed");
    fs::create_dir(&changed).unwrap();
    let text = format!(
        "resources:\n  - ../chart-2026.1\npatches:\n  - target:\n      kind: DaemonSet\n    \
         patch: |-\n      {change}\n"
    );
    fs::write(changed.join("kustomization.yaml"), text).unwrap();
    let components: String = components
        .iter()
        .map(|name| format!("  - ../helm-patch/{name}\n"))
        .collect();
    let overlay = format!("resources:\n  - ../fixtures/changed\ncomponents:\n{components}");
    let built = try_build(workspace.path(), &overlay)?;
    let set = yaml::documents(&built).swap_remove(0);
    Ok(set["spec"]["template"]["spec"].clone())
}

/// The chart sets variables in the libvirt container for Ceph, and an operator may add others.
#[test]
fn existing_container_variables_are_kept() {
    let ours = [
        "LIBVIRT_KVM_INIT_PROOF",
        "LIBVIRT_KVM_INIT_MISSING",
        "LIBVIRT_KVM_INIT_GID",
    ];
    for (change, theirs, from) in [
        (
            "- {op: add, path: /spec/template/spec/containers/0/env, value: [{name: CEPH_CINDER_USER, \
             value: cinder}, {name: A, value: b}]}",
            &["CEPH_CINDER_USER", "A"][..],
            false,
        ),
        (
            "- {op: remove, path: /spec/template/spec/containers/0/env}",
            &[],
            false,
        ),
        (
            "- {op: add, path: /spec/template/spec/containers/0/envFrom, value: [{secretRef: {name: mine}}]}",
            &[],
            true,
        ),
    ] {
        let pod = pod_after(change, &["exec"]).unwrap();
        let libvirt = &pod["containers"][0];
        assert_eq!(libvirt["name"], "libvirt", "{change}");
        let env = libvirt["env"].as_array().unwrap().iter();
        let mut names: Vec<_> = env.map(|it| it["name"].as_str().unwrap()).collect();
        names.sort_unstable();
        let mut expected = [&ours[..], theirs].concat();
        expected.sort_unstable();
        assert_eq!(names, expected, "{change}");
        // envFrom of the operator is kept.
        assert_eq!(!libvirt["envFrom"].is_null(), from, "{change}");
    }
}

/// The Component adds one more directory to a container that mounts directories of the node. Only helm-patch/exec has
/// such a container.
#[test]
fn flatcar_component_works_only_with_exec() {
    let nothing = "- {op: test, path: /spec/template/spec/containers/0/name, value: libvirt}";
    let pod = pod_after(nothing, &["exec", "flatcar"]).unwrap();
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let mount = mounts.last().unwrap();
    assert_eq!(
        *mount,
        serde_json::json!({
            "name": "kvm-host-baselayout",
            "mountPath": "/mnt/host-rootfs/usr/share/baselayout",
            "mountPropagation": "HostToContainer",
            "readOnly": true,
        })
    );
    let volume = pod["volumes"].as_array().unwrap().last().unwrap();
    assert_eq!(
        *volume,
        serde_json::json!({
            "name": "kvm-host-baselayout",
            "hostPath": { "path": "/usr/share/baselayout", "type": "Directory" },
        })
    );
    for others in [&["flatcar"][..], &["kustomize", "flatcar"]] {
        let error = pod_after(nothing, others).unwrap_err();
        assert!(error.contains("containers/0/command"), "{error}");
    }
}
