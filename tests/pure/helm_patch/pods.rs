//! The patched DaemonSets, parsed as Kubernetes objects.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, VolumeMount};
use serde_json::Value;

use support::golden::{Way, cases, golden_of};
use support::yaml;

/// A patched DaemonSet of the chart.
struct Patched {
    /// Fixture, way and name, for messages.
    what: String,
    way: Way,
    pod: PodSpec,
}

impl Patched {
    fn libvirt(&self) -> &Container {
        let libvirt = &self.pod.containers[0];
        assert_eq!(libvirt.name, "libvirt", "{}", self.what);
        libvirt
    }

    fn init(&self) -> &[Container] {
        self.pod.init_containers.as_deref().unwrap_or_default()
    }

    fn step(&self, name: &str) -> &Container {
        let step = self.init().iter().find(|step| step.name == name);
        step.unwrap_or_else(|| panic!("{}: no {name}", self.what))
    }

    fn containers(&self) -> impl Iterator<Item = &Container> {
        self.init().iter().chain(&self.pod.containers)
    }

    /// The mounts of the containers that the patches add, and those that they add to the libvirt container.
    fn ours(&self) -> Vec<(&Container, &VolumeMount)> {
        let plain = ["/etc/group", "/usr/local/bin/libvirt-kvm-init"];
        self.containers()
            .flat_map(|container| {
                mounts(container)
                    .iter()
                    .map(move |mount| (container, mount))
            })
            .filter(|(container, mount)| {
                container.name.starts_with("libvirt-kvm-init")
                    || container.name == "libvirt"
                        && (plain.contains(&mount.mount_path.as_str())
                            || mount.mount_path.starts_with(HOST))
            })
            .collect()
    }
}

const HOST: &str = "/mnt/host-rootfs";
const STEP: &str = "libvirt-kvm-init";
const INSTALL: &str = "libvirt-kvm-init-install";

fn mounts(container: &Container) -> &[VolumeMount] {
    container.volume_mounts.as_deref().unwrap_or_default()
}

fn mount<'a>(container: &'a Container, path: &str) -> Option<&'a VolumeMount> {
    mounts(container)
        .iter()
        .find(|mount| mount.mount_path == path)
}

/// Every libvirt DaemonSet of every golden except the plain ones.
fn patched() -> Vec<Patched> {
    let mut found = Vec::new();
    for (fixture, way) in cases().filter(|(_, way)| *way != Way::Plain) {
        for document in yaml::documents(&golden_of(fixture, way)) {
            let set: DaemonSet = serde_json::from_value(document).unwrap();
            let name = set.metadata.name.unwrap();
            if name.starts_with("libvirt-libvirt-") {
                found.push(Patched {
                    what: format!("{fixture} {way:?} {name}"),
                    way,
                    pod: set.spec.unwrap().template.spec.unwrap(),
                });
            }
        }
    }
    assert_eq!(found.len(), 4 * 5, "one fixture has two DaemonSets");
    found
}

/// The value without nulls, empty lists and empty objects.
fn essence(value: &Value) -> Value {
    let has_content = |value: &Value| {
        !(value.is_null()
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty))
    };
    match value {
        Value::Object(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| (key.clone(), essence(value)));
            entries.filter(|(_, value)| has_content(value)).collect()
        }
        Value::Array(elements) => elements.iter().map(essence).collect(),
        _ => value.clone(),
    }
}

/// Kubernetes drops or rejects unknown fields; parsing into typed objects would lose them.
#[test]
fn kubernetes_types_know_every_field() {
    for (fixture, way) in cases() {
        for document in yaml::documents(&golden_of(fixture, way)) {
            let set: DaemonSet = serde_json::from_value(document.clone()).unwrap();
            let known = serde_json::to_value(&set).unwrap();
            assert_eq!(essence(&known), essence(&document), "{fixture} {way:?}");
        }
    }
}

#[test]
fn mounts_have_volumes_and_distinct_paths() {
    for patched in patched() {
        let what = &patched.what;
        let volumes = patched.pod.volumes.as_deref().unwrap_or_default();
        let names: BTreeSet<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(names.len(), volumes.len(), "{what}: duplicate volume");
        let containers: BTreeSet<_> = patched.containers().map(|c| c.name.as_str()).collect();
        let count = patched.containers().count();
        assert_eq!(containers.len(), count, "{what}: duplicate container");
        for container in patched.containers() {
            let mut places = BTreeSet::new();
            for mount in mounts(container) {
                let place = &mount.mount_path;
                let at = format!("{what}: {} {place}", container.name);
                assert!(names.contains(mount.name.as_str()), "{at}: {}", mount.name);
                assert!(places.insert(place), "{at}: duplicate mount path");
            }
        }
    }
}

#[test]
fn added_steps_run_last_and_install_runs_first() {
    for patched in patched() {
        let what = &patched.what;
        let names: Vec<_> = patched
            .init()
            .iter()
            .map(|step| step.name.as_str())
            .collect();
        let chart = ["init", "libvirt-init-modules", "init-dynamic-options"];
        assert_eq!(names[..3], chart, "{what}");
        let ours: &[_] = match patched.way {
            Way::Kustomize => &[INSTALL, STEP],
            Way::Exec => &[INSTALL],
            _ => &[],
        };
        assert_eq!(&names[3..], ours, "{what}");
    }
}

/// Another image would have other passwd and group files than those that libvirtd reads.
#[test]
fn step_uses_the_image_of_the_libvirt_container() {
    let mut images = BTreeMap::new();
    for patched in patched() {
        let (what, libvirt) = (&patched.what, patched.libvirt());
        if patched.way == Way::Kustomize {
            let step = patched.step(STEP);
            assert_eq!(step.image, libvirt.image, "{what}");
            // With different pull policies, only one of them could get a newer image of the same tag.
            assert_eq!(step.image_pull_policy, libvirt.image_pull_policy, "{what}");
        }
        if matches!(patched.way, Way::Kustomize | Way::Exec) {
            let image = patched.step(INSTALL).image.as_deref();
            assert_eq!(
                image,
                Some("YOUR-REGISTRY/libvirt-kvm-init:YOUR-TAG"),
                "{what}"
            );
        }
        let image = (libvirt.image.clone(), libvirt.image_pull_policy.clone());
        images.entry(image).or_insert(what.clone());
    }
    assert_eq!(images.len(), 2, "one fixture has two images: {images:?}");
}

#[test]
fn step_has_libvirts_mounts_of_dev_and_qemu_conf() {
    for patched in patched() {
        if patched.way != Way::Kustomize {
            continue;
        }
        let (what, step, libvirt) = (&patched.what, patched.step(STEP), patched.libvirt());
        for path in ["/dev", "/etc/libvirt/qemu.conf"] {
            let (ours, theirs) = (mount(step, path), mount(libvirt, path));
            assert!(ours.is_some() && ours == theirs, "{what}: {path}");
        }
        assert_eq!(
            mount(step, "/etc/group"),
            None,
            "{what}: the step must read the group file of its image"
        );
    }
}

/// A read-only mount of `/` covers only the top mount, and it keeps the mounts below busy unless unmounts on the
/// node propagate to it.
#[test]
fn host_root_is_read_only_and_propagates_from_the_node() {
    for patched in patched() {
        let what = &patched.what;
        for container in patched.containers() {
            for mount in mounts(container)
                .iter()
                .filter(|mount| mount.mount_path.starts_with(HOST))
            {
                let at = format!("{what}: {}", container.name);
                assert_eq!(mount.read_only, Some(true), "{at}");
                let propagation = mount.mount_propagation.as_deref();
                assert_eq!(propagation, Some("HostToContainer"), "{at}");
                assert_eq!(mount.sub_path, None, "{at}");
            }
        }
    }
}

/// A guest that breaks out of QEMU sees the same parts of the node as the libvirt container. The test goes by
/// volume, since the node's root could be mounted anywhere.
#[test]
fn libvirt_container_mounts_only_needed_node_directories() {
    let parts = [
        ("/etc", Some("Directory")),
        ("/run/tmpfiles.d", None),
        ("/run/udev", None),
        ("/usr/lib", Some("Directory")),
    ];
    for patched in patched() {
        let (what, libvirt) = (&patched.what, patched.libvirt());
        let volumes = patched.pod.volumes.as_deref().unwrap_or_default();
        let of_the_node = |mount: &VolumeMount| {
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            volume.and_then(|volume| volume.host_path.clone())
        };
        let mut seen = Vec::new();
        for mount in mounts(libvirt) {
            let Some(host) = of_the_node(mount) else {
                continue;
            };
            let at = format!("{what}: {}", mount.mount_path);
            assert_ne!(host.path, "/", "{at}");
            if mount.mount_path.starts_with(HOST) {
                assert_eq!(mount.mount_path, format!("{HOST}{}", host.path), "{at}");
                seen.push((host.path, host.type_));
            }
        }
        seen.sort();
        let parts = parts.map(|(path, kind)| (path.to_owned(), kind.map(str::to_owned)));
        match patched.way {
            Way::Exec | Way::Hooks => assert_eq!(seen, parts, "{what}"),
            _ => assert_eq!(seen, [], "{what}"),
        }
        // The init step ends before any guest can start, so it may mount the whole root.
        if patched.way == Way::Kustomize {
            let root = mount(patched.step(STEP), HOST).and_then(of_the_node);
            assert_eq!(root.unwrap().path, "/", "{what}");
        }
    }
}

/// A user who may write the config map of options must not set other variables of a root process, such as
/// BASH_ENV (sourced by the libvirt container's script), LD_PRELOAD or PATH.
#[test]
fn config_map_sets_only_three_options() {
    const OPTIONS: [&str; 3] = [
        "LIBVIRT_KVM_INIT_PROOF",
        "LIBVIRT_KVM_INIT_MISSING",
        "LIBVIRT_KVM_INIT_GID",
    ];
    for patched in patched() {
        let what = &patched.what;
        for container in patched.containers() {
            let at = format!("{what}: {}", container.name);
            assert_eq!(container.env_from, None, "{at}");
            let env = container.env.iter().flatten();
            let mut from_map = Vec::new();
            for variable in env {
                let source = variable.value_from.as_ref();
                let Some(key) = source.and_then(|source| source.config_map_key_ref.as_ref()) else {
                    continue;
                };
                assert_eq!(key.name, "libvirt-kvm-init", "{at}");
                assert_eq!(key.key, variable.name, "{at}");
                assert_eq!(key.optional, Some(true), "{at}");
                from_map.push(variable.name.as_str());
            }
            let reads = match patched.way {
                Way::Kustomize => container.name == STEP,
                Way::Exec => container.name == "libvirt",
                _ => false,
            };
            assert_eq!(from_map, if reads { &OPTIONS[..] } else { &[] }, "{at}");
        }
    }
}

/// QEMU can replace files in the libvirt container's /tmp.
#[test]
fn qemu_cannot_write_to_added_mounts() {
    for patched in patched() {
        let what = &patched.what;
        let ours = patched.ours();
        assert!(!ours.is_empty(), "{what}");
        for (container, mount) in ours {
            let at = format!("{what}: {} {}", container.name, mount.mount_path);
            assert_ne!(mount.name, "pod-tmp", "{at}");
            let written = container.name != "libvirt" && mount.name == "pod-shared";
            let device = mount.mount_path == "/dev";
            assert_eq!(mount.read_only == Some(true), !written && !device, "{at}");
        }
        // The libvirt container mounts only single files of the shared volume.
        for mount in mounts(patched.libvirt()) {
            if mount.name == "pod-shared" {
                let at = format!("{what}: {}", mount.mount_path);
                assert!(mount.sub_path.is_some(), "{at}");
                assert_eq!(mount.read_only, Some(true), "{at}");
            }
        }
    }
}

/// If a mounted file does not exist when its container starts, the kubelet creates a directory in its place.
#[test]
fn mounted_files_are_created_by_earlier_steps() {
    for patched in patched() {
        let (what, libvirt) = (&patched.what, patched.libvirt());
        let word = |container: &Container, index: usize| {
            let mut words = container.args.iter().chain(&container.command).flatten();
            words.nth(index).cloned().unwrap_or_default()
        };
        if matches!(patched.way, Way::Kustomize | Way::Exec) {
            let install = patched.step(INSTALL);
            let volume = mount(install, &word(install, 1)).unwrap();
            let binary = mount(libvirt, "/usr/local/bin/libvirt-kvm-init").unwrap();
            assert_eq!(volume.name, binary.name, "{what}");
            assert_eq!(
                binary.sub_path.as_deref(),
                Some("libvirt-kvm-init"),
                "{what}"
            );
        }
        if patched.way == Way::Kustomize {
            let (install, step) = (patched.step(INSTALL), patched.step(STEP));
            let group = mount(libvirt, "/etc/group").unwrap();
            let volume = mount(step, "/pod-shared").unwrap();
            assert_eq!(group.name, volume.name, "{what}");
            let out = format!(
                "--group-file-out=/pod-shared/{}",
                group.sub_path.as_deref().unwrap()
            );
            assert!(step.command.as_ref().unwrap().contains(&out), "{what}");
            assert_eq!(
                mount(install, "/pod-shared").unwrap().name,
                volume.name,
                "{what}"
            );
            assert_eq!(word(step, 0), "/pod-shared/libvirt-kvm-init", "{what}");
        }
    }
}

/// The default path is below /dev, so the file would be created on the node.
#[test]
fn termination_message_is_not_written_to_node_dev() {
    for patched in patched() {
        for step in patched
            .init()
            .iter()
            .filter(|step| step.name.starts_with(STEP))
        {
            let at = format!("{}: {}", patched.what, step.name);
            let path = step.termination_message_path.as_deref();
            assert_eq!(path, Some("/var/log/termination-log"), "{at}");
            let policy = step.termination_message_policy.as_deref();
            assert_eq!(policy, Some("FallbackToLogsOnError"), "{at}");
        }
    }
}

#[test]
fn steps_have_the_expected_security_context() {
    for patched in patched() {
        for step in patched
            .init()
            .iter()
            .filter(|step| step.name.starts_with(STEP))
        {
            let at = format!("{}: {}", patched.what, step.name);
            let context = step.security_context.as_ref().unwrap();
            assert_eq!(context.run_as_user, Some(0), "{at}");
            assert_eq!(context.read_only_root_filesystem, Some(true), "{at}");
            let privileged = context.privileged == Some(true);
            assert_eq!(privileged, step.name == STEP, "{at}");
            let requests = step.resources.as_ref().unwrap().requests.as_ref().unwrap();
            assert!(requests.keys().eq(["cpu", "memory"].iter()), "{at}");
        }
        // The wrapper in the libvirt container has the same privileges as a step.
        let context = patched.libvirt().security_context.as_ref().unwrap();
        assert_eq!(context.privileged, Some(true), "{}", patched.what);
        assert_eq!(
            context.read_only_root_filesystem,
            Some(false),
            "{}",
            patched.what
        );
    }
}
