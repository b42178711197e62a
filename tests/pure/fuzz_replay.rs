//! Replays every input in fuzz/corpus through the property of its fuzz target, so that known inputs are tested
//! without the fuzzer.

use crate::properties;

use std::collections::BTreeSet;
use std::path::Path;
use std::{fs, panic};

fn fuzz_path(name: &str) -> std::path::PathBuf {
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
fn corpus_inputs_satisfy_their_properties() {
    let mut failed = Vec::new();
    for (target, property) in properties::TARGETS {
        let corpus = fuzz_path("corpus").join(target);
        let inputs = names(&corpus);
        assert!(!inputs.is_empty(), "{target} has no input in its corpus");
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
fn each_property_has_a_fuzz_target_and_a_corpus() {
    let properties: BTreeSet<_> = properties::TARGETS.iter().map(|(name, _)| *name).collect();
    let targets = names(&fuzz_path("targets"));
    let targets: BTreeSet<_> = targets
        .iter()
        .filter_map(|name| name.strip_suffix(".rs"))
        .collect();
    let corpora = names(&fuzz_path("corpus"));
    let corpora: BTreeSet<_> = corpora.iter().map(String::as_str).collect();
    assert_eq!(targets, properties);
    assert_eq!(corpora, properties);
    let manifest = fs::read_to_string(fuzz_path("Cargo.toml")).unwrap();
    for name in properties {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"targets/{name}.rs\"")));
    }
}
