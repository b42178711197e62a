use std::time::{Duration, Instant};

use nix::unistd::Gid;

use super::*;

const DEFAULT: &str = "ACTION!=\"add\", GOTO=\"default_end\"\n\
    KERNEL==\"kvm\", GROUP=\"kvm\", MODE=\"0660\", OPTIONS+=\"static_node=kvm\"\n\
    LABEL=\"default_end\"\n";
const PINNED: &str = "KERNEL==\"kvm\", GROUP=\"929292\", MODE=\"0660\"\n";
const NAMED: &str = "KERNEL==\"kvm\", GROUP=\"nosuch\", MODE=\"0666\"\n";

fn forecast(rules: &[&str], version: Option<u32>) -> Prediction {
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

fn short(forecast: &Forecast) -> String {
    match forecast {
        Forecast::Untouched => "-".to_owned(),
        Forecast::Unclear => "?".to_owned(),
        Forecast::Becomes(outcome) => {
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
fn every_event_has_its_own_forecast() {
    let s = "108 660 0.rules:2";
    let pin = "929292 660 1.rules:1";
    type Row<'a> = (&'a [&'a str], Option<u32>, [&'a str; 3]);
    let table: [Row<'_>; 10] = [
        (&[], Some(252), ["-", "-", "-"]),
        (&[DEFAULT], Some(252), [s, s, "-"]),
        (&[DEFAULT], None, [s, s, "-"]),
        (&[DEFAULT, PINNED], Some(252), [s, pin, pin]),
        (&[DEFAULT, PINNED], Some(258), [s, s, "-"]),
        (&[DEFAULT, PINNED], Some(260), [s, pin, pin]),
        (&[DEFAULT, PINNED], None, [s, "?", "?"]),
        (
            &[NAMED],
            Some(252),
            ["-", "- 666 0.rules:1", "- 666 0.rules:1"],
        ),
        (&[NAMED], Some(258), ["-", "-", "-"]),
        (&[NAMED], None, ["-", "?", "?"]),
    ];
    for (rules, version, want) in table {
        let got = forecast(rules, version);
        let got = [Event::Start, Event::Add, Event::Change].map(|event| short(got.of(event)));
        assert_eq!(got, want, "{rules:?} {version:?}");
    }
}

#[test]
fn what_is_left_out_or_cannot_be_told_is_said() {
    // rules, version => what is said to be ignored, and unclear
    let table = [
        (DEFAULT, Some(252), "", ""),
        (PINNED, Some(258), "range", ""),
        (
            "KERNEL==\"kvm\", GROUP=\"5\n",
            Some(252),
            "closing quote",
            "",
        ),
        ("KERNEL==\"tun\", GROUP=\"5\n", Some(252), "", ""),
        ("KERNEL==\"kvm\", MODE=\"rw\"", Some(252), "no mode", ""),
        (NAMED, Some(252), "'nosuch'", ""),
        (NAMED, Some(258), "'nosuch'", ""),
        (
            "SUBSYSTEM==\"misc\", GROUP=\"1000\"",
            Some(259),
            "range",
            "",
        ),
        ("SUBSYSTEM==\"net\", GROUP=\"1000\"", Some(259), "", ""),
        ("PROGRAM=\"/bin/x\", GROUP=\"5\"", Some(252), "", "PROGRAM"),
        (
            "KERNEL==\"tun\", PROGRAM=\"/bin/x\", GROUP=\"5\"",
            Some(252),
            "",
            "",
        ),
        ("TEST==\"/x\", GROUP=\"5\"", Some(252), "", "TEST"),
        ("CONST{virt}==\"kvm\", GROUP=\"5\"", Some(252), "", "CONST"),
        (
            "IMPORT{file}=\"/x\"\nENV{Y}==\"1\", GROUP=\"5\"",
            Some(252),
            "",
            "IMPORT{file}",
        ),
        (
            "IMPORT{db}=\"X\"\nENV{Y}==\"1\", GROUP=\"5\"",
            Some(252),
            "",
            "",
        ),
        (
            "IMPORT{db}=\"Y\"\nENV{Y}==\"1\", GROUP=\"5\"",
            Some(252),
            "",
            "IMPORT{db}",
        ),
        (
            "KERNEL==\"kvm\", GROUP=\"%k\"",
            Some(252),
            "",
            "substitution",
        ),
        (
            "KERNEL==\"kvm\", RUN+=\"/bin/chmod 666 /dev/kvm\"",
            Some(252),
            "",
            "chmod",
        ),
        (
            "KERNEL==\"kvm\", RUN+=\"a\"\nKERNEL==\"kvm\", RUN=\"b\"",
            Some(252),
            "",
            "'b'",
        ),
        (
            "TEST==\"/x\", GOTO=\"e\"\nGROUP=\"5\"\nLABEL=\"e\"",
            Some(252),
            "",
            "GOTO",
        ),
        (
            "TEST==\"/x\", GOTO=\"e\"\nLABEL=\"e\"\nGROUP=\"5\"",
            Some(252),
            "",
            "",
        ),
        (
            "TEST==\"/x\", GROUP:=\"5\"\nGROUP=\"6\"",
            Some(252),
            "",
            "final",
        ),
        (
            "TEST==\"/x\", GROUP=\"5\"\nGROUP=\"6\", MODE=\"0600\"",
            Some(252),
            "",
            "",
        ),
        ("KERNEL==i\"kvm\", GROUP=\"5\"", Some(252), "prefix", ""),
        ("KERNEL==i\"kvm\", GROUP=\"5\"", Some(255), "", "prefix"),
        ("KERNEL==i\"KVM\", GROUP=\"5\"", Some(258), "", ""),
    ];
    for (rules, version, ignored, unclear) in table {
        let got = forecast(&[rules], version);
        for (got, want) in [(&got.ignored, ignored), (&got.unclear, unclear)] {
            match want {
                "" => assert_eq!(got, &[], "{rules} {version:?}"),
                want => assert!(got.iter().any(|r| r.why.contains(want)), "{rules}: {got:?}"),
            }
        }
    }
}

#[test]
fn a_line_that_ends_the_reading_leaves_what_came_before_in_doubt() {
    let rules = format!("KERNEL==\"kvm\", GROUP=\"5\"\n#{}\n", "x".repeat(20_000));
    assert_eq!(
        short(&forecast(&[&rules], Some(252)).add),
        "5 660 0.rules:1"
    );
    assert_eq!(short(&forecast(&[&rules], Some(257)).add), "?");
}

#[test]
fn a_line_out_of_reach_still_counts_where_it_names_what_does() {
    for idle in [
        "",
        "k",
        "B",
        "P",
        "KERNEL==\"sda\", GROUP=\"5\"",
        "LABE",
        "PTIONS",
        "ABEL",
        "vm",
    ] {
        assert!(rule::is_idle(idle.as_bytes()), "{idle}");
    }
    for not in [
        "kvm",
        "a kvm",
        "LABEL=\"x\"",
        "A, LABEL",
        "OPTIONS",
        "x,OPTIONS+=\"y\"",
        "kkvm",
    ] {
        assert!(!rule::is_idle(not.as_bytes()), "{not}");
    }
}

/// A hostile file may take time by its length, not by the square of it, as these did: half a minute for one
/// of 1 MiB, and half an hour for one of 8 MiB.
#[test]
fn rules_made_to_keep_it_busy_do_not() {
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
        forecast(&[&file], Some(252));
        let took = began.elapsed();
        assert!(took < MOST, "{took:?}: {}", rules(0));
    }
}

/// Seen with 252: what ends in a slash has to be a folder.
#[test]
fn a_static_nodes_name_is_a_path() {
    for (name, is_kvm) in [
        ("/kvm", true),
        ("./kvm", true),
        ("kvm/", false),
        ("kvm/.", false),
    ] {
        let rule = format!("GROUP=\"kvm\", OPTIONS+=\"static_node={name}\"\n");
        let start = forecast(&[&rule], Some(252)).start;
        assert_eq!(start.outcome().is_some(), is_kvm, "{name}");
    }
}
