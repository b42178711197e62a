//! Compares the parsers of group and passwd files with glibc.
//!
//! Each test runs in a thread with its own mount namespace, in which test files are mounted over /etc/group and
//! /etc/passwd, so that glibc reads the same bytes as the parsers.

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use libvirt_kvm_init::formats::accounts::edit::{Change, Want, align};
use libvirt_kvm_init::formats::accounts::{group, passwd};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, getgrouplist};
use uzers::os::unix::GroupExt;

use support::random::Random;

/// The account files that glibc reads in this thread.
struct Etc {
    group: File,
    passwd: File,
}

impl Etc {
    /// Mounts test files over this thread's account files. Every failure here fails the test, because a comparison
    /// with the machine's own files would be meaningless.
    fn cover(dir: &Path) -> Self {
        if !cfg!(target_env = "gnu") {
            panic!("this test compares with glibc and needs a gnu build");
        }
        unshare(CloneFlags::CLONE_NEWNS).expect("unshare a mount namespace (needs root)");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .expect("make / private");
        for socket in ["/run/nscd", "/var/run/nscd"] {
            if Path::new(socket).exists() {
                mount(Some("tmpfs"), socket, Some("tmpfs"), MsFlags::empty(), none)
                    .expect("mount over nscd's socket");
            }
        }
        let bind = |name: &str, text: &[u8]| {
            let path = dir.join(name);
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .open(&path)
                .unwrap();
            file.write_all(text).unwrap();
            let target = Path::new("/etc").join(name);
            mount(Some(&path), &target, none, MsFlags::MS_BIND, none)
                .unwrap_or_else(|e| panic!("bind over {}: {e}", target.display()));
            file
        };
        bind("nsswitch.conf", b"passwd: files\ngroup: files\n");
        let mut etc = Self {
            group: bind("group", b""),
            passwd: bind("passwd", b""),
        };
        etc.set_group(b"oracle-canary:x:12345:oracle-canary\n");
        let canary = uzers::get_group_by_name("oracle-canary")
            .expect("glibc does not read the test's group file");
        assert_eq!(canary.gid(), 12345);
        assert!(
            uzers::get_group_by_name("root").is_none(),
            "glibc also reads another group file"
        );
        etc.set_passwd(b"oracle-canary:x:12345:1::/:\n");
        assert!(
            uzers::get_user_by_uid(12345).is_some(),
            "glibc does not read the test's passwd file"
        );
        assert!(
            uzers::get_user_by_uid(0).is_none(),
            "glibc also reads another passwd file"
        );
        etc
    }

    fn set_group(&mut self, text: &[u8]) {
        replace(&mut self.group, text);
    }

    fn set_passwd(&mut self, text: &[u8]) {
        replace(&mut self.passwd, text);
    }
}

fn replace(file: &mut File, text: &[u8]) {
    use std::os::unix::fs::FileExt;
    file.set_len(0).unwrap();
    file.write_all_at(text, 0).unwrap();
}

/// Runs a test in a new thread. Its mount namespace ends with the thread.
fn with_etc(test: impl FnOnce(&mut Etc) + Send + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_owned();
    let thread = std::thread::spawn(move || test(&mut Etc::cover(&path)));
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

const NAMES: &[&[u8]] = &[
    b"kvm",
    b"kvm",
    b"kvm",
    b"kvm",
    b"kvm2",
    b"other",
    b" kvm",
    b"\tkvm",
    b"#kvm",
    b" #kvm",
    b"+kvm",
    b"-kvm",
    b" +kvm",
    b"+",
    b"-",
    b"",
    b"k\0vm",
    b"\0",
    b"\xff\xfe",
    b"kvm ",
    b"\rkvm",
    b"\x0bkvm",
    b"\xa0kvm",
];
const NUMBERS: &[&[u8]] = &[
    b"108",
    b"424",
    b"1",
    b"0",
    b"",
    b"-1",
    b"+108",
    b"0108",
    b" 7",
    b"7 ",
    b"4294967294",
    b"4294967295",
    b"4294967296",
    b"18446744073709551615",
    b"18446744073709551616",
    b"-18446744073709551508",
    b"-4294967188",
    b"0x10",
    b"x",
    b"10\r",
    b"+",
    b"-",
    b"+-1",
    b"\x0b9",
    b"9\0",
    b"-0",
    b"99999999999999999999999",
];
const MEMBERS: &[&[u8]] = &[
    b"nova", b"nova", b"nova", b" nova", b"\tnova", b"nova ", b"a", b"", b" ", b"nova2", b"nov",
    b"nova:b", b"n\xf8", b"nova\0", b"\0", b"nova\r", b"\r", b"+", b"#nova", b"root",
];
const ENDS: &[&[u8]] = &[
    b"\n", b"\n", b"\n", b"\n", b"\r\n", b"\n\n", b"\n \n", b":\n", b" \n",
];
const SPECIAL: &[&[u8]] = &[
    b"+\n",
    b"-\n",
    b"+:::\n",
    b"+:\n",
    b"+::\n",
    b"+:::nova\n",
    b"-:::nova\n",
    b"+kvm:x:-1:nova\n",
    b"+kvm:x\n",
    b" +kvm:x::nova\n",
    b"#\n",
    b"# kvm:x:1:nova\n",
    b"kvm\n",
    b"kvm:\n",
    b"kvm:x\n",
    b"kvm:x:\n",
    b":\n",
    b"::::\n",
    b":x:5:nova\n",
    b"\0\n",
    b"kvm:x:108\n",
    b"\x85\n",
    b"  \t\n",
];

fn random_group(random: &mut Random) -> Vec<u8> {
    let mut file = Vec::new();
    for _ in 0..random.below(7) {
        if random.below(5) == 0 {
            file.extend(random.pick(SPECIAL));
            continue;
        }
        file.extend(random.pick(NAMES));
        file.extend(random.pick::<&[u8]>(&[b":x:", b":x:", b"::", b":!:", b":x y:", b":"]));
        file.extend(random.pick(NUMBERS));
        if random.below(8) > 0 {
            file.push(b':');
            for index in 0..random.below(4) {
                if index > 0 {
                    file.push(b',');
                }
                file.extend(random.pick(MEMBERS));
            }
            if random.below(300) == 0 {
                for index in 0..2000 {
                    file.extend(format!(",member{index}").as_bytes());
                }
                file.extend(b",nova");
            }
        }
        file.extend(random.pick(ENDS));
    }
    if random.below(4) == 0 {
        file.pop();
    }
    file
}

fn edge_case_groups() -> Vec<Vec<u8>> {
    let mut files: Vec<Vec<u8>> = Vec::new();
    // Each special line and each unusual GID, alone and before a valid entry, with every line ending.
    for line in SPECIAL {
        files.push(line.to_vec());
        files.push([*line, b"kvm:x:108:nova\n"].concat());
        files.push([b"kvm:x:7:a\n", *line].concat());
    }
    for number in NUMBERS {
        for tail in [&b""[..], b":", b":nova", b":nova\r", b":\r", b": nova , b"] {
            for prefix in [&b"kvm:x:"[..], b"+kvm:x:", b"#kvm:x:", b" kvm::"] {
                files.push([prefix, *number, tail].concat());
                files.push([prefix, *number, tail, b"\nkvm:x:108:b\n"].concat());
            }
        }
    }
    for name in NAMES {
        files.push([*name, b":x:108:nova\n"].concat());
    }
    for member in MEMBERS {
        for (before, after) in [("", ""), ("a,", ""), ("", ",a"), ("", "\r"), ("a, ", ",\r")] {
            files.push(
                [
                    b"kvm:x:9:",
                    before.as_bytes(),
                    *member,
                    after.as_bytes(),
                    b"\n",
                ]
                .concat(),
            );
        }
    }
    // Lines near the sizes of glibc's buffers and far above them.
    for size in [1000, 1010, 1023, 1024, 1025, 2047, 2048, 4096, 200_000] {
        let filler = vec![b'm'; size];
        files.push([b"kvm:x:108:", &filler[..], b",nova\n"].concat());
        files.push([b"kvm:x:108:", &vec![0xff; size][..], b",nova\n"].concat());
        files.push([b"x:x:1:", &filler[..], b"\nkvm:x:108:nova"].concat());
        files.push(
            [
                b"x:x:1:",
                &b"a,".repeat(size)[..],
                b"nova\nkvm:x:108:nova\n",
            ]
            .concat(),
        );
    }
    files
}

/// Whether glibc's look-ups read bytes that are not in the file: `__nss_readline` (2.36) moves an indented line to
/// the front of its buffer without the terminating NUL, so that some of the last bytes are read twice unless a
/// newline follows. getgrouplist(3) does not have this bug.
fn glibc_misreads(file: &[u8]) -> bool {
    let ended = file.last() == Some(&b'\n');
    let mut lines = file.split(|b| *b == b'\n').peekable();
    std::iter::from_fn(|| {
        lines
            .next()
            .map(|line| (line, lines.peek().is_none() && !ended))
    })
    .any(|(line, last)| {
        let indented = line
            .first()
            .is_some_and(|b| matches!(b, b' ' | b'\t'..=b'\r'));
        indented && (last || line.contains(&0))
    })
}

/// Compares the look-ups of glibc and of the parser in one group file. Panics with the file's content where they
/// differ.
fn compare_group(file: &[u8]) {
    let shown = || file.get(..4000).unwrap_or(file).escape_ascii().to_string();
    let misread = glibc_misreads(file);
    // Names with a NUL are left out: a C string cannot contain one.
    for name in [
        "kvm", "kvm2", "other", "+kvm", "-kvm", "#kvm", " kvm", "kvm ", "+", "", "k",
    ] {
        let glibc = uzers::get_group_by_name(name);
        if glibc.as_ref().is_some_and(|g| g.gid() == u32::MAX) {
            continue; // by design: the parser skips a line with GID 4294967295 and reads on
        }
        let glibc = glibc.map(|g| {
            let members: Vec<_> = g.members().iter().map(|m| m.as_bytes().to_vec()).collect();
            (g.name().as_bytes().to_vec(), g.gid(), members)
        });
        let ours = group::by_name(file, name.as_bytes()).map(|g| {
            let members: Vec<_> = g.members().map(<[u8]>::to_vec).collect();
            (g.name.to_vec(), g.gid.as_raw(), members)
        });
        assert!(
            misread || ours == glibc,
            "getgrnam({name:?}) of {}: {ours:?}, {glibc:?}",
            shown()
        );
    }
    for gid in [0, 1, 7, 108, 424, 4_294_967_294] {
        let glibc = uzers::get_group_by_gid(gid).map(|g| g.name().as_bytes().to_vec());
        let ours = group::all_by_gid(file, Gid::from_raw(gid)).next();
        let ours = ours.map(|g| g.name.to_vec());
        assert!(
            misread || ours == glibc,
            "getgrgid({gid}) of {}: {ours:?}, {glibc:?}",
            shown()
        );
    }
    for user in [
        &b"nova"[..],
        b"a",
        b"nova ",
        b"nova\r",
        b"nova:b",
        b"n\xf8",
        b"+",
        b"#nova",
        b"",
    ] {
        for primary in [65000, 108] {
            let primary = Gid::from_raw(primary);
            let name = CString::new(user).unwrap();
            let glibc = getgrouplist(&name, primary).unwrap();
            let ours = group::gids_of(file, user, primary);
            // glibc repeats GIDs, and after a repetition its order differs from the file's.
            let set = |gids: &[Gid]| gids.iter().map(|g| g.as_raw()).collect::<BTreeSet<_>>();
            assert_eq!(
                set(&ours),
                set(&glibc),
                "getgrouplist({name:?}) of {}",
                shown()
            );
            assert_eq!(set(&ours).len(), ours.len(), "a GID is repeated");
            assert_eq!((ours[0], glibc[0]), (primary, primary));
        }
    }
}

#[test]
fn group_parser_matches_glibc() {
    with_etc(|etc| {
        let mut random = Random(0x6b76_6d00_0001);
        let edge_cases = edge_case_groups();
        let count = edge_cases.len() + 1500;
        let random = (0..1500).map(|_| random_group(&mut random));
        for file in edge_cases.into_iter().chain(random) {
            etc.set_group(&file);
            compare_group(&file);
        }
        println!("{count} group files compared");
    });
}

#[test]
fn glibc_reads_target_gid_and_members_in_aligned_group_files() {
    with_etc(|etc| {
        let mut random = Random(0x6b76_6d00_0002);
        let mut files = edge_case_groups();
        files.extend((0..1000).map(|_| random_group(&mut random)));
        let mut edits = [0; 3];
        for (index, file) in files.iter().enumerate() {
            let want = Want {
                group: if index % 7 == 6 { b"kvm-108" } else { b"kvm" },
                gid: Gid::from_raw(if index % 2 == 0 { 108 } else { 929_292 }),
                member: (index % 5 > 0).then_some(b"nova"),
            };
            let shown = || file.get(..4000).unwrap_or(file).escape_ascii().to_string();
            etc.set_group(file);
            let name = OsStr::from_bytes(want.group);
            let before = uzers::get_group_by_name(name);
            let others = getgrouplist(c"other", Gid::from_raw(65000)).unwrap();
            let (after, changes) = align(file, &want).unwrap();
            for change in &changes {
                edits[match change {
                    Change::SetGid { .. } => 0,
                    Change::AddGroup { .. } => 1,
                    Change::AddMember { .. } => 2,
                }] += 1;
            }
            etc.set_group(&after);
            compare_group(&after);
            let seen = uzers::get_group_by_name(name)
                .unwrap_or_else(|| panic!("glibc finds no group after the edit of {}", shown()));
            assert_eq!(seen.gid(), want.gid.as_raw(), "{}", shown());
            if glibc_misreads(file) || glibc_misreads(&after) {
                continue; // the GID was compared; glibc misreads the members
            }
            let mut members: Vec<_> = before.map_or(vec![], |g| g.members().to_vec());
            let mut now = seen.members().to_vec();
            if let Some(user) = want.member {
                let user = OsStr::from_bytes(user);
                assert!(
                    now.iter().any(|m| m == user),
                    "not a member after the edit of {}",
                    shown()
                );
                let name = CString::new(user.as_bytes()).unwrap();
                let gids = getgrouplist(&name, Gid::from_raw(65000)).unwrap();
                assert!(
                    gids.contains(&want.gid),
                    "not in the group after the edit of {}",
                    shown()
                );
                if !members.iter().any(|m| m == user) {
                    members.push(user.to_owned());
                }
            }
            // All other members are unchanged.
            members.sort();
            now.sort();
            assert_eq!(now, members, "{}", shown());
            assert_eq!(
                getgrouplist(c"other", Gid::from_raw(65000)).unwrap(),
                others
            );
        }
        println!(
            "{} files; GIDs set, groups added, members added: {edits:?}",
            files.len()
        );
        assert!(edits.iter().all(|count| *count > 100), "{edits:?}");
    });
}

fn random_passwd(random: &mut Random) -> Vec<u8> {
    let mut file = Vec::new();
    for _ in 0..random.below(6) {
        if random.below(6) == 0 {
            file.extend(random.pick(SPECIAL));
            continue;
        }
        file.extend(random.pick(NAMES));
        file.extend(random.pick::<&[u8]>(&[b":x:", b":x:", b"::", b":"]));
        for _ in 0..random.below(10).min(2) {
            // Mostly valid IDs, because a line needs two.
            let good = random.below(3) > 0;
            file.extend(random.pick(if good { &NUMBERS[..4] } else { NUMBERS }));
            if random.below(12) > 0 {
                file.push(b':');
            }
        }
        file.extend(random.pick::<&[u8]>(&[
            b"::",
            b"::/:",
            b"g:/h:/s",
            b"",
            b"a:b:c:d:e",
            b"\0:",
            b"\xff:",
        ]));
        file.extend(random.pick(ENDS));
    }
    if random.below(4) == 0 {
        file.pop();
    }
    file
}

#[test]
fn passwd_parser_matches_glibc() {
    with_etc(|etc| {
        let mut random = Random(0x6b76_6d00_0003);
        let mut files = Vec::new();
        for number in NUMBERS {
            for name in [&b"kvm"[..], b"+kvm", b" kvm", b"#kvm"] {
                for tail in [&b":"[..], b"", b"\r", b"::/:", b":a:b:c:d"] {
                    files.push([name, b":x:", *number, b":5", tail, b"\nkvm:x:1:1::/:"].concat());
                    files.push([name, b":x:5:", *number, tail, b"\nkvm:x:1:1::/:\n"].concat());
                }
            }
        }
        for name in NAMES {
            files.push([*name, b":x:108:424:g:/:\n"].concat());
        }
        files.push(
            [
                b"kvm:x:1:2:",
                &vec![b'g'; 100_000][..],
                b":/:\nother:x:7:7::/:\n",
            ]
            .concat(),
        );
        files.extend((0..1500).map(|_| random_passwd(&mut random)));
        let mut found = 0;
        for file in &files {
            if glibc_misreads(file) {
                continue;
            }
            etc.set_passwd(file);
            let shown = || file.get(..4000).unwrap_or(file).escape_ascii().to_string();
            let glibc =
                |u: uzers::User| (u.name().as_bytes().to_vec(), u.uid(), u.primary_group_id());
            // By design: glibc accepts entries with the ID 4294967295, the parser does not.
            let usable = |u: &(Vec<u8>, u32, u32)| u.1 != u32::MAX && u.2 != u32::MAX;
            let ours = |u: passwd::User<'_>| (u.name.to_vec(), u.uid.as_raw(), u.gid.as_raw());
            for name in [
                "kvm", "kvm2", "other", "+kvm", "#kvm", " kvm", "kvm ", "+", "",
            ] {
                let want = uzers::get_user_by_name(name).map(glibc).filter(usable);
                found += usize::from(want.is_some());
                let got = passwd::by_name(file, name.as_bytes()).map(ours);
                assert_eq!(got, want, "getpwnam({name:?}) of {}", shown());
            }
            for uid in [0, 1, 5, 7, 9, 108, 424, 4_294_967_294] {
                let want = uzers::get_user_by_uid(uid).map(glibc).filter(usable);
                found += usize::from(want.is_some());
                let got = passwd::by_uid(file, Uid::from_raw(uid)).map(ours);
                assert_eq!(got, want, "getpwuid({uid}) of {}", shown());
            }
        }
        println!("{} passwd files compared, {found} users found", files.len());
        assert!(found > 500, "{found}");
    });
}
