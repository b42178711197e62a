//! Malicious trees, volumes and devices: a run needs little time and memory, neither reads nor writes files outside of
//! the trees, and names the file that it refuses.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use support::peak::{Measured, bounded, measured, ordinary};
use support::{
    ALIGNED, KVM, Scene, bounded_cpu, bounded_memory, command, go, in_namespace, mknod_char,
    mknod_kvm, owner, program, require_commands, scratch, set_owner, state,
};

/// More than any file that is read completely, and far less than the size that the malicious files show.
const MEMORY: u64 = 64 << 20;

/// Runs a command under strace with bounded memory. Returns the paths that it opened without `O_PATH`.
fn opened(of: &Command) -> (Measured, Vec<String>) {
    let measured = measured(of, "open,openat,openat2,", |cmd| {
        bounded_memory(cmd, MEMORY);
    });
    let read = measured.trace.lines();
    let read = read.filter(|line| !line.contains("O_PATH"));
    // The path of the new descriptor comes last: = 5</etc/group>
    let paths = read.filter_map(|line| line.rsplit_once("= ")?.1.split_once('<'));
    let paths = paths.map(|(_, path)| path.trim_end_matches('>').to_owned());
    let paths = paths.collect();
    (measured, paths)
}

/// Whether the dynamic loader opens this path before a dynamically linked program, such as cargo's build, starts.
fn is_loaders(path: &str) -> bool {
    let library = path.starts_with("/usr/lib/") || path.starts_with("/lib/");
    path == "/etc/ld.so.cache" || library && path.contains(".so.")
}

/// Files of ordinary size, as on most nodes.
#[test]
fn apply_with_ordinary_files_needs_at_most_3_mib() {
    require_commands(&["strace"]);
    in_namespace(|| {
        let scene = Scene::new();
        ordinary(&scene);
        bounded_run("apply", &mut scene.apply());
        bounded_run("apply with nothing to do", &mut scene.apply());
        set_owner(Path::new(KVM), 0, 424, 0o600);
        bounded_run("apply --persist", scene.apply().arg("--persist"));
    });
}

fn bounded_run(what: &str, cmd: &mut Command) {
    let of = measured(cmd, "", |_| {});
    bounded(what, of.peak);
    of.run.code(0);
}

#[test]
fn hostile_trees_cause_no_outside_access_wait_or_memory_growth() {
    require_commands(&["strace"]);
    in_namespace(|| {
        let scene = Scene::new();
        let outside = scratch().join("outside");
        fs::create_dir(&outside).unwrap();
        let canary = outside.join("canary");
        fs::write(
            &canary,
            // No PID is as large as this ID, so strace cannot print it by chance.
            "kvm:x:2000000666:\nnova:x:2000000666:2000000666::/:/\nKERNEL==\"kvm\", GROUP=\"2000000666\"\n",
        )
        .unwrap();
        let up = format!("{}{}", "../".repeat(40), canary.display());
        let magic = format!("/proc/self/root{}", canary.display());
        type Make<'a> = (&'a str, &'a dyn Fn(&Path));
        let shapes: [Make<'_>; 13] = [
            ("absolute link", &|at| symlink(&canary, at).unwrap()),
            ("relative link", &|at| symlink(&up, at).unwrap()),
            ("looping link", &|at| {
                symlink(at.file_name().unwrap(), at).unwrap()
            }),
            ("magic link", &|at| symlink(&magic, at).unwrap()),
            ("link to a descriptor", &|at| {
                symlink("/proc/self/fd/1", at).unwrap()
            }),
            ("link to the directory outside", &|at| {
                symlink(&outside, at).unwrap()
            }),
            ("fifo", &|at| mkfifo(at, Mode::S_IRWXU).unwrap()),
            ("/dev/zero", &|at| mknod_char(at, (1, 5), 0, 0, 0o666)),
            ("/dev/kmsg", &|at| mknod_char(at, (1, 11), 0, 0, 0o666)),
            ("socket", &|at| drop(UnixListener::bind(at).unwrap())),
            ("100 GiB", &|at| {
                fs::File::create(at).unwrap().set_len(100 << 30).unwrap();
            }),
            ("directory", &|at| fs::create_dir(at).unwrap()),
            ("noise", &|at| {
                let noise: Vec<u8> = (0..300_000_u32)
                    .map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()[3])
                    .collect();
                fs::write(at, noise).unwrap();
            }),
        ];
        let places = [
            (true, "etc/group"),
            (true, "etc/passwd"),
            (true, "etc/login.defs"),
            (true, "etc/userdb"),
            (true, "etc/udev/rules.d"),
            (true, "etc/udev/rules.d/50-own.rules"),
            (true, "usr/lib/group"),
            (true, "usr/lib/udev"),
            (true, "usr/lib/systemd"),
            (true, "lib"),
            (false, "etc/group"),
            (false, "etc/passwd"),
            (false, "etc/libvirt/qemu.conf"),
            (false, "etc/os-release"),
            (false, "run"),
        ];
        let before = state(&[&outside]);
        let mut codes = [0_u32; 7];
        let mut largest = (0, String::new());
        for (on_host, name) in places {
            let tree = if on_host { &scene.host } else { &scene.pod };
            let (at, kept) = (tree.at(name), tree.at("kept"));
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            for (what, make) in shapes {
                let had = fs::rename(&at, &kept).is_ok();
                make(&at);
                let (Measured { run, peak, .. }, paths) = opened(&scene.apply());
                largest = largest.max((peak, format!("{what} at {name}")));
                codes[usize::try_from(run.code).unwrap()] += 1;
                let shown = format!("{what} at {name}: {run}");
                assert!(
                    !format!("{}{}", run.out, run.err).contains("2000000666"),
                    "{shown}"
                );
                assert!(state(&[&outside]) == before, "{shown}");
                assert!(
                    !run.err.contains("waiting up to") && !run.err.contains("within 5 s"),
                    "{shown}"
                );
                let inside = |path: &String| {
                    let below = |directory: &Path| Path::new(path).starts_with(directory);
                    below(scene.host.path())
                        || below(scene.pod.path())
                        || below("/proc".as_ref())
                        || path == KVM
                        || is_loaders(path)
                };
                let out: Vec<_> = paths.iter().filter(|path| !inside(path)).collect();
                assert!(out.is_empty(), "{out:?} was opened: {shown}");
                if run.code == 0 {
                    assert_eq!(owner(Path::new(KVM)).2, 0o660, "{shown}");
                } else {
                    assert!([2, 3, 4, 5].contains(&run.code), "{shown}");
                }
                if at.is_dir() && !at.is_symlink() {
                    fs::remove_dir_all(&at).unwrap();
                } else {
                    fs::remove_file(&at).unwrap();
                }
                if had {
                    fs::rename(&kept, &at).unwrap();
                }
            }
        }
        let runs: u32 = codes.iter().sum();
        println!(
            "{runs} hostile trees, {} MiB of address space each: largest peak \
             {} KiB (VmHWM), {}; exit codes 0 to 6: {codes:?}",
            MEMORY >> 20,
            largest.0,
            largest.1
        );
    });
}

#[test]
fn file_names_with_any_byte_are_handled() {
    in_namespace(|| {
        let scene = Scene::new();
        let directories =
            ["etc/udev/rules.d", "etc/userdb"].map(|name| scene.host.dir(name).at(name));
        for byte in (1..=255_u8).filter(|byte| *byte != b'/') {
            for (directory, end) in directories.iter().zip([".rules", ".group"]) {
                let name = [&[b'x', byte][..], end.as_bytes()].concat();
                let text = [&b"KERNEL==\"kvm\", GROUP=\""[..], &[byte], b"\"\n"].concat();
                fs::write(directory.join(OsString::from_vec(name)), text).unwrap();
            }
        }
        let run = go(&mut scene.apply());
        let has_control = |text: &str| text.chars().any(|c| c.is_control() && c != '\n');
        assert!(!has_control(&run.out) && !has_control(&run.err), "{run}");
        println!("508 files, two for each byte: exit code {}", run.code);
    });
}

/// An image with very many lines of one kind: the report names some of them, and the time is linear.
#[test]
fn report_of_very_many_similar_lines_is_short() {
    const MANY: u32 = 200_000;
    in_namespace(|| {
        let scene = Scene::new();
        let each = |line: &dyn Fn(u32) -> String| (0..MANY).map(line).collect::<String>();
        let text = scene.pod.read("etc/passwd");
        let users = each(&|n| format!("u{n}:x:{}:424::/:\n", 1_000_000 + n));
        scene.pod.file("etc/passwd", &format!("{text}{users}"));
        let text = scene.pod.read("etc/group");
        let groups = each(&|n| format!("g{n}:x:{}:nova\n", 1_000_000 + n));
        let again = each(&|_| "kvm:x:424:\n".to_owned());
        scene
            .pod
            .file("etc/group", &format!("{text}{groups}{again}"));
        // More groups than the kernel accepts.
        let run = go(bounded_cpu(&mut scene.apply())).code(5);
        let length = run.out.len() + run.err.len();
        assert!(run.out.contains("more"), "{run}");
        assert!(length < 8192, "{length} bytes");
        println!("{MANY} lines of three kinds: {length} bytes");
    });
}

/// Rules that cause many warnings or long jumps: the cost is linear, not quadratic.
#[test]
fn cost_of_very_many_unusual_rules_is_linear() {
    in_namespace(|| {
        let scene = Scene::new();
        let kinds = [
            ("broken", "kvm\n"),
            ("unknown", "KERNEL==\"kvm\", GROUP=\"nosuch\"\n"),
            ("doubtful", "TEST==\"/x\", KERNEL==\"kvm\", GROUP=\"5\"\n"),
            ("running", "KERNEL==\"kvm\", RUN+=\"x\"\n"),
            ("jumping", "TEST==\"/x\", KERNEL==\"kvm\", GOTO=\"end\"\n"),
            ("jumping nowhere", "KERNEL==\"kvm\", GOTO=\"nowhere\"\n"),
            ("growing", "KERNEL==\"kvm\", ENV{A}+=\"longer\"\n"),
            ("tagging", "KERNEL==\"kvm\", TAG+=\"t%\"\n"),
        ];
        for (what, line) in kinds {
            let rules = (0..100_000).map(|n| line.replace('%', &n.to_string()));
            let rules = format!("{}LABEL=\"end\"\n", rules.collect::<String>());
            scene.host.file("etc/udev/rules.d/50-many.rules", &rules);
            let run = go(bounded_cpu(&mut scene.apply())).code(0);
            let length = run.out.len() + run.err.len();
            println!("100000 {what} rules: {length} bytes");
            assert!(length < 64 << 10, "{what}: {length} bytes");
        }
    });
}

#[test]
fn files_changed_while_they_are_read_cause_no_crash() {
    in_namespace(|| {
        let scene = Scene::new();
        let stop = AtomicBool::new(false);
        let files = [
            scene.host.at("etc/group"),
            scene.pod.at("etc/passwd"),
            scene.pod.at("etc/libvirt/qemu.conf"),
        ];
        let whole = files.clone().map(|file| fs::read(file).unwrap());
        let mut codes = [0_u32; 7];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n = 0_usize;
                while !stop.load(Ordering::Relaxed) {
                    for (file, text) in files.iter().zip(&whole) {
                        // Truncated at any byte, longer, and complete again.
                        fs::write(file, &text[..n % text.len()]).unwrap();
                        fs::write(file, [&text[..], &b"#".repeat(n % 9000)].concat()).unwrap();
                        fs::write(file, text).unwrap();
                    }
                    n += 7;
                }
            });
            for _ in 0..200 {
                let run = go(&mut scene.apply());
                codes[usize::try_from(run.code).unwrap()] += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("200 runs while the files change: exit codes 0 to 6: {codes:?}");
        go(&mut scene.apply()).code(0);
        assert_eq!(owner(Path::new(KVM)), (0, 108, 0o660));
    });
}

/// A valid group file, because any other file at the output's path would be refused.
const VICTIM: &str = "untouched:x:9:\n";

/// Puts an obstacle where a file is to be written.
fn plant(kind: usize, at: &Path, victim: &Path) {
    match kind {
        0 => symlink(victim, at).unwrap(),
        1 => fs::hard_link(victim, at).unwrap(),
        2 => mkfifo(at, Mode::all()).unwrap(),
        3 => mknod_char(at, (1, 1), 0, 0, 0o600),
        _ => symlink("/nowhere/at/all", at).unwrap(),
    }
}

#[test]
fn files_planted_in_a_shared_volume_are_replaced_never_written_through() {
    in_namespace(|| {
        let scene = Scene::settled();
        let volume = scene.pod.dir("volume").at("volume");
        let victim = volume.join("victim");
        let out = volume.join("group");
        let apply = || {
            let mut cmd = scene.apply();
            cmd.arg("--group-file-out").arg(&out);
            cmd
        };
        let install = || {
            let mut cmd = command(&program(), &["install", "--format=json"]);
            cmd.arg(&volume);
            cmd
        };
        let lock = ".libvirt-kvm-init.lock";
        let names = ["group", lock, "libvirt-kvm-init", lock];
        let facts = || {
            let meta = fs::metadata(&victim).unwrap();
            (
                meta.uid(),
                meta.gid(),
                meta.mode(),
                fs::read(&victim).unwrap(),
            )
        };
        for (n, name) in names.iter().enumerate() {
            for kind in 0..5 {
                let _ = fs::remove_file(&victim);
                fs::write(&victim, VICTIM).unwrap();
                set_owner(&victim, 42424, 42424, 0o600);
                let before = facts();
                let at = volume.join(name);
                let _ = fs::remove_file(&at);
                // Removed, so that there is something to write.
                let _ = fs::remove_file(&out);
                let _ = fs::remove_file(volume.join("libvirt-kvm-init"));
                plant(kind, &at, &victim);
                let run = go(&mut if n < 2 { apply() } else { install() });
                assert_eq!(facts(), before, "{name}, {kind}: {run}");
                // A device at the output's path is a usage error, because the path was probably a mistake.
                if (n, kind) == (0, 3) {
                    run.code(2).last_line_has(&["is a device; use a file"]);
                    continue;
                }
                let run = run.code(0);
                let made = volume.join(names[n / 2 * 2]);
                assert!(fs::symlink_metadata(&made).unwrap().is_file(), "{run}");
                assert!(!volume.join(names[n / 2 * 2 + 1]).exists(), "{run}");
            }
            // A directory cannot be replaced, and the error names it.
            let at = volume.join(name);
            let _ = fs::remove_file(&at);
            let _ = fs::remove_file(&out);
            let _ = fs::remove_file(volume.join("libvirt-kvm-init"));
            fs::create_dir(&at).unwrap();
            go(&mut if n < 2 { apply() } else { install() })
                .code(4)
                .last_line_has(&[name]);
            fs::remove_dir(&at).unwrap();
        }
        println!(
            "20 planted files: none written through, 19 replaced, a device refused; 4 directories refused"
        );
        // Repeatedly, while the output is written.
        fs::write(&victim, VICTIM).unwrap();
        let before = facts();
        let stop = AtomicBool::new(false);
        let mut codes = [0_u32; 7];
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut kind = 0;
                while !stop.load(Ordering::Relaxed) {
                    let made = volume.join("planted");
                    // No hard link: the output would be the victim itself under another name.
                    plant([0, 2, 4][kind % 3], &made, &victim);
                    let at = if kind % 2 == 0 { names[1] } else { names[0] };
                    let _ = fs::rename(&made, volume.join(at));
                    let _ = fs::remove_file(&made);
                    kind += 1;
                }
            });
            for _ in 0..200 {
                let run = go(&mut apply());
                codes[usize::try_from(run.code).unwrap()] += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
        println!("200 runs while files are planted: exit codes 0 to 6: {codes:?}");
        assert_eq!(facts(), before);
        go(&mut apply()).code(0);
        assert_eq!(fs::read_to_string(&out).unwrap(), ALIGNED);
    });
}

#[test]
fn swapping_the_device_during_runs_changes_no_other_file() {
    in_namespace(|| {
        let scene = Scene::settled();
        let dev = Path::new("/dev");
        let decoy = (7, 7, 0o604);
        mknod_kvm(&dev.join("good"), 0, 424, 0o600);
        mknod_char(&dev.join("null-node"), (1, 3), decoy.0, decoy.1, decoy.2);
        mknod_char(&dev.join("mem"), (1, 1), decoy.0, decoy.1, decoy.2);
        fs::write(dev.join("file"), "untouched").unwrap();
        set_owner(&dev.join("file"), decoy.0, decoy.1, decoy.2);
        symlink("/dev/mem", dev.join("link")).unwrap();
        let stop = AtomicBool::new(false);
        let mut codes = [0_u32; 7];
        let mut swaps = 0_u64;
        std::thread::scope(|scope| {
            let swapper = scope.spawn(|| {
                let (kvm, next) = (Path::new(KVM), dev.join("next"));
                let mut swaps = 0_u64;
                while !stop.load(Ordering::Relaxed) {
                    for name in [
                        "good",
                        "null-node",
                        "good",
                        "mem",
                        "good",
                        "file",
                        "good",
                        "link",
                    ] {
                        let from = dev.join(name);
                        if name == "link" {
                            symlink("/dev/mem", &next).unwrap();
                        } else {
                            fs::hard_link(&from, &next).unwrap();
                        }
                        fs::rename(&next, kvm).unwrap();
                        // rename(2) does nothing if both names refer to one file.
                        let _ = fs::remove_file(&next);
                        swaps += 1;
                        if name == "good" {
                            let _ = nix::unistd::chown(
                                &from,
                                None,
                                Some(nix::unistd::Gid::from_raw(424)),
                            );
                        }
                    }
                }
                swaps
            });
            for _ in 0..300 {
                let run = go(&mut scene.apply());
                codes[usize::try_from(run.code).unwrap()] += 1;
            }
            stop.store(true, Ordering::Relaxed);
            swaps = swapper.join().unwrap();
        });
        println!("300 runs, {swaps} swaps: exit codes 0 to 6: {codes:?}");
        for name in ["null-node", "mem", "file"] {
            assert_eq!(owner(&dev.join(name)), decoy, "{name}");
        }
        assert_eq!(fs::read_to_string(dev.join("file")).unwrap(), "untouched");
    });
}
