use std::time::{Duration, Instant};

use nix::unistd::Gid;

use super::*;

const DEFAULT: &str = "ACTION!=\"add\", GOTO=\"default_end\"\n\
    KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n\
    LABEL=\"default_end\"\n";
const PINNED: &str = "KERNEL==\"kvm\", GROUP=\"929292\", MODE=\"0660\"\n";
const NAMED: &str = "KERNEL==\"kvm\", GROUP=\"nosuch\", MODE=\"0666\"\n";

fn predictions(rules: &[&str], version: Option<u32>) -> Predictions {
    let files: Vec<_> = rules
        .iter()
        .enumerate()
        .map(|(number, rules)| RuleFile {
            path: format!("/etc/udev/rules.d/{number}.rules"),
            content: rules.as_bytes().to_vec(),
        })
        .collect();
    let node = Udevd {
        version,
        ..Udevd::default()
    };
    let db = Database {
        group: &|name| (name == "kvm").then_some(Gid::from_raw(108)),
        user: &|_| None,
        complete: true,
    };
    predict(&files.iter().collect::<Vec<_>>(), &node, &db)
}

fn short(prediction: &Prediction) -> String {
    match prediction {
        Prediction::Untouched => "-".to_owned(),
        Prediction::Unclear => "?".to_owned(),
        Prediction::Becomes(outcome) => {
            let gid = outcome.gid.map_or("-".to_owned(), |gid| gid.to_string());
            let mode = outcome
                .mode
                .map_or("-".to_owned(), |mode| format!("{mode:o}"));
            let rule = outcome.rule.rsplit('/').next().unwrap();
            format!("{gid} {mode} {rule}")
        }
    }
}

#[test]
fn predicts_each_event_for_each_version() {
    const STOCK: &str = "108 660 0.rules:2";
    const PIN: &str = "929292 660 1.rules:1";
    const MODE: &str = "- 666 0.rules:1";
    for (rules, version, want) in [
        (&[][..], Some(252), ["-", "-", "-"]),
        (&[DEFAULT], Some(252), [STOCK, STOCK, "-"]),
        (&[DEFAULT], None, [STOCK, STOCK, "-"]),
        (&[DEFAULT, PINNED], Some(252), [STOCK, PIN, PIN]),
        (&[DEFAULT, PINNED], Some(258), [STOCK, STOCK, "-"]),
        (&[DEFAULT, PINNED], Some(260), [STOCK, PIN, PIN]),
        (&[DEFAULT, PINNED], None, [STOCK, "?", "?"]),
        (&[NAMED], Some(252), ["-", MODE, MODE]),
        (&[NAMED], Some(258), ["-", "-", "-"]),
        (&[NAMED], None, ["-", "?", "?"]),
    ] {
        let got = predictions(rules, version);
        let got = [Event::Start, Event::Add, Event::Change].map(|event| short(got.of(event)));
        assert_eq!(got, want, "{rules:?} {version:?}");
    }
}

/// Version; rules, separated by semicolons; a word of the diagnostic about an ignored rule; a word of the one
/// about an unclear rule.
const REPORTED: &str = r#"
252 | KERNEL=="kvm", GROUP="kvm", OPTIONS+="static_node=kvm" | |
258 | KERNEL=="kvm", GROUP="929292", MODE="0660" | range |
252 | KERNEL=="kvm", GROUP="5 | closing quote |
252 | KERNEL=="tun", GROUP="5 | |
252 | KERNEL=="kvm", MODE="rw" | not a valid mode |
252 | KERNEL=="kvm", GROUP="nosuch", MODE="0666" | 'nosuch' |
258 | KERNEL=="kvm", GROUP="nosuch", MODE="0666" | 'nosuch' |
259 | SUBSYSTEM=="misc", GROUP="1000" | range |
259 | SUBSYSTEM=="net", GROUP="1000" | |
252 | PROGRAM="/bin/x", GROUP="5" | | PROGRAM
252 | KERNEL=="tun", PROGRAM="/bin/x", GROUP="5" | |
252 | TEST=="/x", GROUP="5" | | TEST
252 | CONST{virt}=="kvm", GROUP="5" | | CONST
252 | IMPORT{file}="/x"; ENV{Y}=="1", GROUP="5" | | IMPORT{file}
252 | IMPORT{db}="X"; ENV{Y}=="1", GROUP="5" | |
252 | IMPORT{db}="Y"; ENV{Y}=="1", GROUP="5" | | IMPORT{db}
252 | KERNEL=="kvm", GROUP="%k" | | substitution
252 | KERNEL=="kvm", RUN+="/bin/chmod 666 /dev/kvm" | | chmod
252 | KERNEL=="kvm", RUN+="a"; KERNEL=="kvm", RUN="b" | | 'b'
252 | TEST=="/x", GOTO="e"; GROUP="5"; LABEL="e" | | GOTO
252 | TEST=="/x", GOTO="e"; LABEL="e"; GROUP="5" | |
252 | TEST=="/x", GROUP:="5"; GROUP="6" | | final
252 | TEST=="/x", GROUP="5"; GROUP="6", MODE="0600" | |
252 | KERNEL==i"kvm", GROUP="5" | prefix |
255 | KERNEL==i"kvm", GROUP="5" | | prefix
258 | KERNEL==i"KVM", GROUP="5" | |
"#;

#[test]
fn reports_ignored_and_unclear_rules() {
    for row in REPORTED.trim().lines() {
        let columns: Vec<_> = row.split('|').map(str::trim).collect();
        let [version, rules, ignored, unclear] = columns[..] else {
            panic!("{row}");
        };
        let rules = rules.replace("; ", "\n");
        let got = predictions(&[&rules], Some(version.parse().unwrap()));
        for (got, want) in [(&got.ignored, ignored), (&got.unclear, unclear)] {
            match want {
                "" => assert_eq!(got, &[], "{row}"),
                want => assert!(got.iter().any(|r| r.why.contains(want)), "{row}: {got:?}"),
            }
        }
    }
}

#[test]
fn a_too_long_line_makes_earlier_rules_unclear_unless_the_version_keeps_them() {
    let rules = format!("KERNEL==\"kvm\", GROUP=\"5\"\n#{}\n", "x".repeat(20_000));
    assert_eq!(
        short(&predictions(&[&rules], Some(252)).add),
        "5 660 0.rules:1"
    );
    assert_eq!(short(&predictions(&[&rules], Some(257)).add), "?");
}

#[test]
fn lines_with_kvm_a_label_or_an_option_are_not_idle() {
    let idle = [
        "",
        "k",
        "B",
        "P",
        "KERNEL==\"sda\"",
        "LABE",
        "PTIONS",
        "ABEL",
        "vm",
    ];
    let not = [
        "kvm",
        "a kvm",
        "LABEL=\"x\"",
        "A, LABEL",
        "OPTIONS",
        "x,OPTIONS+=\"y\"",
        "kkvm",
    ];
    for (lines, want) in [(&idle[..], true), (&not, false)] {
        for line in lines {
            assert_eq!(rule::is_idle(line.as_bytes()), want, "{line}");
        }
    }
}

/// Parsing a hostile file must take time linear in its length. These shapes once took quadratic time: half a
/// minute for 1 MiB, and half an hour for 8 MiB.
#[test]
fn hostile_rules_take_linear_time() {
    const SIZE: usize = 1 << 20;
    const MOST: Duration = Duration::from_secs(3);
    type Rules = fn(usize) -> String;
    let shapes: [(&str, Rules); 3] = [
        ("TAG==\"kvm*\", MODE=\"0666\"\n", |n| {
            format!("TAG+=\"t{n}\"\nTAG==\"kvm*\", MODE=\"0666\"\n")
        }),
        ("", |n| {
            format!("ENV{{X{n}}}=\"y\"\nIMPORT{{program}}=\"x\"\n")
        }),
        ("IMPORT{program}=\"x\"\n", |n| {
            format!("ENV{{X}}==\"1\", GOTO=\"{n}\"\nENV{{X}}=\"2\"\nLABEL=\"{n}\"\n")
        }),
    ];
    for (first, rules) in shapes {
        let mut file = first.to_owned();
        for number in 0.. {
            file.push_str(&rules(number));
            if file.len() > SIZE {
                break;
            }
        }
        let began = Instant::now();
        predictions(&[&file], Some(252));
        let took = began.elapsed();
        assert!(took < MOST, "{took:?}: {}", rules(0));
    }
}

/// Observed with 252: a name that ends in a slash has to be a directory.
#[test]
fn resolves_the_name_of_a_static_node_as_a_path() {
    for (name, is_kvm) in [
        ("/kvm", true),
        ("./kvm", true),
        ("kvm/", false),
        ("kvm/.", false),
    ] {
        let rule = format!("GROUP=\"kvm\", OPTIONS+=\"static_node={name}\"\n");
        let start = predictions(&[&rule], Some(252)).start;
        assert_eq!(start.outcome().is_some(), is_kvm, "{name}");
    }
}
