//! Files that are as large as may be, and larger, where memory is bounded.

use std::fs::{self, File};
use std::path::Path;

use support::watch::{PATIENCE, Watch, healed, until, watch};
use support::{KVM, Scene, bounded_memory, in_namespace, set_owner};

/// What a container may have: all that a run maps, its program included.
const MEMORY: u64 = 64 << 20;
/// What one file may have.
const LIMIT: usize = 8 << 20;

#[test]
fn files_of_any_size_end_no_watch() {
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
                let said = || running.log().contains(&format!("{}): EFBIG", at.display()));
                assert!(until(PATIENCE, said), "{name}: {}", running.log());
            }
            // As large as may be: comments, and what was there.
            let line = format!("#{}\n", "x".repeat(98));
            let filled = line.repeat((LIMIT - text.len()) / line.len());
            fs::write(&new, [filled.as_bytes(), &text].concat()).unwrap();
            fs::rename(&new, &at).unwrap();
            running.is_idle();
            for _ in 0..3 {
                set_owner(Path::new(KVM), 0, 424, 0o600);
                healed((0, 108, 0o660));
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
