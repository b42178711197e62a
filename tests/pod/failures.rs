//! Tests of steps that fail: their message, and that they change nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::VolumeMount;

use crate::kubelet::{Ended, HOST, Pod, STEP};
use crate::node::{DEVICE, Node, device, on_a_node};
use support::guest::{self, IMAGE, NODE};
use support::{mount_tmpfs, program, set_owner};

const OUT: &str = "--group-file-out=/pod-shared/group";
const GIVEN: &str = "--host-root=/mnt/host-rootfs";

/// The patched pod with the binary already installed and a short --settle.
pub fn with_step(node: &Node) -> Pod<'_> {
    let mut pod = Pod::new(node, "genestack-base-kustomize");
    pod.replace(STEP, "--settle=30s", &["--settle=200ms"]);
    before_ours(&pod);
    pod
}

/// The pod whose libvirt container runs the wrapper, with a command that prints the kvm line and exits with 7.
fn wrapped(node: &Node) -> Pod<'_> {
    let mut pod = Pod::new(node, "genestack-base-exec");
    pod.replace("libvirt", "--settle=30s", &["--settle=200ms"]);
    let command = ["sh", "-c", "grep ^kvm: /etc/group; exit 7"];
    pod.replace("libvirt", "/tmp/libvirt.sh", &command);
    before_ours(&pod);
    pod
}

/// Prepares the pod as the steps before ours do.
fn before_ours(pod: &Pod) {
    let options = pod.volume("pod-shared").join("libvirtd.conf");
    fs::write(&options, guest::LIBVIRTD_CONF).unwrap();
    set_owner(&options, 65534, 65534, 0o644);
    let install = pod.step("libvirt-kvm-init-install");
    assert_eq!(install.code, 0, "{install:?}");
}

/// The path of the step's --group-file-out.
pub fn output(pod: &Pod) -> PathBuf {
    pod.volume("pod-shared").join("group")
}

/// Inode, owner, mode, size and change time of every file that a step could change.
fn state(pod: &Pod) -> Vec<String> {
    let mut paths = vec![PathBuf::from(DEVICE), pod.node.at("etc/group")];
    let mut volume: Vec<_> = fs::read_dir(pod.volume("pod-shared"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    volume.sort();
    paths.append(&mut volume);
    let shown = |path: &PathBuf| match fs::symlink_metadata(path) {
        // Ignore the times of directories: a temporary file changes them.
        Ok(it) if it.is_dir() => path.display().to_string(),
        Ok(it) => format!(
            "{}: {} {}:{} {:o} {} {}.{:09}",
            path.display(),
            it.ino(),
            it.uid(),
            it.gid(),
            it.mode(),
            it.len(),
            it.ctime(),
            it.ctime_nsec()
        ),
        Err(e) => format!("{}: {e}", path.display()),
    };
    paths.iter().map(shown).collect()
}

/// Asserts that the step ends with this code, has this text in its last line, and changes nothing.
pub fn refuses(pod: &Pod, code: i32, reason: &str) -> Ended {
    let before = state(pod);
    let ended = pod.step(STEP);
    assert_failed(&ended, code, reason);
    assert_eq!(state(pod), before, "{reason}");
    ended
}

fn assert_failed(ended: &Ended, code: i32, reason: &str) {
    assert_eq!(ended.code, code, "{reason}: {ended:?}");
    let verdict = match code {
        2 => "usage",
        3 => "refused",
        4 => "failed",
        5 => "unproven",
        6 => "absent",
        _ => panic!("exit code {code} is not a failure"),
    };
    let start = format!("libvirt-kvm-init: {verdict}: ");
    assert!(ended.reason().starts_with(&start), "{ended:?}");
    assert!(ended.reason().contains(reason), "{reason}: {ended:?}");
    // Kubernetes shows the last 2048 bytes of a log.
    assert!(ended.reason().len() < 2048, "{ended:?}");
    assert_eq!(ended.group(), None, "{reason}");
}

/// Asserts that the wrapper fails with this code and text and does not run the command.
fn wrapper_refuses(pod: &Pod, code: i32, reason: &str) {
    let before = state(pod);
    let ended = pod.libvirt();
    assert_failed(&ended, code, reason);
    assert_eq!(ended.stdout, "", "{ended:?}");
    assert_eq!(state(pod), before, "{reason}");
}

/// Asserts that the wrapper aligns the group and executes the command.
fn wrapper_goes_on(pod: &Pod, gid: u32) -> Ended {
    let ended = pod.libvirt();
    assert_eq!(ended.code, 7, "{ended:?}");
    assert_eq!(ended.stdout, format!("kvm:x:{gid}:nova\n"), "{ended:?}");
    ended
}

/// The image's group file with this GID for kvm.
fn expected_group_with(pod: &Pod, gid: u32) -> String {
    let image = pod.image.read("etc/group");
    let old = format!("\nkvm:x:{IMAGE}:nova\n");
    image.replace(&old, &format!("\nkvm:x:{gid}:nova\n"))
}

/// Asserts that the step succeeds and writes the pod's group file with this GID.
pub fn goes_on(pod: &Pod, gid: u32) -> Ended {
    let ended = pod.step(STEP);
    assert_eq!(ended.code, 0, "{ended:?}");
    let group = expected_group_with(pod, gid);
    assert_eq!(fs::read_to_string(output(pod)).unwrap(), group);
    let file = fs::metadata(output(pod)).unwrap();
    assert_eq!(
        (file.uid(), file.gid(), file.mode()),
        (0, 0, 0o100_644),
        "{ended:?}"
    );
    ended
}

#[test]
fn missing_device_is_absent_or_skipped() {
    on_a_node(|node| {
        let mut pod = with_step(node);
        fs::remove_file(DEVICE).unwrap();
        refuses(&pod, 6, "/dev/kvm does not exist");
        assert!(!output(&pod).exists());
        pod.options = vec![("LIBVIRT_KVM_INIT_MISSING", "skip")];
        let ended = goes_on(&pod, NODE);
        assert!(ended.reason().contains("/dev/kvm does not exist"));
        assert!(!Path::new(DEVICE).exists());
    });
    on_a_node(|node| {
        let pod = wrapped(node);
        fs::remove_file(DEVICE).unwrap();
        wrapper_refuses(&pod, 6, "/dev/kvm does not exist");
    });
}

#[test]
fn step_refuses_a_private_dev() {
    on_a_node(|node| {
        let mut pod = with_step(node);
        pod.unmount(STEP, "/dev");
        refuses(&pod, 3, "mount the node's /dev at /dev");
        assert!(!output(&pod).exists());

        // The wrapper continues, since libvirtd in the same container uses the same device. The node's /dev is not
        // mounted there, so the two devices cannot be compared.
        let mut pod = wrapped(node);
        pod.unmount("libvirt", "/dev");
        let before = state(&pod);
        let ended = wrapper_goes_on(&pod, NODE);
        assert_eq!(
            ended.group().unwrap(),
            expected_group_with(&pod, NODE),
            "{ended:?}"
        );
        assert_eq!(state(&pod), before);
        assert_eq!(device(), (0, NODE, 0o660));
    });
}

#[test]
fn missing_host_root_is_a_usage_error() {
    on_a_node(|node| {
        let mut pod = with_step(node);
        pod.unmount(STEP, HOST);
        refuses(&pod, 2, "--host-root /mnt/host-rootfs");
        assert!(!output(&pod).exists());
        // The image has the mount point, but nothing is mounted there.
        pod.image.dir(HOST.trim_start_matches('/'));
        refuses(&pod, 2, "nothing is mounted there");
        pod.replace(STEP, GIVEN, &["--strict"]);
        refuses(&pod, 3, "cannot read the node's file system");
        pod.replace(STEP, "--strict", &[]);
        // Without the host root, the target is the GID of the device.
        let ended = goes_on(&pod, NODE);
        assert!(ended.stdout.contains("host-root-unknown"), "{ended:?}");
    });
    on_a_node(|node| {
        let mut pod = wrapped(node);
        pod.unmount_host("libvirt");
        wrapper_refuses(&pod, 2, "--host-root /mnt/host-rootfs");
        pod.replace("libvirt", GIVEN, &[]);
        let ended = wrapper_goes_on(&pod, NODE);
        assert!(ended.stderr.contains("host-root-unknown"), "{ended:?}");
    });
}

#[test]
fn read_only_root_fails_only_if_a_change_is_needed() {
    on_a_node(|node| {
        let mut pod = with_step(node);
        pod.replace(STEP, OUT, &[]);
        refuses(&pod, 4, "with --group-file-out");

        let mut pod = wrapped(node);
        let context = pod.container("libvirt").security_context.as_mut();
        context.unwrap().read_only_root_filesystem = Some(true);
        wrapper_refuses(&pod, 4, "with --group-file-out");
        // A read-only root does not matter if nothing must be changed.
        let aligned = pod.image.read("etc/group");
        let aligned = aligned.replace(&format!(":{IMAGE}:nova"), &format!(":{NODE}:nova"));
        pod.image.file("etc/group", &aligned);
        let ended = wrapper_goes_on(&pod, NODE);
        assert_eq!(ended.group(), None);
    });
}

/// The wrapper and a mounted group file in one container.
#[test]
fn wrapper_fails_with_read_only_mounted_group_file() {
    on_a_node(|node| {
        let mut pod = wrapped(node);
        fs::copy(pod.image.at("etc/group"), output(&pod)).unwrap();
        let mounts = &mut pod.container("libvirt").volume_mounts;
        mounts.get_or_insert_default().push(VolumeMount {
            name: "pod-shared".to_owned(),
            mount_path: "/etc/group".to_owned(),
            sub_path: Some("group".to_owned()),
            read_only: Some(true),
            ..VolumeMount::default()
        });
        wrapper_refuses(&pod, 4, "open(/etc/group): EROFS");
    });
}

#[test]
fn unwritable_group_file_output_fails() {
    on_a_node(|node| {
        let mut pod = with_step(node);
        goes_on(&pod, NODE);
        let old = "root:x:0:\nkvm:x:555:nova\n";
        fs::write(output(&pod), old).unwrap();
        let spec = pod.spec.clone();

        let mounts = &mut pod.container(STEP).volume_mounts;
        let volume = mounts
            .iter_mut()
            .flatten()
            .find(|it| it.name == "pod-shared");
        volume.unwrap().read_only = Some(true);
        refuses(&pod, 4, "mount the volume writable in this step");
        pod.spec = spec.clone();

        // A full volume.
        let small = pod.volume("pod-shared").join("small");
        fs::create_dir(&small).unwrap();
        mount_tmpfs(&small, "size=4k,mode=777");
        fs::write(small.join("group"), old).unwrap();
        pod.replace(STEP, OUT, &["--group-file-out=/pod-shared/small/group"]);
        refuses(&pod, 4, "ENOSPC");
        assert_eq!(fs::read_to_string(small.join("group")).unwrap(), old);
        assert_eq!(fs::read_dir(&small).unwrap().count(), 1);
        pod.spec = spec;

        assert_eq!(fs::read_to_string(output(&pod)).unwrap(), old);
        goes_on(&pod, NODE);
    });
}

/// If a file to be mounted is missing, the kubelet creates a directory in its place: the libvirt container does not
/// start, and the step reports the directory from then on.
#[test]
fn directory_made_by_the_kubelet_is_reported() {
    on_a_node(|node| {
        let pod = with_step(node);
        let ended = pod.libvirt();
        assert_ne!(ended.code, 0);
        assert!(!ended.stderr.contains("chown root:kvm"), "{ended:?}");
        assert!(output(&pod).is_dir());
        refuses(&pod, 4, "/pod-shared/group");
    });
}

/// An emptyDir survives restarts of containers, of the pod's sandbox and of the node.
#[test]
fn old_volume_content_is_kept_or_replaced() {
    on_a_node(|node| {
        let pod = with_step(node);
        goes_on(&pod, NODE);
        let before = state(&pod);
        let install = pod.step("libvirt-kvm-init-install");
        assert_eq!(install.code, 0, "{install:?}");
        let again = goes_on(&pod, NODE);
        assert!(!again.stdout.contains("changed"), "{again:?}");
        assert_eq!(state(&pod), before);

        // Files of another image and of another version.
        fs::write(output(&pod), "root:x:0:\nkvm:x:555:nova\nold:x:1234:\n").unwrap();
        let binary = pod.volume("pod-shared").join(STEP);
        fs::remove_file(&binary).unwrap();
        fs::write(&binary, "#!/bin/sh\nexit 0\n").unwrap();
        let image = pod.image.read("etc/group");
        pod.image.file("etc/group", &(image + "new:x:4321:\n"));
        assert!(pod.init().is_ok());
        goes_on(&pod, NODE);
        let file = fs::metadata(&binary).unwrap();
        assert_eq!((file.uid(), file.mode()), (0, 0o100_755));
        assert_eq!(fs::read(&binary).unwrap(), fs::read(program()).unwrap());
    });
}

/// A pod whose step fails does not start its libvirt container.
#[test]
fn refused_step_blocks_the_pod() {
    on_a_node(|node| {
        let pod = with_step(node);
        // In the image, the GID belongs to disk, a guarded group.
        let image = pod.image.read("etc/group");
        let disk = image.replace("\ndisk:x:6:", &format!("\ndisk:x:{NODE}:"));
        assert_ne!(disk, image);
        pod.image.file("etc/group", &disk);
        let (step, ended) = pod.init().unwrap_err();
        assert_eq!(step, STEP);
        assert_failed(&ended, 3, "disk");
        assert!(!output(&pod).exists());
    });
}

#[test]
fn failed_hook_ends_libvirtd() {
    on_a_node(|node| {
        let mut pod = Pod::new(node, "genestack-base-values-hooks");
        pod.with_hook();
        pod.unmount_host("libvirt");
        assert!(pod.init().is_ok());
        let ended = pod.libvirt();
        assert_eq!(ended.code, 128 + 9, "{ended:?}");
        assert_eq!(ended.group(), None);
        assert!(ended.stderr.contains("usage: --host-root"), "{ended:?}");
        let last = "libvirt-kvm-init: exit code 2: libvirtd is stopped";
        assert_eq!(ended.reason(), last);
    });
}

/// A user who may write the config map of options can neither run a command as root nor set another group or file.
#[test]
fn config_map_cannot_run_commands_in_the_libvirt_container() {
    on_a_node(|node| {
        let mut pod = Pod::new(node, "genestack-base-exec");
        pod.replace("libvirt", "--settle=30s", &["--settle=200ms"]);
        pod.replace("libvirt", "/tmp/libvirt.sh", &["bash", "-c", "exit 7"]);
        before_ours(&pod);
        // The script that bash would run leaves a file in the container's layer.
        pod.image
            .file("srv/evil", "id -u >/srv/ran; echo $PPID >>/srv/ran\n");
        for attack in [
            ("BASH_ENV", "/srv/evil"),
            ("LIBVIRT_KVM_INIT_GROUP_FILE_OUT", "/srv/out"),
            ("LIBVIRT_KVM_INIT_GROUP", "disk"),
            ("PATH", "/srv"),
        ] {
            pod.options = vec![attack];
            let ended = pod.libvirt();
            for name in ["srv/ran", "srv/out"] {
                assert!(!ended.layer.join(name).exists(), "{attack:?}: {ended:?}");
            }
            assert_eq!(ended.code, 7, "{attack:?}: {ended:?}");
            let group = ended.group().unwrap();
            assert_eq!(group, expected_group_with(&pod, NODE), "{attack:?}");
        }

        // The allowed options still take effect.
        pod.options = vec![("LIBVIRT_KVM_INIT_PROOF", "off")];
        let ended = pod.libvirt();
        assert_eq!(ended.code, 7, "{ended:?}");
        assert!(
            ended.stderr.contains("unproven") || ended.stderr.contains("not tested"),
            "{ended:?}"
        );
    });
}
