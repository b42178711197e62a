//! Control characters in names and texts of other files are escaped in every output.

use std::fs;
use std::path::Path;

use support::{KVM, Scene, command, in_namespace, program, report, run, set_owner};

/// Characters that clear the screen (ESC and C1), delete, reverse the writing direction, join and hide.
const CONTROLS: &str =
    "\u{1b}[2J\u{9b}2J\u{7f}\u{85}\u{202e}\u{2066}\u{61c}\u{200b}\u{ad}\u{e0041}\u{fffa}";

/// The first control or invisible character. Newlines end the program's own lines.
fn hidden(text: &str) -> Option<char> {
    let is_hidden = |c: &char| {
        c.is_control() && *c != '\n'
            || matches!(*c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().find(is_hidden)
}

/// A pod in which the QEMU user has this name and is a member of kvm or not.
fn pod_of(name: &str, is_member: bool) -> Scene {
    let scene = Scene::new();
    let passwd = format!("root:x:0:0:root:/root:/bin/sh\n{name}:x:42424:42424::/:/bin/sh\n");
    scene.pod.file("etc/passwd", &passwd);
    let conf = "user = \"+42424\"\ngroup = \"kvm\"\n";
    scene.pod.file("etc/libvirt/qemu.conf", conf);
    let member = if is_member { name } else { "" };
    let group = format!("root:x:0:\nkvm:x:108:{member}\nga{CONTROLS}mes:x:108:\n");
    scene.pod.file("etc/group", &group);
    scene
}

#[test]
fn control_characters_in_a_user_name_are_escaped_by_every_command() {
    in_namespace(|| {
        let name = format!("no{CONTROLS}va");
        let commands: [(&str, &[&str]); 5] = [
            ("apply", &[]),
            ("apply", &["--dry-run", "-v"]),
            ("apply", &["-v"]),
            ("check", &["-v"]),
            ("exec", &["-v", "--", "true"]),
        ];
        for is_member in [false, true] {
            for (command, args) in commands {
                for format in ["table", "json", "npd", "prometheus"] {
                    let scene = pod_of(&name, is_member);
                    let mut cmd = scene.command(command);
                    let (code, out, err) = run(cmd.args(["--format", format]).args(args));
                    for text in [&out, &err] {
                        let found = hidden(text);
                        assert_eq!(found, None, "{command} {args:?} {format}: {code}\n{text}");
                    }
                }
            }
        }
    });
}

/// Log lines only, with the character ESC.
#[test]
fn escape_character_is_escaped_in_log_lines() {
    in_namespace(|| {
        for (command, args) in [("apply", &[][..]), ("exec", &["--", "true"])] {
            let scene = pod_of("no\u{1b}[2Jva", false);
            let before = scene.pod.read("etc/group");
            let mut cmd = scene.command(command);
            let (_, _, err) = run(cmd.args(["--format", "json"]).args(args));
            assert!(!err.contains('\u{1b}'), "{command}: {err:?}");
            assert!(err.contains("no\\x1b[2Jva"), "{command}: {err}");
            assert_eq!(scene.pod.read("etc/group"), before, "{command}");
        }
    });
}

/// A JSON parser gets the original text.
#[test]
fn json_escapes_control_characters_without_loss() {
    in_namespace(|| {
        let scene = Scene::new();
        let group = format!("root:x:0:\nkvm:x:424:nova\nga{CONTROLS}mes:x:108:\n");
        scene.pod.file("etc/group", &group);
        let (code, said) = report(&mut scene.apply());
        assert_eq!(code, 0, "{said}");
        let text = said["warnings"][0]["text"].as_str().unwrap();
        assert!(text.contains(&format!("ga{CONTROLS}mes")), "{text:?}");
        let out = run(scene.apply().args(["--format", "json"])).1;
        assert_eq!(hidden(&out), None, "{out}");
        assert!(
            out.contains("ga\\u001b[2J\\u009b2J\\u007f\\u0085\\u202e"),
            "{out}"
        );
        assert!(out.contains("\\udb40\\udc41"), "{out}");
        assert_eq!(out.lines().count(), 1);
    });
}

#[test]
fn control_characters_in_arguments_are_escaped() {
    in_namespace(|| {
        // Commands with the option --root get the scene's, because the default is the machine's root.
        let scene = Scene::new();
        let name = format!("a{CONTROLS}");
        let name = name.as_str();
        let device = format!("--device={name}");
        let gid = format!("--gid={name}");
        let unknown = format!("--{name}");
        for args in [
            &[name][..],
            &["install", name],
            &["install", "--format=json", name],
            &["logs", name],
            &["logs", "--format=json", name],
            &["logs", "--format", name],
            &["ready", "--status-file", name],
        ] {
            let (_, out, err) = run(&mut command(&program(), args));
            assert_eq!(hidden(&out), None, "{args:?}: {out}");
            assert_eq!(hidden(&err), None, "{args:?}: {err}");
            assert!(!err.is_empty(), "{args:?}");
        }
        for option in [&device, &gid, &unknown] {
            let (_, out, err) = run(scene.apply().arg(option));
            assert_eq!(hidden(&out), None, "{option:?}: {out}");
            assert_eq!(hidden(&err), None, "{option:?}: {err}");
        }
        let (code, out, err) = run(scene.exec(&[]).arg(name));
        assert_eq!(
            (code, hidden(&out), hidden(&err)),
            (127, None, None),
            "{err}"
        );
        let mut env = scene.apply();
        let (code, out, err) = run(env.env("LIBVIRT_KVM_INIT_GID", name));
        assert_eq!((code, hidden(&out), hidden(&err)), (2, None, None), "{err}");
    });
}

#[test]
fn control_characters_in_group_and_rule_names_of_the_node_are_escaped() {
    in_namespace(|| {
        let scene = Scene::new();
        let host = format!("root:x:0:\nkvm:x:109:\nga{CONTROLS}mes:x:108:\n");
        scene.host.file("etc/group", &host);
        let rule = format!("KERNEL==\"kvm\", GROUP=\"no{CONTROLS}such\"\n");
        let name = format!("etc/udev/rules.d/50-{CONTROLS}.rules");
        scene.host.file(&name, &rule);
        set_owner(Path::new(KVM), 0, 108, 0o660);
        for format in ["table", "json", "npd", "prometheus"] {
            for args in [
                &[][..],
                &["-v"],
                &["--strict"],
                &["--persist"],
                &["--gid=108"],
            ] {
                let mut cmd = scene.apply();
                let (_, out, err) = run(cmd.args(["--format", format]).args(args));
                assert_eq!(hidden(&out), None, "{format} {args:?}: {out}");
                assert_eq!(hidden(&err), None, "{format} {args:?}: {err}");
                fs::write(scene.host.at("etc/group"), &host).unwrap();
            }
        }
    });
}
