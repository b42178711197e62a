//! The tables of README.md, SECURITY.md and docs/ are generated: commands and options from clap's definitions,
//! everything else from the doc comments of the types. With `KVM_INIT_WRITE_DOCS=1` the test writes them, otherwise it
//! compares.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

use clap::{Arg, Command, CommandFactory};
use libvirt_kvm_init::cli::Cli;
use libvirt_kvm_init::report::Report;
use libvirt_kvm_init::sys::privileges::{Job, NEEDS};
use libvirt_kvm_init::verdict::Verdict;

const FILES: [&str; 4] = [
    "README.md",
    "SECURITY.md",
    "docs/operate.md",
    "docs/report.md",
];
const BEGIN: &str = "<!-- made from the code: ";
const END: &str = "<!-- end -->\n";

#[test]
fn generated_tables_match_the_code() {
    let write = env::var_os("KVM_INIT_WRITE_DOCS").is_some();
    let mut used = Vec::new();
    for name in FILES {
        let path = project(name);
        let old = fs::read_to_string(&path).unwrap();
        let mut new = String::new();
        let mut rest = old.as_str();
        while let Some((before, after)) = rest.split_once(BEGIN) {
            let (table, after) = after.split_once(" -->\n").unwrap();
            let (_, after) = after.split_once(END).expect("a table has no end mark");
            new.push_str(&format!("{before}{BEGIN}{table} -->\n\n"));
            new.push_str(&made(table));
            new.push_str(&format!("\n{END}"));
            used.push(table.to_owned());
            rest = after;
        }
        new.push_str(rest);
        if write {
            fs::write(&path, &new).unwrap();
        }
        assert!(
            write || old == new,
            "a table of {name} differs from the code; `KVM_INIT_WRITE_DOCS=1 cargo test --test pure readme::` \
             writes it, as:\n{new}"
        );
    }
    used.sort();
    let all = [
        "actions",
        "capabilities",
        "causes",
        "commands",
        "exit codes",
        "fields",
        "options",
        "sources",
        "warnings",
    ];
    assert_eq!(used, all);
}

fn project(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn made(table: &str) -> String {
    let words = include_str!("../../src/codes.rs");
    match table {
        "capabilities" => capabilities(),
        "commands" => commands(),
        "options" => options(),
        "exit codes" => exit_codes(),
        "fields" => fields(),
        "causes" => rows("cause", variants(words, "Cause")),
        "warnings" => rows("code", variants(words, "WarningCode")),
        "actions" => rows("action", variants(words, "Action")),
        "sources" => rows("source", variants(words, "Source")),
        other => panic!("no table {other}"),
    }
}

fn rows(head: &str, rows: Vec<(String, String)>) -> String {
    let rows = rows
        .iter()
        .map(|(word, means)| format!("| `{word}` | {} |\n", cell(means)));
    format!(
        "| {head} | meaning |\n| --- | --- |\n{}",
        rows.collect::<String>()
    )
}

/// A sentence as a table cell: lower case, without the full stop.
fn cell(text: &str) -> String {
    let text = text.strip_suffix('.').unwrap_or(text);
    let escaped = text.replace('|', "\\|");
    let mut letters = escaped.chars();
    let first = letters.next().unwrap();
    // A word in capitals, such as YAML, stays as it is.
    let lower = letters
        .clone()
        .next()
        .is_none_or(|second| !second.is_uppercase());
    match lower {
        true => first.to_lowercase().chain(letters).collect(),
        false => escaped,
    }
}

fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

fn commands() -> String {
    let mut text = "| command | does |\n| --- | --- |\n".to_owned();
    for one in command().get_subcommands() {
        let words: Vec<String> = one.get_positionals().map(|arg| arg.to_string()).collect();
        let name = [one.get_name().to_owned()].into_iter().chain(words);
        let name = name.collect::<Vec<_>>().join(" ").replace('|', "\\|");
        text.push_str(&format!(
            "| `{name}` | {} |\n",
            cell(&one.get_about().unwrap().to_string())
        ));
    }
    text
}

/// The options of `apply`, then those that only `watch` takes.
fn options() -> String {
    let command = command();
    let of = |name: &str| -> Vec<Arg> {
        let one = command.find_subcommand(name).unwrap();
        one.get_opts()
            .chain(
                one.get_arguments()
                    .filter(|arg| !arg.get_action().takes_values()),
            )
            .filter(|arg| arg.get_id() != "help")
            .cloned()
            .collect()
    };
    let apply = of("apply");
    let mut text = "| option | default | meaning |\n| --- | --- | --- |\n".to_owned();
    let watch = of("watch");
    let more = watch
        .iter()
        .filter(|arg| apply.iter().all(|one| one.get_id() != arg.get_id()));
    for (arg, only) in apply
        .iter()
        .map(|arg| (arg, ""))
        .chain(more.map(|arg| (arg, "`watch`: ")))
    {
        let help = arg.get_help().unwrap().to_string();
        let (help, default) = match help.split_once(" [default: ") {
            Some((help, default)) => (help, default.trim_end_matches(']')),
            None => (help.as_str(), ""),
        };
        let short = arg
            .get_short()
            .map(|short| format!("-{short}, "))
            .unwrap_or_default();
        let value = arg
            .get_value_names()
            .filter(|_| arg.get_action().takes_values());
        // A switch shows no value: it needs one only as a key or variable.
        let value = value.filter(|_| {
            arg.get_num_args()
                .is_none_or(|count| count.min_values() > 0)
        });
        let value = value
            .map(|names| format!(" {}", names[0]))
            .unwrap_or_default();
        let long = arg.get_long().unwrap();
        text.push_str(&format!(
            "| `{short}--{long}{value}` | {default} | {only}{} |\n",
            cell(help)
        ));
    }
    text
}

fn capabilities() -> String {
    let mut text = "| command | capability | why |\n| --- | --- | --- |\n".to_owned();
    for need in NEEDS {
        let names = need.jobs.iter().map(|job| match job {
            Job::Apply => "`apply`, `exec`",
            Job::Check => "`check`",
            Job::Install => "`install`",
            Job::Logs => "`logs`",
            Job::Ready => "`ready`",
            Job::Watch => "`watch`",
        });
        let names = names.collect::<Vec<_>>().join(", ");
        text.push_str(&format!(
            "| {names} | `{}` | {} |\n",
            need.capability, need.why
        ));
    }
    text
}

fn exit_codes() -> String {
    let meanings = variants(include_str!("../../src/verdict.rs"), "Verdict");
    assert_eq!(meanings.len(), Verdict::ALL.len());
    let mut text = "| code | verdict | meaning |\n| --- | --- | --- |\n".to_owned();
    for (verdict, (word, means)) in Verdict::ALL.into_iter().zip(meanings) {
        assert_eq!(verdict.word(), word);
        text.push_str(&format!(
            "| {} | {word} | {} |\n",
            verdict.code(),
            cell(&means)
        ));
    }
    text
}

/// Each variant of an enum as it appears in JSON, with its doc comment.
fn variants(source: &str, name: &str) -> Vec<(String, String)> {
    let found = members(source, &format!("pub enum {name} {{"));
    found
        .into_iter()
        .map(|(variant, means)| {
            let variant = variant.trim_end_matches(',');
            let word = variant
                .split_once(" = ")
                .map(|(_, word)| word.trim_matches('"').to_owned());
            (word.unwrap_or_else(|| kebab(variant)), means)
        })
        .collect()
}

fn kebab(name: &str) -> String {
    let mut word = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !word.is_empty() {
            word.push('-');
        }
        word.extend(letter.to_lowercase());
    }
    word
}

/// The fields or variants that are declared after the line `head`, each with its doc comment.
fn members(source: &str, head: &str) -> Vec<(String, String)> {
    let (_, body) = source
        .split_once(head)
        .unwrap_or_else(|| panic!("no {head}"));
    let indent = if source.contains(&format!("    {head}")) {
        "    "
    } else {
        ""
    };
    let (body, _) = body.split_once(&format!("\n{indent}}}\n")).unwrap();
    let (mut found, mut means) = (Vec::new(), Vec::new());
    for line in body.lines().map(str::trim).filter(|line| !line.is_empty()) {
        match line.strip_prefix("/// ") {
            Some(text) => means.push(text),
            None if line.starts_with("#[") => {}
            None => {
                assert!(!means.is_empty(), "{line} has no doc comment");
                found.push((line.to_owned(), means.join(" ")));
                means.clear();
            }
        }
    }
    found
}

fn fields() -> String {
    let source = [
        include_str!("../../src/report/mod.rs"),
        include_str!("../../src/codes.rs"),
    ]
    .concat();
    let mut text = "| field | type | meaning |\n| --- | --- | --- |\n".to_owned();
    let mut names = Vec::new();
    append(&source, "Report", "", &mut text, &mut names);
    let example: Report = serde_json::from_str(include_str!("../data/report.json")).unwrap();
    let json: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&example.to_json().unwrap()).unwrap();
    for name in json.keys() {
        assert!(
            names.contains(name),
            "{name} is in the report and not in the table"
        );
    }
    text
}

fn append(source: &str, kind: &str, path: &str, text: &mut String, names: &mut Vec<String>) {
    let fields = members(source, &format!("pub struct {kind} {{"));
    // Private fields are not in the JSON.
    for (line, means) in fields
        .into_iter()
        .filter(|(line, _)| line.starts_with("pub "))
    {
        let (name, kind) = line.trim_start_matches("pub ").split_once(": ").unwrap();
        let kind = kind.trim_end_matches(',');
        let (inner, null) = match inside(kind, "Option<") {
            Some(inner) => (inner, " or null"),
            None => (kind, ""),
        };
        let (inner, list) = match inside(inner, "Vec<") {
            Some(inner) => (inner, true),
            None => (inner, false),
        };
        let whole = format!("{path}{name}");
        let is = match inner {
            "u8" | "u32" | "u64" | "i32" => "number",
            "bool" => "true or false",
            "String" | "Verdict" | "Source" | "Action" | "Cause" | "WarningCode" | "Permission"
            | "ProofWord" => "text",
            _ => "object",
        };
        let is = if list {
            format!("list of {is}s")
        } else {
            is.to_owned()
        };
        let is = is.replace("texts", "text");
        text.push_str(&format!("| `{whole}` | {is}{null} | {} |\n", cell(&means)));
        names.push(whole.clone());
        if is.ends_with("object") || is.ends_with("objects") {
            let path = if list {
                format!("{whole}[].")
            } else {
                format!("{whole}.")
            };
            append(source, inner, &path, text, names);
        }
    }
}

fn inside<'a>(kind: &'a str, outer: &str) -> Option<&'a str> {
    kind.strip_prefix(outer)?.strip_suffix('>')
}
