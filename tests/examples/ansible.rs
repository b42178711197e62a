//! The tasks, read and run by Ansible. The machine is not changed: the tasks have a mount namespace with
//! its own /usr/local/bin and /dev, and trees for node and pod.

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{
    Tree, bind, copy, fresh_dev, in_namespace, mknod_kvm, mount_tmpfs, program, project,
    require_kvm, run, scratch, set_owner,
};

/// A playbook beside a copy of the examples, as a role would have it.
fn playbook(folder: &Path, vars: &serde_json::Value) -> Command {
    copy(&project("examples"), &folder.join("examples"));
    let book = serde_json::json!([{
        "hosts": "localhost", "connection": "local", "gather_facts": false, "vars": vars,
        // Static, so that it is read with the playbook.
        "tasks": [{ "ansible.builtin.import_tasks": "examples/ansible/bootstrap.yml" }],
    }]);
    fs::write(folder.join("playbook.yml"), book.to_string()).unwrap();
    let mut command = Command::new("ansible-playbook");
    command.args(["-i", "localhost,", "playbook.yml"]);
    command.current_dir(folder).env("HOME", folder);
    command
        .env("ANSIBLE_NOCOLOR", "1")
        .env("ANSIBLE_LOCALHOST_WARNING", "0");
    fs::write(folder.join("ansible.cfg"), "").unwrap();
    command
        .env("ANSIBLE_CONFIG", folder.join("ansible.cfg"))
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

/// What needs root and KVM.
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
                // systemctl makes the links, and asks no systemd.
                command.env("SYSTEMD_OFFLINE", "1");
                let (code, out, err) = run(&mut command);
                (code, format!("{out}{err}"))
            };
            let (code, said) = play(&["--check", "-e", "libvirt_kvm_init_unit=false"]);
            assert!(
                code == 0 && !Path::new("/usr/local/bin/libvirt-kvm-init").exists(),
                "{said}"
            );
            let (code, said) = play(&[]);
            assert!(code == 0 && said.contains("changed=4 "), "{said}");
            assert_eq!(fs::read(unit).unwrap(), fs::read(project(UNIT)).unwrap());
            let link = wanted.join("libvirt-kvm-init.service");
            assert_eq!(fs::read_link(link).unwrap(), unit, "{said}");
            assert!(
                said.contains("QEMU as nova (42424:108) can open /dev/kvm"),
                "{said}"
            );
            let (code, said) = play(&[]);
            assert!(code == 0 && said.contains("changed=0 "), "{said}");
            set_owner(device, 0, 5, 0o660);
            let (code, said) = play(&[]);
            assert!(code == 0 && said.contains("changed=1 "), "{said}");
            // A node without KVM fails the play, unless that is meant.
            fs::remove_file(device).unwrap();
            let (code, said) = play(&[]);
            assert!(code == 2 && said.contains("absent"), "{said}");
            let (code, said) = play(&["-e", r#"{"libvirt_kvm_init_args": ["--missing=skip"]}"#]);
            assert!(code == 0 && said.contains("changed=0 "), "{said}");
        });
    }
}
