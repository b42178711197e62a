//! What a patch changes, and that it changes nothing else: no list is reordered, no value replaced.

use std::collections::BTreeMap;

use serde_json::Value;

use support::golden::{FIXTURES, Way, golden_of};
use support::yaml;

/// Every difference between two objects, in their order.
struct Changes(Vec<String>);

impl Changes {
    fn between(old: &Value, new: &Value) -> Vec<String> {
        let mut changes = Self(Vec::new());
        changes.value("", old, new);
        changes.0
    }

    fn value(&mut self, path: &str, old: &Value, new: &Value) {
        match (old, new) {
            (Value::Object(old), Value::Object(new)) => {
                for (key, old) in old {
                    match new.get(key) {
                        Some(new) => self.value(&format!("{path}/{key}"), old, new),
                        None => self.0.push(format!("- {path}/{key}")),
                    }
                }
                for key in new.keys().filter(|key| !old.contains_key(*key)) {
                    self.0.push(format!("+ {path}/{key}"));
                }
            }
            (Value::Array(old), Value::Array(new)) => self.list(path, old, new),
            // A field that is null is one that is not there.
            (Value::Null, new) if !new.is_null() => self.0.push(format!("+ {path}")),
            _ if old != new => self.0.push(format!("{path}: {old} -> {new}")),
            _ => {}
        }
    }

    /// What is at the same place is compared; what is more is at the end, or, in a list of words,
    /// before all the old ones.
    fn list(&mut self, path: &str, old: &[Value], new: &[Value]) {
        if new.len() > old.len() && !old.is_empty() && new.ends_with(old) {
            let words = &new[..new.len() - old.len()];
            let words: Vec<_> = words.iter().map(|word| word.as_str().unwrap()).collect();
            self.0.push(format!("^ {path} {}", words.join(" ")));
            return;
        }
        for (index, old) in old.iter().enumerate() {
            match new.get(index) {
                Some(new) => self.value(&format!("{path}/{}", label(old, index)), old, new),
                None => self.0.push(format!("- {path}/{}", label(old, index))),
            }
        }
        for (index, new) in new.iter().enumerate().skip(old.len()) {
            self.0.push(format!("+ {path}/{}", label(new, index)));
        }
    }
}

/// What an element is called: a mount by where it is, since one volume is mounted more than once.
fn label(element: &Value, index: usize) -> String {
    let named = ["mountPath", "name"]
        .iter()
        .find_map(|key| element[key].as_str());
    named.map_or_else(|| index.to_string(), str::to_owned)
}

/// The documents by kind and name.
fn by_name(text: &str) -> BTreeMap<String, Value> {
    let documents = yaml::documents(text).into_iter();
    documents
        .map(|document| {
            let name = document["metadata"]["name"].as_str().unwrap().to_owned();
            (name, document)
        })
        .collect()
}

/// What each way does to the pod of a libvirt DaemonSet.
fn expected(way: Way) -> Vec<&'static str> {
    match way {
        Way::Plain => vec![],
        Way::Kustomize => vec![
            "+ /containers/libvirt/volumeMounts//etc/group",
            "+ /containers/libvirt/volumeMounts//usr/local/bin/libvirt-kvm-init",
            "+ /initContainers/libvirt-kvm-init-install",
            "+ /initContainers/libvirt-kvm-init",
        ],
        Way::Exec => vec![
            "^ /containers/libvirt/command /usr/local/bin/libvirt-kvm-init exec \
             --host-root=/mnt/host-rootfs --settle=30s --",
            "+ /containers/libvirt/env",
            "+ /containers/libvirt/volumeMounts//usr/local/bin/libvirt-kvm-init",
            "+ /containers/libvirt/volumeMounts//mnt/host-rootfs/etc",
            "+ /containers/libvirt/volumeMounts//mnt/host-rootfs/usr/lib",
            "+ /containers/libvirt/volumeMounts//mnt/host-rootfs/run/udev",
            "+ /containers/libvirt/volumeMounts//mnt/host-rootfs/run/tmpfiles.d",
            "+ /initContainers/libvirt-kvm-init-install",
            "+ /volumes/kvm-host-etc",
            "+ /volumes/kvm-host-usr-lib",
            "+ /volumes/kvm-host-run-udev",
            "+ /volumes/kvm-host-run-tmpfiles-d",
        ],
        Way::Hooks => vec![
            "+ /containers/libvirt/volumeMounts//mnt/host-rootfs/etc",
            "+ /containers/libvirt/volumeMounts//mnt/host-rootfs/usr/lib",
            "+ /containers/libvirt/volumeMounts//mnt/host-rootfs/run/udev",
            "+ /containers/libvirt/volumeMounts//mnt/host-rootfs/run/tmpfiles.d",
            "+ /volumes/kvm-host-etc",
            "+ /volumes/kvm-host-usr-lib",
            "+ /volumes/kvm-host-run-udev",
            "+ /volumes/kvm-host-run-tmpfiles-d",
            "+ /volumes/kvm-state",
            "+ /volumes/kvm-metrics",
        ],
        Way::InitModules => vec!["+ /containers/libvirt/volumeMounts//etc/group"],
    }
}

#[test]
fn each_patch_adds_what_it_shall_and_changes_nothing_else() {
    for fixture in FIXTURES {
        let plain = by_name(&golden_of(fixture, Way::Plain));
        for way in Way::ALL {
            let patched = by_name(&golden_of(fixture, way));
            assert!(
                patched.keys().eq(plain.keys()),
                "{fixture} {way:?}: other objects"
            );
            for (name, old) in &plain {
                let expected: Vec<_> = if name.starts_with("libvirt-libvirt-") {
                    let changes = expected(way).into_iter();
                    changes
                        .map(|change| change.replacen(" /", " /spec/template/spec/", 1))
                        .collect()
                } else {
                    vec![]
                };
                let changes = Changes::between(old, &patched[name]);
                assert_eq!(changes, expected, "{fixture} {way:?} {name}");
            }
        }
    }
}
