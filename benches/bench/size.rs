//! Measures the size of the program, and the share of each crate.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::Setting;
use crate::machine::tool;
use crate::page::{Page, count};
use support::{program, run};

/// Size limit of the binary, 1.75 MiB.
const LIMIT: u64 = 1_835_008;
const BARE: [&str; 5] = [
    "build",
    "--locked",
    "--quiet",
    "--release",
    "--no-default-features",
];

/// cargo for the static release build, with a separate target directory.
fn cargo(words: &[&str], setting: &Setting) -> Command {
    let mut cmd = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cmd.current_dir(env!("CARGO_MANIFEST_DIR")).args(words);
    cmd.args(["--target", &target()]);
    cmd.env("CARGO_TARGET_DIR", setting.disk.join("build"));
    cmd
}

fn target() -> String {
    format!("{}-unknown-linux-musl", std::env::consts::ARCH)
}

pub fn measure(page: &mut Page, setting: &Setting) {
    let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    let row = |name: &str, bytes: u64| {
        let share = bytes as f64 / LIMIT as f64 * 100.0;
        vec![name.to_owned(), count(bytes), format!("{share:.1} %")]
    };
    let mut rows = vec![row("all commands", size(&program()))];
    let (code, _, err) = run(&mut cargo(&BARE, setting));
    let bare = setting.disk.join("build").join(target());
    match code {
        0 => rows.push(row(
            "`--no-default-features`: without watch and logs",
            size(&bare.join("release/libvirt-kvm-init")),
        )),
        _ => page.paragraph(&format!("Not measured: the build without features: {err}")),
    }
    page.table(
        &[
            "static and stripped",
            "bytes",
            "share of the limit, 1.75 MiB",
        ],
        &rows,
    );
    page.paragraph(
        "The second build keeps the source paths that `make build` removes, which adds a few KiB.",
    );
    shares(page, setting);
}

/// Adds a table with each crate's share of the code, by cargo-bloat.
fn shares(page: &mut Page, setting: &Setting) {
    if tool("cargo-bloat").is_none() && !in_cargo_home() {
        page.paragraph("Not measured: the share of each crate (cargo-bloat is missing).");
        return;
    }
    let words = [
        "bloat",
        "--release",
        "--crates",
        "-n",
        "0",
        "--message-format",
        "json",
    ];
    let mut cmd = cargo(&words, setting);
    cmd.env("CARGO_PROFILE_RELEASE_STRIP", "false");
    let (code, out, err) = run(&mut cmd);
    let json: Option<serde_json::Value> = serde_json::from_str(&out).ok();
    let Some(json) = json.filter(|_| code == 0) else {
        let last = err.lines().last().unwrap_or_default();
        page.paragraph(&format!("Not measured: the share of each crate: {last}"));
        return;
    };
    let text = json["text-section-size"].as_u64().unwrap_or(0);
    let mut crates: Vec<_> = json["crates"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| Some((one["size"].as_u64()?, one["name"].as_str()?.to_owned())))
        .collect();
    crates.sort_by(|a, b| b.cmp(a));
    page.paragraph(&format!(
        "The share of each crate in {} bytes of machine code, by cargo-bloat on the same build with symbols. With \
         LTO, a function that is inlined into another counts for the crate of the other.",
        count(text)
    ));
    let rows: Vec<_> = crates
        .iter()
        .map(|(size, name)| {
            let share = *size as f64 / text.max(1) as f64 * 100.0;
            vec![name.clone(), count(*size), format!("{share:.1} %")]
        })
        .collect();
    page.table(&["crate", "bytes of code", "share"], &rows);
}

fn in_cargo_home() -> bool {
    let home = std::env::var("CARGO_HOME").ok();
    let home = home.or_else(|| Some(std::env::var("HOME").ok()? + "/.cargo"));
    home.is_some_and(|home| Path::new(&home).join("bin/cargo-bloat").is_file())
}
