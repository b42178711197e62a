//! Compares the qemu.conf parser with libvirt's own.
//!
//! libvirt.so exports its parser for its daemons (symbol version LIBVIRT_PRIVATE). The test loads the distribution's
//! library and parses the same bytes with it. Needs libvirt0:
//! `cargo test --test libvirt qemu_conf_oracle::`.
//!
//! The test calls `virConfReadFile`, like libvirtd, because `virConfReadString` would stop at a NUL.
#![allow(unsafe_code)] // C functions of a library that is loaded at run time
#![allow(clippy::missing_transmute_annotations)] // the fields give the types

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;

use libvirt_kvm_init::formats::qemu_conf::{
    IdSpec, MAX_SIZE, Setting, SyntaxError, id_spec, parse,
};

use support::random::Random;

type ErrorFunc = unsafe extern "C" fn(*mut c_void, *mut c_void);

unsafe extern "C" fn be_quiet(_: *mut c_void, _: *mut c_void) {}

/// The functions of the library, and a file for it to read.
struct Libvirt {
    read_file: unsafe extern "C" fn(*const c_char, c_uint) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void) -> c_int,
    string: unsafe extern "C" fn(*mut c_void, *const c_char, *mut *mut c_char) -> c_int,
    user_id: unsafe extern "C" fn(*const c_char, *mut libc::uid_t) -> c_int,
    group_id: unsafe extern "C" fn(*const c_char, *mut libc::gid_t) -> c_int,
    last_error: unsafe extern "C" fn() -> *const c_char,
    file: File,
    path: CString,
    _dir: tempfile::TempDir,
}

/// The values of `user` and `group` that libvirt reads.
type Found = (Option<Vec<u8>>, Option<Vec<u8>>);

/// libvirt's error: the line, if the message has one, and the text.
type Refused = (Option<usize>, String);

impl Libvirt {
    fn load() -> Self {
        // SAFETY: loading the library runs its constructors, which have no preconditions.
        let library = unsafe { libc::dlopen(c"libvirt.so.0".as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null(), "needs libvirt.so.0 (Debian: libvirt0)");
        let symbol = |name: &CStr| {
            // SAFETY: the handle is a loaded library and the name a C string.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            assert!(!symbol.is_null(), "{name:?} is not exported");
            symbol
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu.conf");
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        // SAFETY: the types are those of the declarations in libvirt's src/util/virconf.h,
        // virutil.h, virerror.h and libvirt-host.h.
        unsafe {
            let initialize: unsafe extern "C" fn() -> c_int =
                std::mem::transmute(symbol(c"virInitialize"));
            assert_eq!(initialize(), 0);
            let set_error_func: unsafe extern "C" fn(*mut c_void, ErrorFunc) =
                std::mem::transmute(symbol(c"virSetErrorFunc"));
            set_error_func(std::ptr::null_mut(), be_quiet);
            Self {
                read_file: std::mem::transmute(symbol(c"virConfReadFile")),
                free: std::mem::transmute(symbol(c"virConfFree")),
                string: std::mem::transmute(symbol(c"virConfGetValueString")),
                user_id: std::mem::transmute(symbol(c"virGetUserID")),
                group_id: std::mem::transmute(symbol(c"virGetGroupID")),
                last_error: std::mem::transmute(symbol(c"virGetLastErrorMessage")),
                file,
                path: CString::new(path.as_os_str().as_bytes()).unwrap(),
                _dir: dir,
            }
        }
    }

    fn refused(&self) -> Refused {
        // SAFETY: returns a C string that is valid until the thread's next error.
        let message = unsafe { CStr::from_ptr((self.last_error)()) };
        let message = message.to_str().unwrap();
        let path = self.path.to_str().unwrap();
        let place = message.split_once(path).map_or(message, |(_, place)| place);
        let mut parts = place.trim_start_matches(':').splitn(2, ':');
        let line = parts.next().and_then(|line| line.parse().ok());
        let words = line.and(parts.next()).unwrap_or(message);
        (line, words.trim().to_owned())
    }

    fn parse(&self, text: &[u8]) -> Result<Found, Refused> {
        self.file.set_len(0).unwrap();
        self.file.write_all_at(text, 0).unwrap();
        // SAFETY: the path is a C string; the result is checked before it is used.
        let conf = unsafe { (self.read_file)(self.path.as_ptr(), 0) };
        if conf.is_null() {
            return Err(self.refused());
        }
        let get = |name: &CStr| {
            let mut value = std::ptr::null_mut();
            // SAFETY: the handle is valid; the value is a C string that the caller frees, or null.
            unsafe {
                match (self.string)(conf, name.as_ptr(), &raw mut value) {
                    0 => Ok(None),
                    1 => {
                        let text = CStr::from_ptr(value).to_bytes().to_vec();
                        libc::free(value.cast());
                        Ok(Some(text))
                    }
                    _ => Err(self.refused()),
                }
            }
        };
        // libvirtd reads the settings in this order and stops at the first error.
        let found = get(c"user").and_then(|user| Ok((user, get(c"group")?)));
        // SAFETY: the handle is not used again.
        unsafe { (self.free)(conf) };
        found
    }

    /// The ID that `virGetUserID` and `virGetGroupID` return for a value; both must agree.
    fn id(&self, value: &[u8]) -> Option<u32> {
        let text = CString::new(value).unwrap();
        let (mut uid, mut gid) = (0, 0);
        // SAFETY: C strings in, an integer out.
        let results = unsafe {
            (
                (self.user_id)(text.as_ptr(), &raw mut uid),
                (self.group_id)(text.as_ptr(), &raw mut gid),
            )
        };
        assert_eq!(results.0, results.1, "{text:?}");
        assert_eq!(uid, gid, "{text:?}");
        (results.0 == 0).then_some(uid)
    }
}

/// libvirt's text for an error of our parser.
fn words(error: &SyntaxError) -> &'static str {
    match error.expected {
        "a name" => "expecting a name",
        "an assignment" => "expecting an assignment",
        "a value" => "expecting a value",
        "a separator" => "expecting a separator",
        "a separator in the list" => "expecting a separator in list",
        "the end of the list" => "list is not closed with ]",
        "the end of the string" => "unterminated string",
        "a digit" => "unterminated number",
        "a string" => "expected a string for",
        "at most 10 MiB" => "too large",
        other => panic!("no libvirt text for {other}"),
    }
}

/// Compares both parsers; returns whether the file was accepted, and whether it sets a user or group.
fn compare(libvirt: &Libvirt, text: &[u8]) -> (bool, bool) {
    let shown = || text.get(..2000).unwrap_or(text).escape_ascii().to_string();
    let theirs = libvirt.parse(text);
    let ours = parse(text);
    match (&ours, &theirs) {
        (Ok(ours), Ok(theirs)) => {
            let value = |s: &Option<Setting>| s.as_ref().map(|s| s.value.clone());
            assert_eq!(
                (value(&ours.user), value(&ours.group)),
                *theirs,
                "{}",
                shown()
            );
            (true, ours.user.is_some() || ours.group.is_some())
        }
        (Err(ours), Err((line, message))) => {
            assert!(
                message.contains(words(ours)),
                "{}: {ours}, but {message}",
                shown()
            );
            // libvirt reports no line for a setting of the wrong type or a file that is too large.
            assert_eq!(
                *line,
                line.map(|_| ours.line),
                "{}: {ours}, {message}",
                shown()
            );
            assert_eq!(
                line.is_none(),
                ["a string", "at most 10 MiB"].contains(&ours.expected)
            );
            if ours.expected == "a string" {
                let key = ours.key.as_deref().unwrap();
                assert!(
                    message.contains(&format!("'{key}'")),
                    "{ours}, but {message}"
                );
            }
            (false, false)
        }
        _ => panic!("{}: ours {ours:?}, libvirt's {theirs:?}", shown()),
    }
}

const TOKENS: &[&[u8]] = &[
    b"user",
    b"group",
    b"user",
    b"group",
    b"x",
    b"security_driver",
    b"_y",
    b"9z",
    b"=",
    b"=",
    b"=",
    b" ",
    b"\t",
    b"\n",
    b"\n",
    b"\r",
    b"\r\n",
    b";",
    b"#",
    b"# c",
    b"'",
    b"\"",
    b"\"\"\"",
    b"\"\"\"",
    b"[",
    b"]",
    b",",
    b"'nova'",
    b"\"kvm\"",
    b"\"+108\"",
    b"'a\nb'",
    b"\"\"\"a\nb\"\"\"",
    b"12",
    b"-1",
    b"+7",
    b"-",
    b"99999999999999999999",
    b"1.5",
    b"\0",
    b"\\",
    b"\xff",
    b"\x0b",
    b".",
    b"nova",
];
const VALUES: &[&[u8]] = &[
    b"'nova'",
    b"\"nova\"",
    b"\"\"\"no\nva\"\"\"",
    b"''",
    b"\"\"",
    b"\"\"\"\"\"\"",
    b"'+108'",
    b"108",
    b"-1",
    b"+3",
    b"[]",
    b"['a']",
    b"[ 'a', \"b\",\n 3, ]",
    b"[['a'],[]]",
    b"[1,,2]",
    b"['a' 'b']",
    b"nova",
    b"'a",
    b"\"a'",
    b"'a\"",
    b"'#;='",
    b"\"a\0b\"",
    b"'\xc3\xa9'",
    b"\"\"\"a\"b\"\"c\"\"\"",
    b"\"\"\"a\"\"\"\"",
    b"",
    b"- 1",
    b"1a",
    b"[\n\n",
    b"'a'b",
];

/// A file of mostly valid statements.
fn statements(random: &mut Random) -> Vec<u8> {
    let mut file = Vec::new();
    for _ in 0..random.below(6) {
        file.extend(random.pick::<&[u8]>(&[b"", b"", b" ", b"\n", b"# user = 'x'\n", b"\t"]));
        file.extend(random.pick::<&[u8]>(&[
            b"user", b"user", b"group", b"group", b"x_1", b"User", b"1", b"",
        ]));
        file.extend(random.pick::<&[u8]>(&[b" = ", b"=", b"\t=\t", b"= ", b" ", b"=\n"]));
        let good = random.below(5) > 0;
        file.extend(random.pick(if good { &VALUES[..7] } else { VALUES }));
        file.extend(random.pick::<&[u8]>(&[
            b"\n", b"\n", b"\r\n", b" # c\n", b"#\n", b";", b" ; ", b"", b"\r",
        ]));
    }
    file
}

#[test]
fn qemu_conf_is_parsed_as_by_libvirt() {
    let libvirt = Libvirt::load();
    let mut files: Vec<Vec<u8>> = vec![vec![]];
    for token in TOKENS {
        files.push(token.to_vec());
        for around in TOKENS {
            files.push([*token, *around].concat());
            files.push([b"user='a'", *token, *around].concat());
            files.push([b"user=", *token, *around].concat());
            files.push([b"x=[", *token, *around, b"]\nuser='b'"].concat());
        }
    }
    for first in VALUES {
        for second in VALUES {
            files.push([b"user = ", *first, b"\ngroup = ", *second, b"\n"].concat());
            files.push([b"user=", *first, b";user=", *second].concat());
        }
    }
    // A file like the distribution's, each prefix of it, and each variant without one byte.
    let whole: &[u8] = b"# Master configuration file\n\n#user = \"root\"\n\nuser = \"nova\" # the one\n\
        group = 'kvm'\ncgroup_device_acl = [\n    \"/dev/null\", \"/dev/full\",\n    \"/dev/kvm\",\n]\n\
        migration_port_min = 49152\nnvram = \"\"\"a\n\"b\"\"\"\n";
    for end in 0..=whole.len() {
        files.push(whole[..end].to_vec());
        files.push([&whole[..end], whole.get(end + 1..).unwrap_or_default()].concat());
    }
    let mut random = Random(0x716d_7500_0001);
    for _ in 0..3000 {
        files.push(statements(&mut random));
        let mut tokens = Vec::new();
        for _ in 0..random.below(12) {
            tokens.extend(random.pick(TOKENS));
        }
        files.push(tokens);
        // A valid file with one byte replaced.
        let mut mutated = whole.to_vec();
        let at = random.below(mutated.len());
        mutated[at] = random.pick(TOKENS)[0];
        files.push(mutated);
    }
    files.push(vec![b'#'; MAX_SIZE]);
    files.push(vec![b'#'; MAX_SIZE + 1]);
    let results: Vec<_> = files.iter().map(|file| compare(&libvirt, file)).collect();
    let accepted = results.iter().filter(|r| r.0).count();
    let set = results.iter().filter(|r| r.1).count();
    println!(
        "{} files, {accepted} accepted, {set} of them with user or group",
        files.len()
    );
    assert!(set > 1000 && files.len() - accepted > 1000);
}

#[test]
fn ids_are_parsed_as_by_libvirt() {
    const PARTS: &[&[u8]] = &[
        b"0",
        b"1",
        b"108",
        b"4294967295",
        b"4294967296",
        b"4294967188",
        b"4294967294",
        b"42949672",
        b"18446744073709551615",
        b"18446744073709551616",
        b"18446744073709551508",
        b"+",
        b"-",
        b" ",
        b"\t",
        b"\r",
        b"\x0c",
        b"\n",
        b"x",
        b"0x10",
        b".",
        b"",
        b"\xff",
    ];
    let libvirt = Libvirt::load();
    let mut values: Vec<Vec<u8>> = Vec::new();
    for first in PARTS {
        for second in PARTS {
            for third in PARTS {
                values.push([*first, *second, *third].concat());
            }
        }
    }
    let mut ids = 0;
    for value in &values {
        let theirs = libvirt.id(value);
        // No user or group on any machine has such a name, so libvirt treats the text as a numeric ID.
        let ours = match id_spec(value) {
            Some(IdSpec::Number(id)) => Some(id),
            Some(IdSpec::NameOrNumber { name, number }) => {
                assert_eq!(name, value);
                number
            }
            None => None,
        };
        // libvirt accepts 4294967295; our parser rejects it by design.
        let theirs = theirs.filter(|id| *id != u32::MAX);
        assert_eq!(ours, theirs, "{}", value.escape_ascii());
        ids += usize::from(ours.is_some());
    }
    println!("{} values, {ids} of them IDs", values.len());
    assert!(ids > 200);
}
