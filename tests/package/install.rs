//! `make install` and `make uninstall`.

use std::fs;

use crate::{files, generated, make, pages, repository};
use support::{ok, program, run};

/// Runs `make WHAT` with DESTDIR.
fn put(what: &str, destination: &std::path::Path, more: &[&str]) {
    ok(make()
        .arg(what)
        .arg(format!("DESTDIR={}", destination.display()))
        .arg(format!("BIN={}", program().display()))
        .arg(format!("GENERATED={}", generated().display()))
        .args(more));
}

fn want(prefix: &str) -> Vec<String> {
    let pages = pages();
    let pages = pages
        .iter()
        .map(|page| format!("0644 {prefix}/share/man/man8/{page}"));
    let rest = [
        "0755 PREFIX/bin/libvirt-kvm-init",
        "0644 PREFIX/lib/systemd/system/libvirt-kvm-init.service",
        "0644 PREFIX/share/bash-completion/completions/libvirt-kvm-init",
        "0644 PREFIX/share/fish/vendor_completions.d/libvirt-kvm-init.fish",
        "0644 PREFIX/share/zsh/site-functions/_libvirt-kvm-init",
    ];
    let rest = rest.map(|line| line.replace("PREFIX", prefix));
    let mut all: Vec<_> = pages.chain(rest).collect();
    all.sort();
    all
}

#[test]
fn make_install_and_uninstall_handle_every_file() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("with a space");
    put("install", &root, &[]);
    assert_eq!(files(&root), want("usr/local"));
    let installed = fs::read(root.join("usr/local/bin/libvirt-kvm-init")).unwrap();
    assert!(installed == fs::read(program()).unwrap());
    // A second install gives the same result.
    put("install", &root, &[]);
    assert_eq!(files(&root), want("usr/local"));
    fs::write(root.join("usr/local/share/man/man8/other.8"), "").unwrap();
    put("uninstall", &root, &[]);
    assert_eq!(files(&root), ["0644 usr/local/share/man/man8/other.8"]);
}

#[test]
fn unit_starts_the_installed_program() {
    let root = tempfile::tempdir().unwrap();
    put("install", root.path(), &["PREFIX=/opt/kvm"]);
    assert_eq!(files(root.path()), want("opt/kvm"));
    let unit = root
        .path()
        .join("opt/kvm/lib/systemd/system/libvirt-kvm-init.service");
    let unit = fs::read_to_string(unit).unwrap();
    let starts: Vec<_> = unit
        .lines()
        .filter(|line| line.starts_with("ExecStart="))
        .collect();
    assert_eq!(
        starts,
        ["ExecStart=/opt/kvm/bin/libvirt-kvm-init apply --settle=30s"]
    );
    assert!(!unit.contains("/usr/local"), "{unit}");
}

#[test]
fn unusable_prefix_is_rejected() {
    let root = tempfile::tempdir().unwrap();
    for prefix in ["usr", "/opt/with a space", "/opt/a&b", "/opt/%i"] {
        let mut make = make();
        make.arg("install")
            .arg(format!("DESTDIR={}/", root.path().display()))
            .arg(format!("BIN={}", program().display()))
            .arg(format!("GENERATED={}", generated().display()));
        let (code, _, err) = run(make.arg(format!("PREFIX={prefix}")));
        assert_eq!(code, 2, "{prefix}: {err}");
        assert!(err.contains("PREFIX and BINDIR"), "{prefix}: {err}");
        assert!(files(root.path()).is_empty(), "{prefix}");
    }
}

#[test]
fn repository_path_may_contain_a_space() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("with a space");
    fs::create_dir(&root).unwrap();
    for name in ["Makefile", "Cargo.toml"] {
        fs::copy(repository().join(name), root.join(name)).unwrap();
    }
    let printed = ok(make().current_dir(&root).args(["-n", "test"]));
    let want = format!("KVM_INIT_TEST_BIN=\"{}/", root.display());
    assert!(printed.contains(&want), "{printed}");
}
