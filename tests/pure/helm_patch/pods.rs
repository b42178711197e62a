//! The patched DaemonSets as Kubernetes reads them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, VolumeMount};
use serde_json::Value;

use support::golden::{Way, cases, golden_of};
use support::yaml;

/// A DaemonSet of the chart, patched.
struct Patched {
    /// Which, for messages.
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

    /// What the patches add: containers, and mounts in the libvirt container.
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

/// Every libvirt DaemonSet of every golden but the plain ones.
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
    assert_eq!(found.len(), 4 * 5, "two of them in one fixture");
    found
}

/// Without what says nothing: nulls, empty lists and empty objects.
fn essence(value: &Value) -> Value {
    let says = |value: &Value| {
        !(value.is_null()
            || value.as_array().is_some_and(Vec::is_empty)
            || value.as_object().is_some_and(serde_json::Map::is_empty))
    };
    match value {
        Value::Object(entries) => {
            let entries = entries
                .iter()
                .map(|(key, value)| (key.clone(), essence(value)));
            entries.filter(|(_, value)| says(value)).collect()
        }
        Value::Array(elements) => elements.iter().map(essence).collect(),
        _ => value.clone(),
    }
}

/// Kubernetes drops or refuses a field that it does not know; here it would be missing.
#[test]
fn kubernetes_knows_every_field() {
    for (fixture, way) in cases() {
        for document in yaml::documents(&golden_of(fixture, way)) {
            let set: DaemonSet = serde_json::from_value(document.clone()).unwrap();
            let known = serde_json::to_value(&set).unwrap();
            assert_eq!(essence(&known), essence(&document), "{fixture} {way:?}");
        }
    }
}

#[test]
fn every_mount_has_a_volume_and_a_place_of_its_own() {
    for patched in patched() {
        let what = &patched.what;
        let volumes = patched.pod.volumes.as_deref().unwrap_or_default();
        let names: BTreeSet<_> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        assert_eq!(names.len(), volumes.len(), "{what}: a volume twice");
        let containers: BTreeSet<_> = patched.containers().map(|c| c.name.as_str()).collect();
        let count = patched.containers().count();
        assert_eq!(containers.len(), count, "{what}: a container twice");
        for container in patched.containers() {
            let mut places = BTreeSet::new();
            for mount in mounts(container) {
                let place = &mount.mount_path;
                let at = format!("{what}: {} {place}", container.name);
                assert!(names.contains(mount.name.as_str()), "{at}: {}", mount.name);
                assert!(places.insert(place), "{at}: twice");
            }
        }
    }
}

#[test]
fn the_steps_come_last_and_the_binary_before_its_use() {
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

/// Another image has another passwd and group file than the one that libvirtd reads.
#[test]
fn the_step_runs_in_the_libvirt_containers_own_image() {
    let mut images = BTreeMap::new();
    for patched in patched() {
        let (what, libvirt) = (&patched.what, patched.libvirt());
        if patched.way == Way::Kustomize {
            let step = patched.step(STEP);
            assert_eq!(step.image, libvirt.image, "{what}");
            // A newer image under the same tag must not be pulled by one of them alone.
            assert_eq!(step.image_pull_policy, libvirt.image_pull_policy, "{what}");
        }
        if matches!(patched.way, Way::Kustomize | Way::Exec) {
            let image = patched.step(INSTALL).image.as_deref();
            assert_eq!(image, Some("example/libvirt-kvm-init:0.1.0"), "{what}");
        }
        let image = (libvirt.image.clone(), libvirt.image_pull_policy.clone());
        images.entry(image).or_insert(what.clone());
    }
    assert_eq!(images.len(), 2, "one fixture has two images: {images:?}");
}

#[test]
fn the_step_sees_what_libvirtd_will_see() {
    for patched in patched() {
        if patched.way != Way::Kustomize {
            continue;
        }
        let (what, step, libvirt) = (&patched.what, patched.step(STEP), patched.libvirt());
        for path in ["/dev", "/etc/libvirt/qemu.conf"] {
            let (ours, theirs) = (mount(step, path), mount(libvirt, path));
            assert!(ours.is_some() && ours == theirs, "{what}: {path}");
        }
        assert_eq!(mount(step, "/etc/group"), None, "{what}: not its image's");
    }
}

/// A mount of `/` is read-only only at the top, and pins what is mounted below it unless the node's
/// unmounting reaches it.
#[test]
fn the_nodes_root_is_read_only_and_follows_the_node() {
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

/// What the libvirt container sees of the node, a guest that breaks out of QEMU sees as well. By volume, since
/// the node's root could be mounted anywhere.
#[test]
fn the_libvirt_container_sees_no_more_of_the_node_than_it_needs() {
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
        // The step is over before a guest can be started, and sees all of it.
        if patched.way == Way::Kustomize {
            let root = mount(patched.step(STEP), HOST).and_then(of_the_node);
            assert_eq!(root.unwrap().path, "/", "{what}");
        }
    }
}

/// Whoever may write the config map of options sets these three, and nothing else of a process of root's:
/// neither BASH_ENV, which the libvirt container's script would run, nor LD_PRELOAD or PATH.
#[test]
fn a_config_map_sets_three_options_and_no_other_variable() {
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

/// QEMU can replace what is in the libvirt container's /tmp.
#[test]
fn nothing_of_ours_is_where_qemu_can_write() {
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
        // Of the volume that holds them, the libvirt container sees single files only.
        for mount in mounts(patched.libvirt()) {
            if mount.name == "pod-shared" {
                let at = format!("{what}: {}", mount.mount_path);
                assert!(mount.sub_path.is_some(), "{at}");
                assert_eq!(mount.read_only, Some(true), "{at}");
            }
        }
    }
}

/// Where a file of a volume is missing when its container starts, the kubelet makes a folder of it.
#[test]
fn each_mounted_file_is_made_by_a_step_before() {
    for patched in patched() {
        let (what, libvirt) = (&patched.what, patched.libvirt());
        let word = |container: &Container, index: usize| {
            let mut words = container.args.iter().chain(&container.command).flatten();
            words.nth(index).cloned().unwrap_or_default()
        };
        if matches!(patched.way, Way::Kustomize | Way::Exec) {
            let install = patched.step(INSTALL);
            let folder = mount(install, &word(install, 1)).unwrap();
            let binary = mount(libvirt, "/usr/local/bin/libvirt-kvm-init").unwrap();
            assert_eq!(folder.name, binary.name, "{what}");
            assert_eq!(
                binary.sub_path.as_deref(),
                Some("libvirt-kvm-init"),
                "{what}"
            );
        }
        if patched.way == Way::Kustomize {
            let (install, step) = (patched.step(INSTALL), patched.step(STEP));
            let group = mount(libvirt, "/etc/group").unwrap();
            let folder = mount(step, "/pod-shared").unwrap();
            assert_eq!(group.name, folder.name, "{what}");
            let out = format!(
                "--group-file-out=/pod-shared/{}",
                group.sub_path.as_deref().unwrap()
            );
            assert!(step.command.as_ref().unwrap().contains(&out), "{what}");
            assert_eq!(
                mount(install, "/pod-shared").unwrap().name,
                folder.name,
                "{what}"
            );
            assert_eq!(word(step, 0), "/pod-shared/libvirt-kvm-init", "{what}");
        }
    }
}

/// The default, a file below /dev, would be made on the node.
#[test]
fn no_message_file_is_made_in_the_nodes_dev() {
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
fn the_steps_have_the_rights_that_they_need() {
    for patched in patched() {
        for step in patched
            .init()
            .iter()
            .filter(|step| step.name.starts_with(STEP))
        {
            let at = format!("{}: {}", patched.what, step.name);
            let rights = step.security_context.as_ref().unwrap();
            assert_eq!(rights.run_as_user, Some(0), "{at}");
            assert_eq!(rights.read_only_root_filesystem, Some(true), "{at}");
            let privileged = rights.privileged == Some(true);
            assert_eq!(privileged, step.name == STEP, "{at}");
            let requests = step.resources.as_ref().unwrap().requests.as_ref().unwrap();
            assert!(requests.keys().eq(["cpu", "memory"].iter()), "{at}");
        }
        // A wrapper may do in the libvirt container what a step may.
        let rights = patched.libvirt().security_context.as_ref().unwrap();
        assert_eq!(rights.privileged, Some(true), "{}", patched.what);
        assert_eq!(
            rights.read_only_root_filesystem,
            Some(false),
            "{}",
            patched.what
        );
    }
}
