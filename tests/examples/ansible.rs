//! Tests of the Ansible tasks. The machine is not changed: the tasks run in a mount namespace with its own
//! /usr/local/bin, /etc/systemd/system and /dev, and with test directories for node and pod.

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{
    Tree, bind, copy, fresh_dev, in_namespace, mknod_kvm, mount_tmpfs, program, project,
    require_kvm, run, scratch, set_owner,
};

/// Writes a playbook next to a copy of the examples, as a role would have it.
fn playbook(directory: &Path, vars: &serde_json::Value) -> Command {
    copy(&project("examples"), &directory.join("examples"));
    let book = serde_json::json!([{
        "hosts": "localhost", "connection": "local", "gather_facts": false, "vars": vars,
        // A static import, so that the syntax check includes the tasks.
        "tasks": [{ "ansible.builtin.import_tasks": "examples/ansible/bootstrap.yml" }],
    }]);
    fs::write(directory.join("playbook.yml"), book.to_string()).unwrap();
    let mut command = Command::new("ansible-playbook");
    command.args(["-i", "localhost,", "playbook.yml"]);
    command.current_dir(directory).env("HOME", directory);
    command
        .env("ANSIBLE_NOCOLOR", "1")
        .env("ANSIBLE_LOCALHOST_WARNING", "0");
    fs::write(directory.join("ansible.cfg"), "").unwrap();
    command
        .env("ANSIBLE_CONFIG", directory.join("ansible.cfg"))
        .env("ANSIBLE_DEPRECATION_WARNINGS", "0");
    command.env("ANSIBLE_PYTHON_INTERPRETER", "/usr/bin/python3");
    command
}

#[test]
fn tasks_pass_the_syntax_check() {
    let dir = tempfile::tempdir().unwrap();
    let (code, out, err) = run(playbook(dir.path(), &serde_json::json!({})).arg("--syntax-check"));
    assert_eq!(code, 0, "{out}{err}");
}

/// Tests that need root and KVM.
mod on_a_node {
    use super::*;

    const UNIT: &str = "examples/systemd/libvirt-kvm-init.service";

    #[test]
    fn tasks_install_align_and_are_idempotent() {
        in_namespace(|| {
            require_kvm();
            let binary = scratch().join("binary");
            fs::copy(program(), &binary).unwrap();
            fresh_dev();
            mount_tmpfs(Path::new("/usr/local/bin"), "mode=755");
            let (node, pod) = (Tree::host(108), Tree::pod(108));
            bind(Path::new("/dev"), &node.at("dev"));
            let device = Path::new("/dev/kvm");
            mknod_kvm(device, 0, 0, 0o600);
            mount_tmpfs(Path::new("/etc/systemd/system"), "mode=755");
            let unit = Path::new("/etc/systemd/system/libvirt-kvm-init.service");
            let wanted = Path::new("/etc/systemd/system/multi-user.target.wants");
            let vars = serde_json::json!({ "libvirt_kvm_init_binary": binary });
            let play = |more: &[&str]| {
                let mut command = playbook(&scratch(), &vars);
                command
                    .args(more)
                    .env("LIBVIRT_KVM_INIT_HOST_ROOT", node.path());
                command.env("LIBVIRT_KVM_INIT_ROOT", pod.path());
                // With this, systemctl creates the links without a running systemd.
                command.env("SYSTEMD_OFFLINE", "1");
                let (code, out, err) = run(&mut command);
                (code, format!("{out}{err}"))
            };
            let (code, output) = play(&["--check", "-e", "libvirt_kvm_init_unit=false"]);
            assert!(
                code == 0 && !Path::new("/usr/local/bin/libvirt-kvm-init").exists(),
                "{output}"
            );
            let (code, output) = play(&[]);
            assert!(code == 0 && output.contains("changed=4 "), "{output}");
            assert_eq!(fs::read(unit).unwrap(), fs::read(project(UNIT)).unwrap());
            let link = wanted.join("libvirt-kvm-init.service");
            assert_eq!(fs::read_link(link).unwrap(), unit, "{output}");
            assert!(
                output.contains("QEMU as nova (42424:108) can open /dev/kvm"),
                "{output}"
            );
            let (code, output) = play(&[]);
            assert!(code == 0 && output.contains("changed=0 "), "{output}");
            set_owner(device, 0, 5, 0o660);
            let (code, output) = play(&[]);
            assert!(code == 0 && output.contains("changed=1 "), "{output}");
            // A node without KVM fails the play, except with --missing=skip.
            fs::remove_file(device).unwrap();
            let (code, output) = play(&[]);
            assert!(code == 2 && output.contains("absent"), "{output}");
            let (code, output) = play(&["-e", r#"{"libvirt_kvm_init_args": ["--missing=skip"]}"#]);
            assert!(code == 0 && output.contains("changed=0 "), "{output}");
        });
    }
}
