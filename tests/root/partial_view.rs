//! A host root with only those directories of the node that the manifests mount: a missing directory can make a
//! prediction unclear, but never wrong.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use serde_json::Value;

use support::{Scene, Tree, bind, go, in_namespace, report, warnings};

/// The directories of a node that helm-patch/exec, helm-patch/values/hooks.yaml and the examples mount.
const PARTS: [&str; 4] = ["etc", "usr/lib", "run/udev", "run/tmpfiles.d"];
const STOCK: &str = "usr/lib/udev/rules.d/50-udev-default.rules";
const STOCK_TEXT: &str = "ACTION!=\"add\", GOTO=\"default_end\"\n\
    KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n\
    LABEL=\"default_end\"\n";

/// A node with systemd 252 and its rules; lib is a link to usr/lib, as on all current distributions.
fn node() -> Scene {
    let scene = Scene::new();
    let host = &scene.host;
    host.file("usr/lib/systemd/libsystemd-shared-252.so", "");
    host.file(STOCK, STOCK_TEXT);
    for name in [
        "etc/udev/rules.d",
        "run/udev",
        "run/tmpfiles.d",
        "opt/vendor",
    ] {
        host.dir(name);
    }
    symlink("usr/lib", host.at("lib")).unwrap();
    scene
}

fn rule(group: &str) -> String {
    format!("KERNEL==\"kvm\", GROUP=\"{group}\", MODE=\"0660\"\n")
}

/// A host root with these directories of the node, mounted read-only as in a container.
fn view(scene: &Scene, parts: &[&str]) -> Tree {
    let view = Tree::new();
    for part in parts {
        let at = view.dir(part).at(part);
        bind(&scene.host.at(part), &at);
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        mount(None::<&str>, &at, None::<&str>, flags, None::<&str>).unwrap();
    }
    view
}

fn run(scene: &Scene, command: &str, host_root: &Path) -> Command {
    support::program_command(command, scene.pod.path(), host_root)
}

fn check(scene: &Scene, host_root: &Path) -> Value {
    report(&mut run(scene, "check", host_root)).1
}

/// The GIDs that udev sets at its start, on an add and on a change event; the target GID and its source.
fn predicted(report: &Value) -> (Vec<Option<u64>>, Option<u64>, String) {
    let udev = &report["host"]["udev"];
    let events = ["start", "add", "change"];
    (
        events.map(|event| udev[event]["gid"].as_u64()).to_vec(),
        report["target"]["gid"].as_u64(),
        report["target"]["source"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    )
}

fn unclear(report: &Value) -> Vec<String> {
    let all = report["warnings"].as_array().unwrap().iter();
    all.filter(|warning| warning["code"] == "udev-unclear")
        .map(|warning| warning["text"].as_str().unwrap().to_owned())
        .collect()
}

/// Asserts that no event has a prediction and that a warning names the file.
fn assert_unclear(what: &str, report: &Value, file: &str) {
    let (events, ..) = predicted(report);
    assert_eq!(events, [None, None, None], "{what}: {report:#}");
    let named = unclear(report);
    assert!(
        named.iter().any(|text| text.contains(file)),
        "{what}: {file} is not named: {named:#?}"
    );
    let ignored = warnings(report);
    assert!(
        !ignored.contains(&"udev-ignored".to_owned()),
        "{what}: unexpected warning udev-ignored: {report:#}"
    );
}

/// On an ordinary node both views give the same target, events, memberships and changes.
#[test]
fn partial_view_of_an_ordinary_node_gives_the_same_result() {
    in_namespace(|| {
        for pinned in [None, Some("929292")] {
            let scene = node();
            let host = &scene.host;
            // As on Debian: rules files masked by a link to /dev/null, absolute and relative.
            for (name, to) in [
                ("80-net-setup-link.rules", "/dev/null"),
                ("60-vendor.rules", "../../../dev/null"),
            ] {
                host.file(&format!("usr/lib/udev/rules.d/{name}"), &rule("5"));
                symlink(to, host.at("etc/udev/rules.d").join(name)).unwrap();
            }
            // This link dangles on the node as well.
            symlink("/usr/lib/gone", host.at("etc/udev/rules.d/70-gone.rules")).unwrap();
            host.file("usr/lib/local.rules", &rule("kvm"));
            symlink(
                "/usr/lib/local.rules",
                host.at("etc/udev/rules.d/75-a.rules"),
            )
            .unwrap();
            if let Some(gid) = pinned {
                host.file("etc/udev/rules.d/99-genestack-kvm.rules", &rule(gid));
            }
            let parts = view(&scene, &PARTS);
            let whole = check(&scene, host.path());
            let partial = check(&scene, parts.path());
            for key in [
                "target",
                "candidates",
                "changes",
                "verdict",
                "proof",
                "pod",
                "qemu",
            ] {
                assert_eq!(partial[key], whole[key], "{key}");
            }
            assert_eq!(partial["host"]["udev"], whole["host"]["udev"]);
            let gid = if pinned.is_some() { 929_292 } else { 108 };
            assert_eq!(partial["target"]["gid"], gid);
            if pinned.is_some() {
                assert!(
                    partial["changes"].to_string().contains("add-group"),
                    "{partial:#}"
                );
            }
            // The only difference is a warning of `check` about directories that hardly any node has.
            assert_eq!(unclear(&whole), Vec::<String>::new());
            let named = unclear(&partial);
            assert_eq!(named.len(), 1, "{named:#?}");
            for part in [
                "/usr/local/lib/udev/rules.d",
                "/usr/share/baselayout/group",
                "mount",
            ] {
                assert!(named[0].contains(part), "{named:#?}");
            }
            // `apply` does not repeat that warning at each start.
            let (code, done) = report(&mut run(&scene, "apply", parts.path()));
            assert_eq!((code, unclear(&done)), (0, Vec::new()), "{done:#}");
        }
    });
}

/// A rules file is a link to a directory that is not mounted: it dangles here, but not on the node.
#[test]
fn rules_file_linked_to_an_unmounted_directory_makes_events_unclear() {
    in_namespace(|| {
        for (name, to) in [
            // It is applied after the distribution's rules, or replaces them.
            ("99-vendor.rules", "/opt/vendor/kvm.rules"),
            ("50-udev-default.rules", "../../../opt/vendor/kvm.rules"),
        ] {
            let scene = node();
            scene.host.file("opt/vendor/kvm.rules", &rule("109"));
            symlink(to, scene.host.at("etc/udev/rules.d").join(name)).unwrap();
            let parts = view(&scene, &PARTS);
            let whole = check(&scene, scene.host.path());
            assert_eq!(predicted(&whole).0[1..], [Some(109), Some(109)], "{name}");
            assert_eq!(whole["target"]["gid"], 109, "{name}");
            let partial = check(&scene, parts.path());
            assert_unclear(name, &partial, name);
            assert!(unclear(&partial)[0].contains("/opt/vendor/kvm.rules"));
            // The group database is visible, so the target comes from there.
            assert_eq!(partial["target"]["source"], "host-group", "{partial:#}");
            // With that directory mounted the prediction is that of the whole node.
            let more = view(&scene, &["etc", "usr/lib", "run/udev", "opt"]);
            assert_eq!(
                predicted(&check(&scene, more.path())).0,
                predicted(&whole).0,
                "{name}"
            );
        }
    });
}

/// The rules directory is a link to a directory that is not mounted, as on NixOS.
#[test]
fn linked_rules_directory_that_is_unmounted_makes_events_unclear() {
    in_namespace(|| {
        let scene = node();
        scene
            .host
            .file("nix/store/rules/99-local.rules", &rule("109"));
        std::fs::remove_dir(scene.host.at("etc/udev/rules.d")).unwrap();
        symlink("/nix/store/rules", scene.host.at("etc/udev/rules.d")).unwrap();
        let parts = view(&scene, &PARTS);
        let whole = check(&scene, scene.host.path());
        assert_eq!(predicted(&whole).0, [Some(108), Some(109), Some(109)]);
        assert_unclear("etc", &check(&scene, parts.path()), "/etc/udev/rules.d");
    });
}

/// On a node where lib is no link, systemd's rules are only in lib.
#[test]
fn missing_systemd_rules_make_events_unclear() {
    in_namespace(|| {
        let scene = node();
        let host = &scene.host;
        std::fs::remove_file(host.at("lib")).unwrap();
        std::fs::remove_file(host.at(STOCK)).unwrap();
        host.file("lib/udev/rules.d/50-udev-default.rules", STOCK_TEXT);
        // A rule of another package.
        host.file("usr/lib/udev/rules.d/60-other.rules", &rule("5"));
        host.file("lib/udev/rules.d/70-other.rules", &rule("109"));
        let whole = check(&scene, host.path());
        assert_eq!(predicted(&whole).0[1..], [Some(109), Some(109)]);
        let parts = view(&scene, &PARTS);
        assert_unclear("lib", &check(&scene, parts.path()), "/lib/udev/rules.d");
        // Events are also unclear if etc is not mounted.
        let parts = view(&scene, &["usr/lib", "run/udev"]);
        assert_unclear("etc", &check(&scene, parts.path()), "/etc/udev/rules.d");
    });
}

/// A group that is in no mounted file may be in one that is not mounted, as on Flatcar.
#[test]
fn group_in_an_unmounted_file_is_not_treated_as_unknown() {
    in_namespace(|| {
        let scene = node();
        let host = &scene.host;
        host.file("etc/group", "root:x:0:\n");
        host.file("usr/share/baselayout/group", "root:x:0:\nkvm:x:78:\n");
        let whole = check(&scene, host.path());
        assert_eq!(predicted(&whole).0, [Some(78), Some(78), None]);
        assert_eq!(whole["target"]["gid"], 78);
        let parts = view(&scene, &PARTS);
        let partial = check(&scene, parts.path());
        let (events, ..) = predicted(&partial);
        assert_eq!(events, [None, None, None], "{partial:#}");
        assert!(
            !warnings(&partial).contains(&"udev-ignored".to_owned()),
            "{partial:#}"
        );
        let named = unclear(&partial);
        assert!(named.iter().any(|text| text.contains(STOCK)), "{named:#?}");
        assert_eq!(partial["host"]["kvm_gid"], Value::Null);
        // The directory that the Component for Flatcar mounts as well.
        let with = [&PARTS[..], &["usr/share/baselayout"]].concat();
        let partial = check(&scene, view(&scene, &with).path());
        assert_eq!(predicted(&partial), predicted(&whole));

        // With the whole node mounted a name in no file is unknown.
        std::fs::remove_file(host.at("usr/share/baselayout/group")).unwrap();
        let whole = check(&scene, host.path());
        assert!(
            warnings(&whole).contains(&"udev-ignored".to_owned()),
            "{whole:#}"
        );
        let partial = check(&scene, parts.path());
        assert_eq!(predicted(&partial).0, [None, None, None]);
    });
}

/// The unmounted target of the link etc/group takes precedence over the mounted group files.
#[test]
fn group_file_linked_to_an_unmounted_directory_is_not_overridden() {
    in_namespace(|| {
        let scene = node();
        let host = &scene.host;
        host.file("opt/group", "root:x:0:\nkvm:x:109:\n");
        std::fs::remove_file(host.at("etc/group")).unwrap();
        symlink("/opt/group", host.at("etc/group")).unwrap();
        host.file("usr/lib/group", "root:x:0:\nkvm:x:36:\n");
        let whole = check(&scene, host.path());
        assert_eq!(predicted(&whole).0, [Some(109), Some(109), None]);
        let parts = view(&scene, &PARTS);
        let partial = check(&scene, parts.path());
        assert_unclear("etc/group", &partial, "/etc/group");
        assert_eq!(partial["host"]["kvm_gid"], Value::Null, "{partial:#}");
        assert_ne!(partial["target"]["gid"], 36, "{partial:#}");
        // A rule with a numeric GID needs no group file.
        host.file("etc/udev/rules.d/99-pinned.rules", &rule("110"));
        let partial = check(&scene, parts.path());
        assert_eq!(partial["target"]["gid"], 110, "{partial:#}");
        go(&mut run(&scene, "apply", parts.path())).code(0);
    });
}
