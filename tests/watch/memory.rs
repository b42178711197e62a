//! Input files at and above the size limit, with bounded memory.

use std::fs::{self, File};
use std::path::Path;

use support::watch::{PATIENCE, Watch, until, wait_for_repair, watch};
use support::{KVM, Scene, bounded_memory, in_namespace, set_owner};

/// Limit of the address space, including the program.
const MEMORY: u64 = 64 << 20;
/// Size limit of an input file.
const LIMIT: usize = 8 << 20;

#[test]
fn large_input_files_do_not_end_watch() {
    in_namespace(|| {
        let scene = Scene::settled();
        let mut cmd = watch(&scene);
        let mut running = Watch::start(bounded_memory(&mut cmd, MEMORY));
        let files = [
            (&scene.pod, "etc/group"),
            (&scene.pod, "etc/passwd"),
            (&scene.pod, "etc/libvirt/qemu.conf"),
            (&scene.host, "etc/group"),
            (&scene.host, "etc/udev/rules.d/50-own.rules"),
        ];
        for (tree, name) in files {
            let (at, new) = (tree.at(name), tree.at("new"));
            let text = fs::read(&at).unwrap_or_default();
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            for size in [60 << 20, 500 << 20] {
                File::create(&new).unwrap().set_len(size).unwrap();
                fs::rename(&new, &at).unwrap();
                let is_logged = || running.log().contains(&format!("{}): EFBIG", at.display()));
                assert!(until(PATIENCE, is_logged), "{name}: {}", running.log());
            }
            // The largest allowed size: comments, followed by the old content.
            let line = format!("#{}\n", "x".repeat(98));
            let filled = line.repeat((LIMIT - text.len()) / line.len());
            fs::write(&new, [filled.as_bytes(), &text].concat()).unwrap();
            fs::rename(&new, &at).unwrap();
            running.is_idle();
            for _ in 0..3 {
                set_owner(Path::new(KVM), 0, 424, 0o600);
                wait_for_repair((0, 108, 0o660));
                running.is_idle();
            }
            assert!(running.runs(), "{name}: {}", running.log());
            println!(
                "8 MiB of {name}: peak {} KiB (VmHWM)",
                running.status("VmHWM")
            );
        }
    });
}
