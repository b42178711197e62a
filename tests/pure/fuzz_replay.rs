//! Every input that fuzz/corpus keeps, through the properties of its target: what the fuzzer would
//! find at once is found without it.

use crate::properties;

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, panic};

fn folder(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz")
        .join(name)
}

fn names(path: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(path).unwrap();
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    entries.map(|entry| name(entry.unwrap())).collect()
}

#[test]
fn each_input_has_its_properties() {
    let mut failed = Vec::new();
    for (target, property) in properties::TARGETS {
        let corpus = folder("corpus").join(target);
        let inputs = names(&corpus);
        assert!(!inputs.is_empty(), "{target} has no input");
        println!("{target}: {} inputs", inputs.len());
        property(b"");
        for input in inputs {
            let data = fs::read(corpus.join(&input)).unwrap();
            if panic::catch_unwind(|| property(&data)).is_err() {
                failed.push(format!("fuzz/corpus/{target}/{input}"));
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn each_property_has_its_target_and_its_corpus() {
    let properties: BTreeSet<_> = properties::TARGETS.iter().map(|(name, _)| *name).collect();
    let targets = names(&folder("targets"));
    let targets: BTreeSet<_> = targets
        .iter()
        .filter_map(|name| name.strip_suffix(".rs"))
        .collect();
    let corpora = names(&folder("corpus"));
    let corpora: BTreeSet<_> = corpora.iter().map(String::as_str).collect();
    assert_eq!(targets, properties);
    assert_eq!(corpora, properties);
    let manifest = fs::read_to_string(folder("Cargo.toml")).unwrap();
    for name in properties {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")));
    }
}
