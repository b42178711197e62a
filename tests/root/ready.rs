//! `ready`, and the `watch` that writes its file, in a container that contains only the program.

use std::fs;
use std::path::Path;
use std::process::Command;

use libvirt_kvm_init::sys::claim::claim;

use crate::place::Jail;
use support::{
    KVM, Scene, Tree, bind, bind_all, command, go, in_namespace, program, run, scratch, set_owner,
};

#[test]
fn ready_depends_on_the_proof_not_on_the_verdict() {
    in_namespace(|| {
        // QEMU can open the device as the chart left it, but not after the next event.
        let scene = Scene::new();
        let rule = "KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\"\n";
        scene
            .host
            .file("usr/lib/udev/rules.d/50-udev-default.rules", rule);
        let file = scratch().join("status.json");
        let ready = || go(command(&program(), &["ready"]).arg(&file));
        ready().code(4).last_line_has(&["status.json", "ENOENT"]);
        for (gid, verdict, code) in [(424, 1, 0), (108, 1, 5)] {
            set_owner(Path::new(KVM), 0, gid, 0o660);
            let report = go(scene.command("check").arg("--format=json")).code(verdict);
            fs::write(&file, &report.out).unwrap();
            ready()
                .code(4)
                .last_line_has(&["no process holds its lock"]);
            // Lock the file as `watch` does.
            let kept = fs::File::options().write(true).open(&file).unwrap();
            claim(&kept, code == 0).unwrap();
            let ready = ready().code(code);
            assert_eq!(ready.out, "", "ready must not write to stdout");
        }
    });
}

/// In a container without accounts `watch` maintains only the node's device, and the files of a libvirtd once one
/// runs.
#[test]
fn watch_maintains_the_files_of_a_libvirtd_that_starts_later() {
    in_namespace(|| {
        let jail = Jail::new(Tree::new());
        let host = Tree::host(108);
        bind(host.path(), jail.tree.dir("host").at("host").as_path());
        // Another container's root, with the same programs and the node's /dev.
        let pod = Tree::pod(424);
        bind(&jail.tree.at("dev"), &pod.at("dev"));
        bind_all(pod.path(), jail.tree.dir("pod").at("pod").as_path());
        for name in ["usr", "lib", "lib64"] {
            let ours = Path::new("/").join(name);
            match fs::read_link(&ours) {
                Ok(to) => std::os::unix::fs::symlink(to, jail.tree.at("pod").join(name)).unwrap(),
                Err(_) => bind(
                    &ours,
                    &jail.tree.dir(&format!("pod/{name}")).at("pod").join(name),
                ),
            }
        }
        fs::copy("/bin/sleep", jail.tree.at("pod/libvirtd")).unwrap();
        let script = "
            until_ready() { # CODE
                i=0
                while [ $i -lt 100 ]; do
                    code=0
                    /kvm-init ready /status.json 2>/dev/null || code=$?
                    [ $code != $1 ] || return 0
                    sleep 0.1
                    i=$((i + 1))
                done
                return 1
            }
            /kvm-init watch --host-root=/host --recheck=1s --status-file=/status.json &
            watch=$!
            until_ready 5 || exit 11
            ! grep kvm:x:108:nova /pod/etc/group || exit 12
            # A new session, as the process of a container has.
            setsid chroot /pod /libvirtd 60 &
            libvirtd=$!
            i=0
            until grep kvm:x:108:nova /pod/etc/group; do
                [ $i -lt 100 ] || exit 13
                sleep 0.1
                i=$((i + 1))
            done
            until_ready 0 || exit 15
            kill $libvirtd $watch
            wait $watch || exit 14
        ";
        let mut unshare = Command::new("unshare");
        unshare.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        unshare.arg("--root").arg(jail.tree.path());
        unshare.args(["/bin/sh", "-c", script]).env_clear();
        let (code, out, err) = run(unshare.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"));
        assert_eq!(code, 0, "{out}{err}");
        assert!(pod.read("etc/group").contains("kvm:x:108:nova"), "{err}");
    });
}
