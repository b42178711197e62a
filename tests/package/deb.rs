//! Builds and inspects the Debian package, and installs, uses, removes and purges it in a separate root. That root is an
//! overlay of this machine's with its own package database: all writes go to one directory, and none to the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use crate::{files, generated, make, pages, repository};
use support::{
    Tree, bind, fresh_dev, in_namespace, mknod_kvm, mount_tmpfs, ok, require_commands, run, scratch,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
const UNIT: &str = "usr/lib/systemd/system/libvirt-kvm-init.service";
const WANTED: &str = "etc/systemd/system/multi-user.target.wants/libvirt-kvm-init.service";

/// Packages the static binary of this machine's architecture and returns the bytes of the package. The lock is needed
/// since all builds use the same directory.
fn build() -> Vec<u8> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    require_commands(&["cargo-deb", "dpkg-deb"]);
    let arch = std::env::consts::ARCH;
    let binary = format!("target/{arch}-unknown-linux-musl/release/libvirt-kvm-init");
    assert!(
        repository().join(binary).is_file(),
        "this tier needs the static binary: `make build`"
    );
    // Cargo.toml expects the generated files in this directory.
    let directory = repository().join("target/packaging/generated");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(directory.parent().unwrap()).unwrap();
    ok(Command::new("cp")
        .arg("-r")
        .arg(generated())
        .arg(&directory));
    ok(make().arg("deb-list").arg(format!("ARCHES={arch}")));
    let name = if arch == "aarch64" { "arm64" } else { "amd64" };
    let package = format!("target/debian/libvirt-kvm-init_{VERSION}-1_{name}.deb");
    fs::read(repository().join(package)).unwrap()
}

/// The expected files of the package, as `mode path`.
fn want() -> Vec<String> {
    let pages = pages();
    let pages = pages
        .iter()
        .map(|page| format!("0644 usr/share/man/man8/{page}.gz"));
    let rest = [
        "0755 usr/bin/libvirt-kvm-init",
        "0644 usr/lib/systemd/system/libvirt-kvm-init.service",
        "0644 usr/share/bash-completion/completions/libvirt-kvm-init",
        "0644 usr/share/doc/libvirt-kvm-init/changelog.Debian.gz",
        "0644 usr/share/doc/libvirt-kvm-init/changelog.gz",
        "0644 usr/share/doc/libvirt-kvm-init/copyright",
        "0644 usr/share/fish/vendor_completions.d/libvirt-kvm-init.fish",
        "0644 usr/share/lintian/overrides/libvirt-kvm-init",
        "0644 usr/share/zsh/vendor-completions/_libvirt-kvm-init",
    ];
    let mut all: Vec<_> = pages.chain(rest.map(str::to_owned)).collect();
    all.sort();
    all
}

/// A root in which packages can be installed: the directory with the written files, and the path of the root.
struct Root {
    written: PathBuf,
    path: PathBuf,
}

impl Root {
    fn new() -> Self {
        let at = |name: &str| {
            let path = scratch().join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (written, work, path) = (at("written"), at("work"), at("root"));
        let options = format!(
            "lowerdir=/,upperdir={},workdir={}",
            written.display(),
            work.display()
        );
        let flags = MsFlags::empty();
        mount(
            Some("overlay"),
            &path,
            Some("overlay"),
            flags,
            Some(options.as_str()),
        )
        .unwrap();
        // A package database with one package that every Debian system has.
        let base = "Package: init-system-helpers\nStatus: install ok installed\nVersion: 1.65\n\
                    Architecture: all\nMaintainer: nobody <nobody@localhost>\nDescription: stands for it\n";
        let database = path.join("var/lib/dpkg");
        mount_tmpfs(&database, "mode=755");
        for directory in ["info", "updates", "triggers"] {
            fs::create_dir(database.join(directory)).unwrap();
        }
        fs::write(database.join("status"), base).unwrap();
        // Hide the directories of the machine to which dpkg and its helpers write state and logs.
        for directory in [
            "var/log",
            "var/lib/systemd",
            "tmp",
            "run",
            "dev",
            "etc/systemd/system",
        ] {
            fs::create_dir_all(path.join(directory)).unwrap();
            mount_tmpfs(&path.join(directory), "mode=755");
        }
        // Some Debian images configure dpkg to skip man pages.
        let settings = path.join("etc/dpkg/dpkg.cfg.d");
        fs::create_dir_all(&settings).unwrap();
        mount_tmpfs(&settings, "mode=755");
        fs::write(path.join("dev/null"), "").unwrap();
        bind(Path::new("/dev/null"), &path.join("dev/null"));
        bind(Path::new("/proc"), &path.join("proc"));
        Self { written, path }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn command(&self, program: &str) -> Command {
        let mut chroot = Command::new("chroot");
        chroot.arg(&self.path).arg(program).env_clear();
        chroot.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        chroot
    }

    fn dpkg(&self, what: &str, package: &str) {
        let mut dpkg = self.command("dpkg");
        ok(dpkg.args(["--no-triggers", "--force-confnew", what, package]));
    }

    /// The status of the package in dpkg's database.
    fn status(&self) -> String {
        let mut query = self.command("dpkg-query");
        let format = "-f${db:Status-Abbrev}";
        run(query.args(["-W", format, "libvirt-kvm-init"])).1
    }

    /// All files in the overlay and in the hidden directories, except the package database.
    fn traces(&self) -> Vec<String> {
        // dpkg removes a directory that is empty and that no package in this database owns; the overlay records
        // that as a device with mode 0000.
        let gone = |file: &String| file.starts_with("0000 ");
        let mut all = files(&self.written);
        all.retain(|file| !gone(file));
        for directory in ["etc/systemd/system", "var/lib/systemd"] {
            let below = files(&self.at(directory)).into_iter();
            all.extend(below.map(|file| file.replacen(' ', &format!(" {directory}/"), 1)));
        }
        all
    }
}

#[test]
fn package_has_the_expected_files_and_passes_lintian() {
    require_commands(&["lintian", "dpkg-deb"]);
    in_namespace(|| {
        let package = scratch().join("package.deb");
        fs::write(&package, build()).unwrap();
        let field = |name: &str| {
            let mut field = Command::new("dpkg-deb");
            ok(field.arg("-f").arg(&package).arg(name))
        };
        assert_eq!(field("Package"), "libvirt-kvm-init\n");
        assert_eq!(field("Version"), format!("{VERSION}-1\n"));
        assert_eq!(field("Depends"), "init-system-helpers (>= 1.54~)\n");
        let directory = scratch().join("unpacked");
        ok(Command::new("dpkg-deb")
            .arg("-x")
            .arg(&package)
            .arg(&directory));
        assert_eq!(files(&directory), want());
        let list = ok(Command::new("dpkg-deb").arg("-c").arg(&package));
        for line in list.lines() {
            assert!(
                line.contains(" 0/0 ") || line.contains(" root/root "),
                "{line}"
            );
        }
        let unit = fs::read_to_string(directory.join(UNIT)).unwrap();
        assert!(
            unit.contains("\nExecStart=/usr/bin/libvirt-kvm-init apply "),
            "{unit}"
        );
        assert!(!unit.contains("/usr/local"), "{unit}");

        let mut lintian = Command::new("lintian");
        lintian.args(["--allow-root", "--fail-on", "error,warning"]);
        let (code, out, err) = run(lintian.arg(&package));
        assert_eq!((code, out.as_str()), (0, ""), "{err}");
    });
}

#[test]
fn package_build_is_reproducible() {
    in_namespace(|| {
        assert!(build() == build());
    });
}

#[test]
fn package_installs_runs_and_purges_without_residue() {
    require_commands(&["dpkg", "chroot", "systemctl"]);
    in_namespace(|| {
        let root = Root::new();
        fs::write(root.at("tmp/package.deb"), build()).unwrap();
        root.dpkg("--install", "/tmp/package.deb");
        assert_eq!(root.status(), "ii ");
        for line in want() {
            let path = line.split_once(' ').unwrap().1;
            assert!(root.at(path).is_file(), "{path}");
        }
        assert!(root.traces().len() >= want().len());
        // The unit is neither enabled nor started.
        assert!(!root.at(WANTED).is_symlink());

        let version = ok(root.command("libvirt-kvm-init").arg("--version"));
        assert_eq!(version, format!("libvirt-kvm-init {VERSION}\n"));
        run_installed(&root);

        // Removing the package also removes the link of an enabled unit.
        ok(root
            .command("systemctl")
            .args(["enable", "libvirt-kvm-init"]));
        assert!(root.at(WANTED).is_symlink());
        root.dpkg("--remove", "libvirt-kvm-init");
        root.dpkg("--purge", "libvirt-kvm-init");
        assert_eq!(root.status(), "");
        assert_eq!(root.traces(), Vec::<String>::new());
        assert_eq!(files(&root.at("var/lib/dpkg/info")), ["0644 format"]);
    });
}

/// Runs `check` of the installed program for a node and a pod of the test.
fn run_installed(root: &Root) {
    fresh_dev();
    mknod_kvm(Path::new("/dev/kvm"), 0, 108, 0o660);
    let (pod, node) = (Tree::pod(424), Tree::host(108));
    bind(Path::new("/dev"), &node.at("dev"));
    let mut check = Command::new(root.at("usr/bin/libvirt-kvm-init"));
    check
        .args(["check", "--format=json", "--root"])
        .arg(pod.path());
    check.arg("--host-root").arg(node.path()).env_clear();
    let (code, out, err) = run(&mut check);
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["target"]["gid"], 108, "{out}");
    assert_eq!(report["pod"]["kvm_gid"], 424, "{out}");
    assert_eq!(report["device"]["gid"], 108, "{out}");
    // The verdict is drift with KVM and absent without it.
    assert!([1, 6].contains(&code), "{code}: {out}{err}");
}
