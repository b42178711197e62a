//! tests/goldens: for each fixture the DaemonSets as kustomize writes them (`-plain.yaml`), and for each patch
//! of helm-patch a unified diff to them.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// The directory that holds them.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// The manifests of one golden, such as `genestack-base-kustomize`.
pub fn golden(name: &str) -> String {
    let read = |file: &str| {
        let path = directory().join(file);
        fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    };
    if name.ends_with("-plain") {
        return read(&format!("{name}.yaml"));
    }
    let diff = read(&format!("{name}.diff"));
    let header = diff.lines().next().unwrap_or_default();
    let plain = header.strip_prefix("--- ").expect("the file to patch");
    patched(&read(plain), &diff)
}

/// Applies a unified diff exactly: its line numbers and its context must be those of the text.
fn patched(old: &str, diff: &str) -> String {
    let old: Vec<_> = old.split_inclusive('\n').collect();
    let (mut new, mut next) = (String::new(), 0);
    for line in diff.split_inclusive('\n').skip(2) {
        if let Some(hunk) = line.strip_prefix("@@ -") {
            let start: usize = hunk.split([',', ' ']).next().unwrap().parse().unwrap();
            new.extend(old[next..start - 1].iter().copied());
            next = start - 1;
            continue;
        }
        let (sign, text) = line.split_at(1);
        if sign != "+" {
            assert_eq!(old[next], text, "line {} of the plain file", next + 1);
            next += 1;
        }
        if sign != "-" {
            new.push_str(text);
        }
    }
    new.extend(old[next..].iter().copied());
    new
}
