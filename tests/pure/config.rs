//! Flags, environment variables and YAML: precedence, and error messages for invalid values.

use std::collections::HashMap;
use std::ffi::OsString;
use std::time::Duration;

use clap::Parser;
use libvirt_kvm_init::cli::{Cli, Command};
use libvirt_kvm_init::config::{Format, Missing, Output, Policy, ProofKind};
use libvirt_kvm_init::pipeline::Request;

/// Resolves a command line with these environment variables and one YAML file.
fn resolve(flags: &[&str], env: &[(&str, &str)], yaml: &str) -> Result<(Request, Output), String> {
    let command = ["libvirt-kvm-init", "apply"].iter().chain(flags);
    let Command::Apply(options) = Cli::try_parse_from(command).unwrap().command else {
        panic!("`apply` was parsed as another command")
    };
    let env: HashMap<_, _> = env.iter().copied().collect();
    let env = |name: &str| env.get(name).map(OsString::from);
    let read = |_: &std::path::Path| Ok(yaml.as_bytes().to_vec());
    Request::resolve(&options.flags, env, read).map_err(|error| error.to_string())
}

fn policy(flags: &[&str], env: &[(&str, &str)], yaml: &str) -> Policy {
    resolve(flags, env, yaml).unwrap().0.policy
}

#[test]
fn defaults_are_as_documented() {
    let (request, output) = resolve(&[], &[], "").unwrap();
    let Request {
        sources, policy, ..
    } = request;
    assert_eq!(sources.device.to_str(), Some("/dev/kvm"));
    assert!(!sources.device_explicit);
    assert_eq!(sources.pod_root.path().to_str(), Some("/"));
    assert_eq!(policy.group, "kvm");
    assert_eq!(
        (policy.gid, policy.mode, sources.host_root),
        (None, None, None)
    );
    assert_eq!(request.proof, ProofKind::ApiVersion);
    assert_eq!(policy.missing, Missing::Fail);
    assert_eq!(request.settle, Duration::ZERO);
    assert_eq!(output.format, Format::Table);
    assert!(!policy.strict && !policy.persist && !request.dry_run);
}

#[test]
fn flags_override_environment_overrides_file() {
    let yaml = "gid: 1\ngroup: from-file\nmode: 0660\n";
    let env = [
        ("LIBVIRT_KVM_INIT_CONFIG", "c.yaml"),
        ("LIBVIRT_KVM_INIT_GID", "2"),
        ("LIBVIRT_KVM_INIT_GROUP", "from-env"),
        ("LIBVIRT_KVM_INIT_SERVICE_HOST", "10.0.0.1"),
    ];
    let (Request { policy, .. }, _) = resolve(&["--gid", "3"], &env, yaml).unwrap();
    let (gid, origin) = policy.gid.unwrap();
    assert_eq!((gid.as_raw(), origin.to_string().as_str()), (3, "--gid"));
    assert_eq!(policy.group, "from-env");
    assert_eq!(policy.mode, Some(0o660));
}

#[test]
fn every_option_has_a_variable_and_a_yaml_key() {
    let table = [
        ("device", "/x"),
        ("host-root", "/x"),
        ("root", "/x"),
        ("group", "x"),
        ("gid", "7"),
        ("mode", "0666"),
        ("qemu-user", "x"),
        ("qemu-group", "x"),
        ("qemu-conf", "/x"),
        ("group-file-out", "/x"),
        ("proof", "create-vm"),
        ("missing", "skip"),
        ("settle", "3s"),
        ("strict", "true"),
        ("persist", "true"),
        ("format", "json"),
        ("dry-run", "true"),
    ];
    let default = resolve(&[], &[], "").unwrap();
    for (name, value) in table {
        let flag = format!("--{name}={value}");
        let flag = resolve(&[&flag], &[], "").unwrap();
        let variable = libvirt_kvm_init::config::variable(name);
        let env = resolve(&[], &[(&variable, value)], "").unwrap();
        let yaml = format!("# comment\n{name}: {value}\n");
        let file = resolve(&["--config", "c.yaml"], &[], &yaml).unwrap();
        assert_ne!(flag, default, "{name}");
        // Compare everything except the origin and the flags to repeat, which only flags set.
        assert_eq!(env.0.policy.replay_flags, "");
        let strip = |mut config: (Request, Output)| {
            config.0.policy.replay_flags.clear();
            let text = format!("{config:?}");
            let origins = ["Flag", "Env", "File"];
            let words = text.split_whitespace();
            let words = words.filter(|word| !origins.iter().any(|origin| word.contains(origin)));
            words.collect::<Vec<_>>().join(" ")
        };
        if !["gid", "qemu-user", "qemu-group"].contains(&name) {
            assert_eq!(strip(env.clone()), strip(flag.clone()), "{name}");
            assert_eq!(strip(file.clone()), strip(flag), "{name}");
        }
        assert_ne!(env, default, "{name}");
        assert_ne!(file, default, "{name}");
    }
}

#[test]
fn empty_variables_and_yaml_keys_count_as_unset() {
    let env = [
        ("LIBVIRT_KVM_INIT_GID", ""),
        ("LIBVIRT_KVM_INIT_CONFIG", ""),
    ];
    assert_eq!(policy(&[], &env, "gid: 5").gid, None);
    let policy_of = |yaml: &str| policy(&["--config", "c.yaml"], &[], yaml);
    let found = policy_of("gid:\nmode: ''\n");
    assert_eq!((found.gid, found.mode), (None, None));
    let file = ["--config", "c.yaml"];
    let (request, _) = resolve(&file, &[], "group: ~\nroot: null\n").unwrap();
    assert_eq!(request.policy.group, "kvm");
    assert_eq!(request.sources.pod_root.path().to_str(), Some("/"));
    assert_eq!(policy_of("\u{feff}group: 'null'\n").group, "null");
    for ended in [
        "gid: 5\r\n\t\r\n...\r\n# \u{e4}\n",
        "gid: 5\n... # end\n...\n",
        "{gid: 5} # x\n",
        "---\n{gid: 5,\n}\n\n",
        "{strict: false, gid: 5, # x\n # y\n\n  }\n# z\n",
        "{gid: 5\n}\n...",
        "gid: 5 # \u{200c}\n",
    ] {
        assert_eq!(policy_of(ended).gid.unwrap().0.as_raw(), 5, "{ended:?}");
    }
    for empty in ["", "# nothing\n\n", "---\n"] {
        resolve(&["--config", "c.yaml"], &[], empty).unwrap();
    }
}

#[test]
fn flag_turns_off_a_switch_set_by_variable() {
    let env = [("LIBVIRT_KVM_INIT_STRICT", "true")];
    assert!(policy(&[], &env, "").strict);
    assert!(!policy(&["--strict=false"], &env, "").strict);
    assert!(policy(&["--strict"], &[], "").strict);
}

#[test]
fn durations_and_modes_are_parsed() {
    let settle =
        |text: &str| resolve(&["--settle", text], &[], "").map(|(request, _)| request.settle);
    assert_eq!(settle("500ms").unwrap(), Duration::from_millis(500));
    assert_eq!(settle("2m").unwrap(), Duration::from_secs(120));
    let mode =
        |text: &str| resolve(&["--mode", text], &[], "").map(|(request, _)| request.policy.mode);
    for text in ["660", "0660", "0o660"] {
        assert_eq!(mode(text).unwrap(), Some(0o660), "{text}");
    }
    assert_eq!(mode("0666").unwrap(), Some(0o666));
}

#[test]
fn invalid_values_report_origin_and_expected_format() {
    // (flags, variables, YAML) => parts that the message must contain
    type Row<'a> = (
        &'a [&'a str],
        &'a [(&'a str, &'a str)],
        &'a str,
        &'a [&'a str],
    );
    let file: &[&str] = &["--config", "c.yaml"];
    let table: &[Row<'_>] = &[
        (
            &["--gid", "0"],
            &[],
            "",
            &["--gid", "`0`", "1 to 4294967294"],
        ),
        (
            &["--gid", "4294967295"],
            &[],
            "",
            &["--gid", "1 to 4294967294"],
        ),
        (&["--gid=-1"], &[], "", &["--gid", "`-1`"]),
        (&["--gid", "+108"], &[], "", &["--gid", "`+108`"]),
        (&["--gid", "kvm"], &[], "", &["--gid", "`kvm`"]),
        (&["--gid", ""], &[], "", &["--gid", "``"]),
        (&["--gid", "99999999999999999999"], &[], "", &["--gid"]),
        (&["--mode", "0640"], &[], "", &["--mode", "0660"]),
        (&["--mode", "0770"], &[], "", &["--mode", "no x"]),
        (&["--mode", "02660"], &[], "", &["--mode"]),
        (&["--mode", "888"], &[], "", &["--mode", "octal"]),
        (&["--mode", "u=rw"], &[], "", &["--mode", "octal"]),
        (&["--settle", "5"], &[], "", &["--settle", "unit"]),
        (&["--settle=-5s"], &[], "", &["--settle"]),
        (&["--settle", "1.5s"], &[], "", &["--settle", "whole"]),
        (&["--settle", "99999999999h"], &[], "", &["--settle", "24h"]),
        (&["--group", "kv:m"], &[], "", &["--group", "name"]),
        (&["--group", ""], &[], "", &["--group"]),
        (&["--group", "+kvm"], &[], "", &["--group"]),
        (&["--proof", "yes"], &[], "", &["--proof", "create-vm"]),
        (&["--missing", "ignore"], &[], "", &["--missing", "skip"]),
        (&["--format", "xml"], &[], "", &["--format", "json"]),
        (
            &["--strict=perhaps"],
            &[],
            "",
            &["--strict", "true or false"],
        ),
        (&["--device", ""], &[], "", &["--device", "path"]),
        (
            &[],
            &[("LIBVIRT_KVM_INIT_GID", "x")],
            "",
            &["LIBVIRT_KVM_INIT_GID", "`x`"],
        ),
        (
            file,
            &[],
            "gid: 0\n",
            &["c.yaml:1", "gid", "`0`", "1 to 4294967294"],
        ),
        (
            file,
            &[],
            "\n# x\nmode: 0644\n",
            &["c.yaml:3", "mode", "0660"],
        ),
        (
            file,
            &[],
            "gid: 108\nguid: 108\n",
            &["c.yaml:2", "`guid`", "expected one of", "gid"],
        ),
        (
            file,
            &[],
            "gid: 1\ngid: 2\n",
            &["c.yaml:2", "`gid`", "twice"],
        ),
        (file, &[], "gid: [108]\n", &["c.yaml:1", "gid", "one value"]),
        (
            file,
            &[],
            "settle: {a: b}\n",
            &["c.yaml:1", "settle", "one value"],
        ),
        (file, &[], "- gid\n", &["c.yaml:1", "option: value"]),
        (file, &[], "gid\n", &["c.yaml:1", "option: value"]),
        (file, &[], "gid: [x\n", &["c.yaml:", "option: value"]),
        (
            file,
            &[],
            "config: x.yaml\n",
            &["c.yaml:1", "unknown key", "`config`"],
        ),
        (file, &[], "gid: &a 1\n", &["c.yaml:1"]),
        (
            file,
            &[],
            "gid: 108\n---\ngid: 0\n",
            &["c.yaml:2", "second document"],
        ),
        // Characters that end the file for the parser, or hide a line from a human reader.
        (
            file,
            &[],
            "strict: true\n\0\nunknown: 1\n",
            &["c.yaml:2", "control character \\u{0}"],
        ),
        (file, &[], "a: b\0", &["c.yaml:1", "control character"]),
        (
            file,
            &[],
            "# a\rgid: 5\n",
            &["c.yaml:1", "control character \\u{d}"],
        ),
        (file, &[], "gid: 5\r", &["c.yaml:1", "\\u{d}"]),
        (file, &[], "gid: 5 # \u{1b}[2J\n", &["c.yaml:1", "\\u{1b}"]),
        (file, &[], "\ngid: 5 #\u{7f}\n", &["c.yaml:2", "\\u{7f}"]),
        (file, &[], "# a\u{85}gid: 5\n", &["c.yaml:1", "\\u{85}"]),
        (file, &[], "# a\u{2028}gid: 5\n", &["c.yaml:1", "\\u{2028}"]),
        (file, &[], "gid: 5\n#\u{feff}\n", &["c.yaml:2", "\\u{feff}"]),
        (
            file,
            &[],
            "\u{feff}\u{feff}gid: 5\n",
            &["c.yaml:1", "\\u{feff}"],
        ),
        (
            file,
            &[],
            "gid: 108\n...\nunknown: 1\n",
            &["c.yaml:3", "after the end"],
        ),
        (
            file,
            &[],
            "\u{feff}# \u{e4}\n{gid: 108} # x\n\nunknown: 1\n",
            &["c.yaml:4", "after the end"],
        ),
        (file, &[], "{gid: 108}\n}\n", &["c.yaml:2", "after the end"]),
    ];
    for (flags, env, yaml, parts) in table {
        let Err(text) = resolve(flags, env, yaml) else {
            panic!("{flags:?} {env:?} {yaml:?} was accepted");
        };
        for part in *parts {
            assert!(text.contains(part), "{flags:?} {env:?} {yaml:?}: {text}");
        }
    }
}

#[test]
fn help_fits_80_columns() {
    let commands = [
        None,
        Some("apply"),
        Some("check"),
        Some("exec"),
        Some("install"),
    ];
    for name in commands {
        let command = ["libvirt-kvm-init"].into_iter().chain(name);
        let command = command.chain(["--help"]);
        let help = Cli::try_parse_from(command).unwrap_err().to_string();
        for line in help.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}

#[test]
fn deeply_nested_config_file_is_refused() {
    for (level, levels) in [("- ", 100_000), ("? ", 30_000), ("- ?\t", 10_000)] {
        let error = resolve(
            &[],
            &[("LIBVIRT_KVM_INIT_CONFIG", "c.yaml")],
            &level.repeat(levels),
        );
        let error = error.unwrap_err();
        assert!(error.starts_with("c.yaml: longer or deeper"), "{error}");
    }
    for (open, levels) in [("[", 60_000), ("{a: ", 15_000), ("- ", 255), ("? ", 255)] {
        let yaml = format!("gid: 5\ngroup: {}", open.repeat(levels));
        let error = resolve(&[], &[("LIBVIRT_KVM_INIT_CONFIG", "c.yaml")], &yaml);
        assert!(error.unwrap_err().starts_with("c.yaml:"));
    }
    let spaces: String = (0..350).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    let error = resolve(&[], &[("LIBVIRT_KVM_INIT_CONFIG", "c.yaml")], &spaces).unwrap_err();
    assert!(error.starts_with("c.yaml:1: unknown key"), "{error}");
}
