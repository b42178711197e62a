//! Tests of the example manifests, parsed as Kubernetes objects.

use clap::Parser;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, Volume, VolumeMount};
use libvirt_kvm_init::cli::{Cli, Command};
use libvirt_kvm_init::config::Output;
use libvirt_kvm_init::pipeline::Request;
use serde::de::DeserializeOwned;
use serde_json::Value;

use support::{read, yaml};

/// The node's directories that the watchers may mount.
pub const OF_THE_NODE: [&str; 6] = [
    "/dev",
    "/etc",
    SOCKETS,
    "/run/tmpfiles.d",
    "/run/udev",
    "/usr/lib",
];
/// The directory in which a starting libvirtd creates its sockets; a sidecar has that of its pod.
const SOCKETS: &str = "/run/libvirt";
/// The mount point of these directories.
const HOST: &str = "/host";

/// True if no field of the manifest was lost in parsing. Kubernetes drops or rejects unknown fields; parsing into typed
/// objects loses them.
pub fn is_contained(manifest: &Value, known: &Value) -> bool {
    match (manifest, known) {
        (Value::Object(fields), _) => fields.iter().all(|(key, value)| {
            let known = known.get(key).unwrap_or(&Value::Null);
            value.is_null() || is_contained(value, known)
        }),
        (Value::Array(elements), Value::Array(known)) => {
            let mut pairs = elements.iter().zip(known);
            elements.len() == known.len()
                && pairs.all(|(element, known)| is_contained(element, known))
        }
        _ => manifest == known,
    }
}

/// Parses an object and asserts that Kubernetes knows all of its fields.
pub fn typed<T: DeserializeOwned + serde::Serialize>(manifest: &Value) -> T {
    let object: T = serde_json::from_value(manifest.clone()).unwrap();
    let known = serde_json::to_value(&object).unwrap();
    assert!(is_contained(manifest, &known), "{manifest:#}\n{known:#}");
    object
}

/// A container that runs `watch`, and the volumes that come with it.
struct Watcher {
    name: &'static str,
    container: Container,
    volumes: Vec<Volume>,
}

fn sidecar() -> Watcher {
    // The YAML reader accepts only a mapping, so the list is put below a key.
    let patch = read("examples/kubernetes/sidecar/patch.yaml");
    let patch = &yaml::parse(&format!("patch:\n{patch}"))["patch"];
    let added = |path: &str| -> Vec<Value> {
        let operations = patch.as_array().unwrap().iter();
        let here = operations.filter(|it| it["op"] == "add" && it["path"] == path);
        here.map(|it| it["value"].clone()).collect()
    };
    let volumes = added("/spec/template/spec/volumes/-");
    Watcher {
        name: "sidecar",
        container: typed(&added("/libvirt-kvm-watch")[0]),
        volumes: volumes.iter().map(typed).collect(),
    }
}

fn extra() -> Watcher {
    let values = yaml::parse(&read("examples/kubernetes/extra-containers.yaml"));
    let volumes = &values["pod"]["mounts"]["libvirt"]["libvirt"]["volumes"];
    Watcher {
        name: "extra-containers",
        container: typed(&values["libvirt"]["extraContainers"][0]),
        volumes: volumes.as_array().unwrap().iter().map(typed).collect(),
    }
}

fn set() -> DaemonSet {
    typed(&yaml::parse(&read(
        "examples/kubernetes/daemonset/daemonset.yaml",
    )))
}

fn watchers() -> [Watcher; 3] {
    let pod = set().spec.unwrap().template.spec.unwrap();
    let standalone = Watcher {
        name: "daemonset",
        container: pod.containers[0].clone(),
        volumes: pod.volumes.unwrap(),
    };
    [sidecar(), extra(), standalone]
}

pub fn mounts(container: &Container) -> &[VolumeMount] {
    container.volume_mounts.as_deref().unwrap_or_default()
}

/// The arguments after the program's name.
pub fn words(container: &Container) -> Vec<String> {
    let command = container.command.iter().flatten().skip(1);
    command
        .chain(container.args.iter().flatten())
        .cloned()
        .collect()
}

/// The request that the program parses from the arguments.
pub fn request(container: &Container) -> (Request, Output) {
    let words = words(container);
    let cli = Cli::try_parse_from([&["program".to_owned()], words.as_slice()].concat());
    let Command::Watch(given) = cli.unwrap_or_else(|e| panic!("{words:?}: {e}")).command else {
        panic!("{words:?}")
    };
    let none = |_: &std::path::Path| Err("no file".to_owned());
    Request::resolve(&given.flags, |_| None, none).unwrap()
}

#[test]
fn watchers_mount_only_needed_node_directories() {
    for Watcher {
        name,
        container,
        volumes,
    } in watchers()
    {
        for volume in &volumes {
            if let Some(host) = &volume.host_path {
                assert!(
                    OF_THE_NODE.contains(&host.path.as_str()),
                    "{name}: {volume:?}"
                );
            } else {
                assert!(volume.empty_dir.is_some(), "{name}: {volume:?}");
            }
        }
        let mut seen = Vec::new();
        for mount in mounts(&container) {
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            let Some(host) = volume.and_then(|volume| volume.host_path.as_ref()) else {
                continue;
            };
            if host.path != "/dev" {
                assert_eq!(mount.mount_path, format!("{HOST}{}", host.path), "{name}");
                assert_eq!(mount.read_only, Some(true), "{name}: {mount:?}");
                let propagation = mount.mount_propagation.as_deref();
                assert_eq!(propagation, Some("HostToContainer"), "{name}: {mount:?}");
                seen.push(host.path.clone());
            }
        }
        seen.sort();
        let needs = |path: &&&str| **path != SOCKETS || name == "daemonset";
        let needed: Vec<_> = OF_THE_NODE[1..].iter().filter(needs).collect();
        assert_eq!(seen.iter().collect::<Vec<_>>(), needed, "{name}");
        let dev = mounts(&container).iter().find(|it| it.mount_path == "/dev");
        assert!(dev.is_some_and(|dev| dev.name == "dev" && dev.read_only != Some(true)));
        assert_eq!(
            request(&container).0.sources.host_root.unwrap().to_str(),
            Some(HOST)
        );
    }
}

/// A user who may write a config map can set only the listed options, and no other variable of a root process.
#[test]
fn watchers_use_no_env_from() {
    for Watcher {
        name, container, ..
    } in watchers()
    {
        assert_eq!(container.env_from, None, "{name}");
        let env = container.env.unwrap_or_default();
        let names: Vec<_> = env.iter().map(|it| it.name.as_str()).collect();
        let options = ["PROOF", "MISSING", "GID"].map(|it| format!("LIBVIRT_KVM_INIT_{it}"));
        if name == "sidecar" {
            assert_eq!(names, options, "{name}");
        } else {
            assert_eq!(names, [""; 0], "{name}");
        }
        for variable in env {
            let key = variable.value_from.unwrap().config_map_key_ref.unwrap();
            assert_eq!((&*key.name, key.optional), ("libvirt-kvm-init", Some(true)));
            assert_eq!(key.key, variable.name, "{name}");
        }
    }
}

#[test]
fn watchers_have_the_expected_security_context() {
    for Watcher {
        name, container, ..
    } in watchers()
    {
        let context = container.security_context.unwrap();
        // Needed for the proof; see examples/README.md.
        assert_eq!(context.privileged, Some(true), "{name}");
        assert_eq!(context.run_as_user, Some(0), "{name}");
        assert_eq!(context.read_only_root_filesystem, Some(true), "{name}");
        assert!(container.ports.is_none(), "{name}");
        let path = container.termination_message_path.as_deref();
        assert_eq!(path, Some("/var/log/termination-log"), "{name}: not /dev");
        let policy = container.termination_message_policy.as_deref();
        assert_eq!(policy, Some("FallbackToLogsOnError"), "{name}");
        let requests = container.resources.unwrap().requests.unwrap();
        assert!(requests.keys().eq(["cpu", "memory"].iter()), "{name}");
    }
}

/// Drift alone must not make a pod unready, so the probe runs `ready` and not `check`.
#[test]
fn readiness_probe_reads_the_status_file() {
    for Watcher {
        name,
        container,
        volumes,
    } in watchers()
    {
        let (_, output) = request(&container);
        let status_file = output.status_file.unwrap();
        let probe = container.readiness_probe.clone().unwrap();
        let command = probe.exec.unwrap().command.unwrap();
        let program = container.command.as_ref().map(|words| words[0].as_str());
        assert_eq!(command[0], program.unwrap_or("/libvirt-kvm-init"), "{name}");
        let cli = Cli::try_parse_from(&command).unwrap();
        assert!(
            matches!(cli.command, Command::Ready(asked) if asked.status_file == status_file),
            "{name}: {command:?}"
        );
        assert!(container.liveness_probe.is_none(), "{name}");
        assert!(container.startup_probe.is_none(), "{name}");
        // Both files are in writable emptyDir directories of the pod, so they can be replaced.
        for file in [status_file, output.metrics_file.unwrap()] {
            let directory = file.parent().unwrap().to_str();
            let mount = mounts(&container).iter();
            let mut mount = mount.filter(|it| Some(it.mount_path.as_str()) == directory);
            let mount = mount.next().unwrap_or_else(|| panic!("{name}: {file:?}"));
            assert!(mount.read_only != Some(true) && mount.sub_path.is_none());
            let volume = volumes.iter().find(|volume| volume.name == mount.name);
            let empty = volume.unwrap().empty_dir.as_ref().unwrap();
            assert!(empty.size_limit.is_some(), "{name}: {file:?}");
        }
    }
}

/// Another container that mounts a single file of a volume keeps the old inode if the file is replaced. The sidecar
/// mounts the file itself too, so the program writes it in place.
#[test]
fn sidecar_writes_the_group_file_that_libvirtd_reads() {
    let container = sidecar().container;
    assert_eq!(container.restart_policy.as_deref(), Some("Always"));
    let golden = support::golden::golden("genestack-base-kustomize");
    let set: DaemonSet = serde_json::from_value(yaml::documents(&golden)[0].clone()).unwrap();
    let libvirt = set.spec.unwrap().template.spec.unwrap().containers[0].clone();
    let of = |container: &Container, path: &str| {
        let mount = mounts(container).iter().find(|it| it.mount_path == path);
        let mount = mount.unwrap_or_else(|| panic!("{path}"));
        (mount.name.clone(), mount.sub_path.clone())
    };
    let out = request(&container).0.sources.group_file_out.unwrap();
    let ours = of(&container, out.to_str().unwrap());
    assert_eq!(ours, of(&libvirt, "/etc/group"));
    let written = mounts(&container).iter().find(|it| it.sub_path == ours.1);
    assert_ne!(written.unwrap().read_only, Some(true));
    let program = &container.command.as_ref().unwrap()[0];
    assert_eq!(of(&container, program), of(&libvirt, program));
    for path in ["/etc/libvirt/qemu.conf", "/dev"] {
        assert_eq!(of(&container, path), of(&libvirt, path));
    }
}

#[test]
fn daemonset_needs_no_cluster_access() {
    let set = set().spec.unwrap();
    let labels = set.template.metadata.as_ref().unwrap().labels.clone();
    assert_eq!(set.selector.match_labels, labels);
    let pod = set.template.spec.unwrap();
    assert_eq!(pod.automount_service_account_token, Some(false));
    assert_eq!(pod.service_account_name, None);
    assert_eq!(pod.host_network, None);
    assert_eq!(
        pod.host_pid,
        Some(true),
        "needed to find the libvirtd process"
    );
    let (Request { sources, .. }, _) = request(&pod.containers[0]);
    assert_eq!(
        sources.pod_root.path().to_str(),
        Some("/"),
        "without --root, `watch` uses libvirtd's root"
    );
    assert_eq!(sources.group_file_out, None);
}

/// Tests that need root and KVM.
mod on_a_node {
    use std::path::Path;
    use std::process::Command;

    use super::*;
    use support::{Tree, bind, fresh_dev, in_namespace, mknod_kvm, ok, program, require_kvm, run};

    /// The mounted directories suffice: udev rules of all three directories take effect, and so does a group file
    /// behind a link in /etc.
    #[test]
    fn mounted_node_directories_suffice() {
        for watcher in watchers() {
            in_namespace(|| {
                require_kvm();
                fresh_dev();
                mknod_kvm(Path::new("/dev/kvm"), 0, 0, 0o600);
                let (node, pod, seen) = (Tree::new(), Tree::pod(424), Tree::new());
                node.file("usr/lib/group", "root:x:0:\nkvm:x:108:\n");
                std::os::unix::fs::symlink("../usr/lib/group", node.at("etc/group")).unwrap();
                let rules = |group: &str| format!("KERNEL==\"kvm\", GROUP=\"{group}\"\n");
                node.file("usr/lib/udev/rules.d/50-udev-default.rules", &rules("kvm"));
                node.dir("run/udev/rules.d").dir("etc/udev/rules.d");
                node.dir("run/tmpfiles.d").dir("run/libvirt");
                for volume in watcher.volumes.iter().filter(|it| it.name != "dev") {
                    if let Some(host) = &volume.host_path {
                        let part = host.path.trim_start_matches('/');
                        bind(&node.at(part), &seen.dir(part).at(part));
                        let mut read_only = Command::new("mount");
                        read_only.args(["-o", "remount,bind,ro"]);
                        ok(read_only.arg(seen.at(part)));
                    }
                }
                for (place, gid) in [("", 108), ("run", 109), ("etc", 110)] {
                    if !place.is_empty() {
                        let name = format!("{place}/udev/rules.d/60-{place}.rules");
                        node.file(&name, &rules(&gid.to_string()));
                    }
                    let mut check = Command::new(program());
                    check.args(["check", "--format=json"]).env_clear();
                    check.arg("--host-root").arg(seen.path());
                    let (code, out, err) = run(check.arg("--root").arg(pod.path()));
                    let report: Value = serde_json::from_str(&out).unwrap();
                    let name = watcher.name;
                    assert_eq!(code, 1, "{name}: {out}{err}");
                    assert_eq!(report["target"]["gid"], gid, "{name}: {report:#}");
                    assert_eq!(report["host"]["kvm_gid"], 108, "{name}: {report:#}");
                    std::fs::remove_file(node.at("run/udev/rules.d/60-run.rules")).ok();
                }
            });
        }
    }
}
