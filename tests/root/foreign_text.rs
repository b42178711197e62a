//! Names and texts from files of others: none of them reaches a terminal, a log or a JSON file unescaped.

use std::fs;
use std::path::Path;

use support::{KVM, Scene, command, in_namespace, program, report, run, set_owner};

/// Clears the screen, by ESC and by C1; deletes; turns the writing direction; joins; hides.
const NASTY: &str =
    "\u{1b}[2J\u{9b}2J\u{7f}\u{85}\u{202e}\u{2066}\u{61c}\u{200b}\u{ad}\u{e0041}\u{fffa}";

/// What is neither seen nor harmless; a newline ends a line of the program's own.
fn hidden(text: &str) -> Option<char> {
    let is_hidden = |c: &char| {
        c.is_control() && *c != '\n'
            || matches!(*c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
    };
    text.chars().find(is_hidden)
}

/// A pod whose QEMU user has such a name, and is a member of kvm or not.
fn pod_of(name: &str, is_member: bool) -> Scene {
    let scene = Scene::new();
    let passwd = format!("root:x:0:0:root:/root:/bin/sh\n{name}:x:42424:42424::/:/bin/sh\n");
    scene.pod.file("etc/passwd", &passwd);
    let conf = "user = \"+42424\"\ngroup = \"kvm\"\n";
    scene.pod.file("etc/libvirt/qemu.conf", conf);
    let member = if is_member { name } else { "" };
    let group = format!("root:x:0:\nkvm:x:108:{member}\nga{NASTY}mes:x:108:\n");
    scene.pod.file("etc/group", &group);
    scene
}

#[test]
fn a_name_in_the_image_steers_no_terminal_by_any_command() {
    in_namespace(|| {
        let name = format!("no{NASTY}va");
        let verbs: [(&str, &[&str]); 5] = [
            ("apply", &[]),
            ("apply", &["--dry-run", "-v"]),
            ("apply", &["-v"]),
            ("check", &["-v"]),
            ("exec", &["-v", "--", "true"]),
        ];
        for is_member in [false, true] {
            for (verb, args) in verbs {
                for format in ["table", "json", "npd", "prometheus"] {
                    let scene = pod_of(&name, is_member);
                    let mut cmd = scene.verb(verb);
                    let (code, out, err) = run(cmd.args(["--format", format]).args(args));
                    for text in [&out, &err] {
                        let found = hidden(text);
                        assert_eq!(found, None, "{verb} {args:?} {format}: {code}\n{text}");
                    }
                }
            }
        }
    });
}

/// The log alone, and the character that every terminal obeys.
#[test]
fn a_log_line_clears_no_screen() {
    in_namespace(|| {
        for (verb, args) in [("apply", &[][..]), ("exec", &["--", "true"])] {
            let scene = pod_of("no\u{1b}[2Jva", false);
            let before = scene.pod.read("etc/group");
            let mut cmd = scene.verb(verb);
            let (_, _, err) = run(cmd.args(["--format", "json"]).args(args));
            assert!(!err.contains('\u{1b}'), "{verb}: {err:?}");
            assert!(err.contains("no\\x1b[2Jva"), "{verb}: {err}");
            assert_eq!(scene.pod.read("etc/group"), before, "{verb}");
        }
    });
}

/// Escaped, and still the same to whatever parses it.
#[test]
fn json_holds_the_same_text_as_escapes() {
    in_namespace(|| {
        let scene = Scene::new();
        let group = format!("root:x:0:\nkvm:x:424:nova\nga{NASTY}mes:x:108:\n");
        scene.pod.file("etc/group", &group);
        let (code, said) = report(&mut scene.apply());
        assert_eq!(code, 0, "{said}");
        let text = said["warnings"][0]["text"].as_str().unwrap();
        assert!(text.contains(&format!("ga{NASTY}mes")), "{text:?}");
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
fn an_argument_that_is_repeated_is_escaped() {
    in_namespace(|| {
        // What takes a root gets the scene's: without one it would be the machine's own.
        let scene = Scene::new();
        let odd = format!("a{NASTY}");
        let odd = odd.as_str();
        let device = format!("--device={odd}");
        let gid = format!("--gid={odd}");
        let unknown = format!("--{odd}");
        for args in [
            &[odd][..],
            &["install", odd],
            &["install", "--format=json", odd],
            &["logs", odd],
            &["logs", "--format=json", odd],
            &["logs", "--format", odd],
            &["ready", "--status-file", odd],
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
        let (code, out, err) = run(scene.exec(&[]).arg(odd));
        assert_eq!(
            (code, hidden(&out), hidden(&err)),
            (127, None, None),
            "{err}"
        );
        let mut env = scene.apply();
        let (code, out, err) = run(env.env("LIBVIRT_KVM_INIT_GID", odd));
        assert_eq!((code, hidden(&out), hidden(&err)), (2, None, None), "{err}");
    });
}

#[test]
fn what_a_node_calls_things_is_escaped() {
    in_namespace(|| {
        let scene = Scene::new();
        let host = format!("root:x:0:\nkvm:x:109:\nga{NASTY}mes:x:108:\n");
        scene.host.file("etc/group", &host);
        let rule = format!("KERNEL==\"kvm\", GROUP=\"no{NASTY}such\"\n");
        let name = format!("etc/udev/rules.d/50-{NASTY}.rules");
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
