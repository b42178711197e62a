use super::*;

/// User and group, each with its line; `-` if it is not set.
fn both(file: &[u8]) -> Result<String, SyntaxError> {
    let show = |setting: Option<Setting>| match setting {
        Some(Setting { value, line }) => format!("{line} {}", value.escape_ascii()),
        None => "-".to_owned(),
    };
    parse(file).map(|conf| format!("{} {}", show(conf.user), show(conf.group)))
}

#[test]
fn finds_the_first_user_and_group() {
    for (file, want) in [
        (&b""[..], "- -"),
        (b"# user = \"a\"\n", "- -"),
        (b"#\n\n#", "- -"),
        (b"user = \"nova\"\ngroup = \"kvm\"\n", "1 nova 2 kvm"),
        (b"user='nova'", "1 nova -"),
        (b"\n\r\n \tuser\t=\t\"a'b\" # c", "3 a\\'b -"),
        (b"user='a\"b\\';group=\"\"", "1 a\\\"b\\\\ 1 "),
        (b"user=\"a\";\n\n group=\"b\";", "1 a 3 b"),
        (b"user=\"a\"\rgroup=\"b\"\r\n", "1 a 1 b"),
        (b"user=\"a\"\nuser=7\nuser=\"b\"", "1 a -"),
        (b"x=\"\"\"a\nb\"c\"\"\"\ngroup=\"\"\"\"\"\" ", "- 3 "),
        (b"l = [ \"a\",\n 'b', [1,-2,[]],]\nuser='c'", "3 c -"),
        (
            b"l=[\n]\nl=[]#\nUser='a'\nuser_='b'\nuser='+108'",
            "6 +108 -",
        ),
        (b"x=1 #'\ny=-99999999999999999999\nz=+0;user='a'", "3 a -"),
        (b"user='a\0b'", "1 a -"),
        (b"user='\xff'", "1 \\xff -"),
    ] {
        assert_eq!(both(file).as_deref(), Ok(want), "{}", file.escape_ascii());
    }
}

#[test]
fn reports_line_and_setting_where_libvirt_refuses_the_file() {
    for (file, line, key, expected) in [
        (&b"\n"[..], 2, "", "a name"),
        (b" ", 1, "", "a name"),
        (b"#\n=", 2, "", "a name"),
        (b"_user='a'", 1, "", "a name"),
        (b";", 1, "", "a name"),
        (b"user='a';;", 1, "", "a name"),
        (b"user", 1, "user", "an assignment"),
        (b"user\n='a'", 1, "user", "an assignment"),
        (b"us-er='a'", 1, "us", "an assignment"),
        (b"user=", 1, "user", "a value"),
        (b"user=\n'a'", 1, "user", "a value"),
        (b"user=nova", 1, "user", "a value"),
        (b"user='a", 1, "user", "the end of the string"),
        (b"user=\"a\n\"", 1, "user", "the end of the string"),
        (b"\nuser=\"\"\"a\nb\"\"", 3, "user", "the end of the string"),
        (b"user=\"\"\"\"\"\"", 1, "user", "a separator"),
        (b"x=- 1", 1, "x", "a digit"),
        (b"x=1y", 1, "x", "a separator"),
        (b"user='a' 'b'", 1, "user", "a separator"),
        (b"x=['a' 'b']", 1, "x", "a separator in the list"),
        (b"x=[1\n2]", 2, "x", "a separator in the list"),
        (b"x=[,]", 1, "x", "a value"),
        (b"x=[1,,]", 1, "x", "a value"),
        (b"x=[1,#\n2]", 1, "x", "a value"),
        (b"x=[", 1, "x", "the end of the list"),
        (b"x=[[1]", 1, "x", "the end of the list"),
        (b"x=[1,", 1, "x", "a value"),
        (b"x=[1]]", 1, "x", "a separator"),
        (b"\nuser=1", 2, "user", "a string"),
        (b"group=['kvm']", 1, "group", "a string"),
        (b"group=['kvm']\nuser=1", 2, "user", "a string"),
        (b"user=1\nx", 2, "x", "an assignment"),
        (b"user='a'\0", 1, "user", "a separator"),
    ] {
        let want = SyntaxError {
            line,
            key: (!key.is_empty()).then(|| key.to_owned()),
            expected,
        };
        assert_eq!(both(file), Err(want), "{}", file.escape_ascii());
    }
    let error = parse(b"user = nova").unwrap_err().to_string();
    assert_eq!(error, "line 1: expected a value in the setting 'user'");
}

#[test]
fn accepts_10_mib_and_any_depth_of_lists() {
    let mut file = vec![b'#'; MAX_SIZE];
    assert_eq!(parse(&file), Ok(QemuConf::default()));
    file.push(b'#');
    assert_eq!(parse(&file).unwrap_err().expected, "at most 10 MiB");
    let deep = [b"x=", &b"[".repeat(1_000_000)[..], &b"]".repeat(1_000_000)].concat();
    assert_eq!(parse(&deep), Ok(QemuConf::default()));
}

#[test]
fn reads_ids_as_libvirt_does() {
    use IdSpec::{NameOrNumber, Number};
    let name = |name, number| Some(NameOrNumber { name, number });
    for (value, want) in [
        (&b""[..], None),
        (b"nova", name(b"nova", None)),
        (b"108", name(b"108", Some(108))),
        (b"0", name(b"0", Some(0))),
        (b" 0108", name(b" 0108", Some(108))),
        (b"108 ", name(b"108 ", None)),
        (b"-108", name(b"-108", Some(4_294_967_188))),
        (b"-4294967188", name(b"-4294967188", Some(108))),
        (b"-1", name(b"-1", None)),
        (b"4294967295", name(b"4294967295", None)),
        (b"4294967296", name(b"4294967296", None)),
        (b"+108", Some(Number(108))),
        (b"+ 108", Some(Number(108))),
        (b"++108", Some(Number(108))),
        (b"+-0", Some(Number(0))),
        (b"+4294967294", Some(Number(4_294_967_294))),
        (b"+4294967295", None),
        (b"+-1", None),
        (b"+-4294967296", None),
        (b"+18446744073709551616", None),
        (b"+-18446744073709551616", None),
        (b"+", None),
        (b"+nova", None),
        (b"+0x10", None),
    ] {
        assert_eq!(id_spec(value), want, "{}", value.escape_ascii());
    }
}

#[test]
fn detects_a_device_list_that_excludes_kvm() {
    let acl = "user='a'\ncgroup_device_acl = [ '/dev/null',\n \"/dev/full\" ]\n";
    let open = "namespaces=[]\ncgroup_controllers=['cpu']\n";
    for (file, want) in [
        (acl.to_owned(), Some(2)),
        ("cgroup_device_acl=[]".to_owned(), Some(1)),
        (
            "cgroup_device_acl=['/dev/null', '/dev/kvm',]".to_owned(),
            None,
        ),
        ("cgroup_device_acl=[['/dev/kvm']]".to_owned(), Some(1)),
        ("#cgroup_device_acl=[]\n".to_owned(), None),
        // The first setting counts.
        (format!("cgroup_device_acl=['/dev/kvm']\n{acl}"), None),
        // The device cgroup alone or the mount namespace alone still enforces the list.
        (format!("namespaces=[]\n{acl}"), Some(3)),
        (format!("cgroup_controllers=['cpu']\n{acl}"), Some(3)),
        (
            format!("namespaces=['mount']\ncgroup_controllers=[]\n{acl}"),
            Some(4),
        ),
        (format!("{open}cgroup_controllers=['devices']\n{acl}"), None),
        (format!("{open}{acl}"), None),
    ] {
        assert_eq!(
            parse(file.as_bytes()).unwrap().keeps_kvm_out,
            want,
            "{file}"
        );
    }
}
