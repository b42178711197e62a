//! Runs the scripts of helm-patch/values with real shells and the real program. The pod is this namespace's `/` with
//! its own /etc and /dev; the node's root, or the parts that the hook sees, is at /mnt/host-rootfs.
//!
//! Needs root, KVM and shellcheck. No modules are loaded: a replacement of `modprobe` only logs its arguments.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use support::yaml;

use support::{
    Tree, bind, fresh_dev, in_namespace, mknod_kvm, mount_tmpfs, ok, program, run, scratch,
    set_owner,
};

const DEVICE: &str = "/dev/kvm";
const HOST: &str = "/mnt/host-rootfs";
/// The GID of kvm on the node and in the image.
const NODE: u32 = 108;
const IMAGE: u32 = 424;
const IMAGE_GROUP: &str = "root:x:0:\nkvm:x:424:nova\nnova:x:42424:\n";
const ALIGNED: &str = "root:x:0:\nkvm:x:108:nova\nnova:x:42424:\n";

/// A script of helm-patch/values: `path` leads to it in the YAML.
fn script(file: &str, path: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("helm-patch/values")
        .join(file);
    let values = yaml::parse(&fs::read_to_string(file).unwrap());
    values.pointer(path).unwrap().as_str().unwrap().to_owned()
}

fn executable(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Sets up the pod's accounts at /etc, an empty /dev and the node's root, which is not mounted yet. The image's
/// qemu.conf sets nothing.
fn pod() -> Tree {
    support::require_kvm();
    let etc = Tree::pod(IMAGE);
    etc.file("etc/libvirt/qemu.conf", "# user = \"root\"\n");
    bind(&etc.at("etc"), Path::new("/etc"));
    assert_eq!(fs::read_to_string("/etc/group").unwrap(), IMAGE_GROUP);
    fresh_dev();
    mount_tmpfs(Path::new("/mnt"), "mode=755");
    fs::create_dir(HOST).unwrap();
    let host = Tree::host(NODE);
    host.dir("run");
    symlink(program(), bin("libvirt-kvm-init")).unwrap();
    host
}

/// A path in a directory that is first in PATH.
fn bin(name: &str) -> PathBuf {
    let bin = scratch().join("bin");
    fs::create_dir_all(&bin).unwrap();
    bin.join(name)
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    let path = std::env::var("PATH").unwrap();
    command.env(
        "PATH",
        format!("{}:{path}", scratch().join("bin").display()),
    );
    command
}

/// Mounts the node's root as the chart does: read-only, but not what is mounted below it.
fn mount_host(host: &Tree) {
    ok(Command::new("mount")
        .arg("--rbind")
        .arg(host.path())
        .arg(HOST));
    ok(Command::new("mount").args(["-o", "remount,bind,ro", HOST]));
}

/// Mounts the parts of the node that the values mount.
fn mount_parts(host: &Tree) {
    let values = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm-patch/values/hooks.yaml");
    let values = yaml::parse(&fs::read_to_string(values).unwrap());
    let mounts = &values["pod"]["mounts"]["libvirt"]["libvirt"]["volumeMounts"];
    for mount in mounts.as_array().unwrap() {
        let at = Path::new(mount["mountPath"].as_str().unwrap());
        let directory = at.strip_prefix(HOST).unwrap().to_str().unwrap();
        fs::create_dir_all(at).unwrap();
        bind(&host.dir(directory).at(directory), at);
        ok(Command::new("mount")
            .args(["-o", "remount,bind,ro"])
            .arg(at));
    }
}

fn owner(path: &str) -> (u32, u32, u32) {
    let node = fs::metadata(path).unwrap();
    (node.uid(), node.gid(), node.mode() & 0o7777)
}

/// Runs the commands of the chart's libvirt.sh that precede libvirtd.
fn chart() {
    ok(Command::new("sh").args(["-ec", "chmod 660 /dev/kvm; chown root:kvm /dev/kvm"]));
}

#[test]
fn scripts_pass_shellcheck() {
    support::require_commands(&["shellcheck"]);
    let dir = tempfile::tempdir().unwrap();
    for (file, path) in [
        ("hooks.yaml", "/conf/hooks/scripts/daemon"),
        ("init-modules.yaml", "/conf/init_modules/script"),
    ] {
        let at = dir.path().join(file);
        fs::write(&at, script(file, path)).unwrap();
        ok(Command::new("shellcheck").arg(at));
    }
}

mod hooks {
    use super::*;

    const HOOK: &str = "/etc/libvirt/hooks/daemon";

    /// A replacement of libvirtd: it runs its hook, discards the hook's output, ignores its exit code, and
    /// continues. Returns its own exit code and the container's log.
    fn libvirtd(operation: &str) -> (i32, String) {
        // Dash redirects before it forks, so the subshell keeps libvirtd's own standard error.
        let hook = format!("(exec {HOOK} - {operation} - {operation} >/dev/null 2>&1)");
        let text = format!("{hook}; echo going on >&2");
        let (code, stdout, log) = run(command("sh").args(["-c", &text]));
        assert_eq!(stdout, "");
        (code, log)
    }

    /// A pod with the hook, on a node whose device has GID 108.
    fn with_hook() -> Tree {
        let host = pod();
        let text = script("hooks.yaml", "/conf/hooks/scripts/daemon");
        executable(Path::new(HOOK), &text);
        fs::write(
            "/etc/libvirt/qemu.conf",
            "user = \"nova\"\ngroup = \"kvm\"\n",
        )
        .unwrap();
        mknod_kvm(Path::new(DEVICE), 0, NODE, 0o660);
        host
    }

    #[test]
    fn hook_aligns_the_pod_before_libvirtd_continues() {
        in_namespace(|| {
            let host = with_hook();
            mount_parts(&host);
            // Run twice: a restarted container has the files of its image again.
            for _ in 0..2 {
                fs::write("/etc/group", IMAGE_GROUP).unwrap();
                chart();
                assert_eq!(owner(DEVICE), (0, IMAGE, 0o660));
                let (code, log) = libvirtd("start");
                assert_eq!(code, 0, "{log}");
                assert!(log.ends_with("going on\n"), "{log}");
                assert!(log.contains("set-group-gid 424 -> 108"), "{log}");
                assert_eq!(fs::read_to_string("/etc/group").unwrap(), ALIGNED);
                assert_eq!(owner(DEVICE), (0, NODE, 0o660));
            }
        });
    }

    #[test]
    fn failed_hook_stops_libvirtd() {
        in_namespace(|| {
            // In the image, the GID belongs to disk, a guarded group.
            let host = with_hook();
            mount_parts(&host);
            let disk = IMAGE_GROUP.to_owned() + "disk:x:108:\n";
            fs::write("/etc/group", &disk).unwrap();
            let (code, log) = libvirtd("start");
            assert_eq!(code, 128 + 9, "{log}");
            assert!(log.contains("disk"), "{log}");
            assert!(log.ends_with("exit code 3: libvirtd is stopped\n"), "{log}");
            assert_eq!(fs::read_to_string("/etc/group").unwrap(), disk);
            fs::write("/etc/group", IMAGE_GROUP).unwrap();

            // No directory of the node is mounted.
            for directory in ["etc", "usr/lib", "run/udev", "run/tmpfiles.d"] {
                support::detach(&Path::new(HOST).join(directory));
            }
            fs::remove_dir_all(HOST).unwrap();
            let (code, log) = libvirtd("start");
            assert_eq!(code, 128 + 9, "{log}");
            assert!(log.contains("--host-root"), "{log}");

            // The program is missing in the image.
            fs::remove_file(bin("libvirt-kvm-init")).unwrap();
            let (code, log) = libvirtd("start");
            assert_eq!(code, 128 + 9, "{log}");
            assert!(
                log.ends_with("exit code 127: libvirtd is stopped\n"),
                "{log}"
            );

            // libvirtd also calls its hook at shutdown and at reload.
            for operation in ["shutdown", "reload"] {
                let (code, log) = libvirtd(operation);
                assert_eq!((code, log.as_str()), (0, "going on\n"), "{operation}");
            }
        });
    }
}

mod init_modules {
    use super::*;

    const SCRIPT: &str = "/etc/libvirt-init-modules.sh";
    const CONF: &str = "/etc/modprobe.d_host/qemu-system-x86.conf";

    /// The init container that loads modules; it has its own /dev.
    fn with_script(cpu_flags: &str, modprobe: &str) -> Tree {
        let host = pod();
        fs::create_dir("/etc/modprobe.d_host").unwrap();
        executable(
            Path::new(SCRIPT),
            &script("init-modules.yaml", "/conf/init_modules/script"),
        );
        let note = scratch().join("calls");
        let text = format!("#!/bin/sh\necho \"$*\" >>{}\n{modprobe}\n", note.display());
        executable(&bin("modprobe"), &text);
        let cpuinfo = scratch().join("cpuinfo");
        fs::write(&cpuinfo, format!("flags\t\t: fpu {cpu_flags} sse\n")).unwrap();
        bind(&cpuinfo, Path::new("/proc/cpuinfo"));
        mount_tmpfs(Path::new("/sys/module"), "mode=755");
        mknod_kvm(Path::new(DEVICE), 0, 0, 0o600);
        for directory in ["dev", "run"] {
            mount_tmpfs(&host.at(directory), "mode=755");
        }
        mknod_kvm(&host.at("dev/kvm"), 0, NODE, 0o660);
        mount_host(&host);
        host
    }

    /// Runs the script and returns its exit code, its stderr and the arguments of its modprobe calls.
    fn run_script() -> (i32, String, String) {
        let calls = scratch().join("calls");
        let _ = fs::remove_file(&calls);
        let (code, _, stderr) = run(&mut command(SCRIPT));
        (code, stderr, fs::read_to_string(&calls).unwrap_or_default())
    }

    #[test]
    fn script_writes_the_group_file_to_the_nodes_run() {
        in_namespace(|| {
            let host = with_script("vmx", "");
            set_owner(&host.at("dev/kvm"), 0, 0, 0o600);
            for _ in 0..2 {
                let (code, stderr, _) = run_script();
                assert_eq!(code, 0, "{stderr}");
                assert_eq!(host.read("run/libvirt-kvm-init/group"), ALIGNED);
            }
            let node = host.at("dev/kvm");
            assert_eq!(owner(node.to_str().unwrap()), (0, NODE, 0o660));
            // The files of this container are unchanged.
            assert_eq!(owner(DEVICE), (0, 0, 0o600));
            assert_eq!(fs::read_to_string("/etc/group").unwrap(), IMAGE_GROUP);

            // The libvirt container: the node's /dev, the chart's qemu.conf, and the mounted file.
            bind(&host.at("dev/kvm"), Path::new(DEVICE));
            bind(
                &host.at("run/libvirt-kvm-init/group"),
                Path::new("/etc/group"),
            );
            ok(Command::new("mount").args(["-o", "remount,bind,ro", "/etc/group"]));
            fs::write(
                "/etc/libvirt/qemu.conf",
                "user = \"nova\"\ngroup = \"kvm\"\n",
            )
            .unwrap();
            chart();
            assert_eq!(owner(DEVICE), (0, NODE, 0o660));
            let check = ["check", "--host-root", HOST, "--root", "/proc/self/root"];
            let (code, stdout, stderr) = run(command("libvirt-kvm-init").args(check));
            assert_eq!(code, 0, "{stdout}{stderr}");
        });
    }

    #[test]
    fn nested_virtualization_is_enabled_once() {
        for (flags, module) in [("vmx", "kvm_intel"), ("svm", "kvm_amd")] {
            in_namespace(|| {
                let _host = with_script(flags, "");
                let (code, stderr, calls) = run_script();
                assert_eq!(code, 0, "{stderr}");
                let expected = format!("-d {HOST} -r {module}\n-d {HOST} {module} nested=1\n");
                assert_eq!(calls, expected);
                let conf = format!("options {module} nested=1\n");
                assert_eq!(fs::read_to_string(CONF).unwrap(), conf);
                // A file that an operator wrote is kept.
                fs::write(CONF, "# mine\n").unwrap();
                let (code, stderr, calls) = run_script();
                assert_eq!((code, calls.as_str()), (0, ""), "{stderr}");
                assert_eq!(fs::read_to_string(CONF).unwrap(), "# mine\n");
            });
        }
    }

    #[test]
    fn module_is_not_reloaded_without_need_or_while_in_use() {
        in_namespace(|| {
            // Guests are running, so the module cannot be removed.
            let _host = with_script("vmx", "case $* in *-r*) exit 1 ;; esac");
            let (code, stderr, calls) = run_script();
            assert_eq!(code, 0, "{stderr}");
            assert_eq!(calls, format!("-d {HOST} -r kvm_intel\n"));
            assert!(stderr.contains("kvm_intel is in use"), "{stderr}");

            // Nested virtualization is already enabled.
            fs::remove_file(CONF).unwrap();
            let parameters = "/sys/module/kvm_intel/parameters";
            fs::create_dir_all(parameters).unwrap();
            fs::write(format!("{parameters}/nested"), "Y\n").unwrap();
            let (code, stderr, calls) = run_script();
            assert_eq!((code, calls.as_str()), (0, ""), "{stderr}");
            assert!(Path::new(CONF).exists());
        });
        in_namespace(|| {
            // A processor of neither Intel nor AMD: KVM has no such module.
            let _host = with_script("", "");
            let (code, stderr, calls) = run_script();
            assert_eq!((code, calls.as_str()), (0, ""), "{stderr}");
            assert!(!Path::new(CONF).exists());
        });
    }

    #[test]
    fn verdict_decides_after_a_failed_module_load() {
        in_namespace(|| {
            let _host = with_script("svm", "case $* in *nested*) exit 1 ;; esac");
            let (code, stderr, _) = run_script();
            assert_eq!(code, 0, "{stderr}");
            assert!(stderr.contains("could not load kvm_amd"), "{stderr}");
        });
        in_namespace(|| {
            let host = with_script("svm", "");
            // In the image, the GID belongs to disk.
            let disk = IMAGE_GROUP.to_owned() + "disk:x:108:\n";
            fs::write("/etc/group", disk).unwrap();
            let (code, stderr, _) = run_script();
            assert_eq!(code, 3, "{stderr}");
            assert!(stderr.contains("disk"), "{stderr}");
            assert!(!host.at("run/libvirt-kvm-init/group").exists());
        });
    }
}
