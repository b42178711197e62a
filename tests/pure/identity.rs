//! The QEMU identity, computed from the files of the pod root.

use libvirt_kvm_init::config::{Given, Origin};
use libvirt_kvm_init::formats::qemu_conf::parse;
use libvirt_kvm_init::plan::qemu_identity::{Configured, Identity, IdentityError, identity, user};

const PASSWD: &str = "root:x:0:0::/root:/bin/sh\n\
    nova:x:42424:42424::/var/lib/nova:/bin/sh\n\
    twin:x:42424:7::/:/bin/sh\n\
    libvirt-qemu:x:64055:107::/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nkvm:x:108:nova,twin\nnova:x:42424:\nlibvirt-qemu:x:64055:\n\
    4242:x:5:\n";
const UBUNTU: &str = "ID=ubuntu\nID_LIKE=debian\n";
const DEBIAN: &str = "PRETTY_NAME=\"Debian\"\nID=debian\n";

struct Pod<'a> {
    conf: Option<&'a str>,
    passwd: &'a str,
    group: &'a str,
    os_release: &'a str,
    flags: (Option<&'a str>, Option<&'a str>),
}

const POD: Pod<'_> = Pod {
    conf: None,
    passwd: PASSWD,
    group: GROUP,
    os_release: DEBIAN,
    flags: (None, None),
};

fn resolve(pod: &Pod<'_>) -> Result<Identity, IdentityError> {
    let conf = pod.conf.map(|conf| parse(conf.as_bytes()).unwrap());
    let given = |flag: Option<&str>, name| {
        flag.map(|text| Given {
            text: text.to_owned(),
            origin: Origin::Flag(name),
        })
    };
    let flags = (
        given(pod.flags.0, "qemu-user"),
        given(pod.flags.1, "qemu-group"),
    );
    let configured = |given| Configured {
        given,
        conf: conf.as_ref(),
        conf_name: "qemu.conf",
    };
    let (passwd, os_release) = (pod.passwd.as_bytes(), Some(pod.os_release.as_bytes()));
    let user = user(&configured(flags.0.as_ref()), passwd, os_release)?;
    let group = configured(flags.1.as_ref());
    identity(&user, &group, pod.group.as_bytes(), passwd, os_release)
}

#[test]
fn qemu_conf_determines_the_identity() {
    // qemu.conf => user, uid, gid, groups
    type Row<'a> = (&'a str, Option<&'a str>, u32, u32, &'a [u32]);
    let table: [Row<'_>; 9] = [
        (
            "user = \"nova\"\ngroup = \"kvm\"\n",
            Some("nova"),
            42424,
            108,
            &[42424, 108],
        ),
        (
            "user = 'nova'\ngroup = '+108'\n",
            Some("nova"),
            42424,
            108,
            &[42424, 108],
        ),
        (
            "user = \"nova\"\ngroup = \"109\"\n",
            Some("nova"),
            42424,
            109,
            &[42424, 108, 109],
        ),
        // A numeric text that is also a name counts as the name, unless it starts with a plus.
        (
            "user = \"nova\"\ngroup = \"4242\"\n",
            Some("nova"),
            42424,
            5,
            &[42424, 108, 5],
        ),
        (
            "user = \"nova\"\ngroup = \"+4242\"\n",
            Some("nova"),
            42424,
            4242,
            &[42424, 108, 4242],
        ),
        // The first passwd name with the UID counts, whichever name is configured.
        (
            "user = \"twin\"\ngroup = \"kvm\"\n",
            Some("nova"),
            42424,
            108,
            &[42424, 108],
        ),
        // A UID without a passwd name has only the configured group.
        (
            "user = \"4242\"\ngroup = \"kvm\"\n",
            None,
            4242,
            108,
            &[108],
        ),
        (
            "user = \"root\"\ngroup = \"root\"\n",
            Some("root"),
            0,
            0,
            &[0],
        ),
        (
            "user = \"nova\"\nuser = \"root\"\ngroup = \"kvm\"\n",
            Some("nova"),
            42424,
            108,
            &[42424, 108],
        ),
    ];
    for (conf, name, uid, gid, groups) in table {
        let found = resolve(&Pod {
            conf: Some(conf),
            ..POD
        })
        .unwrap();
        assert_eq!(found.user.as_deref(), name.map(str::as_bytes), "{conf}");
        assert_eq!(
            (found.uid.as_raw(), found.gid.as_raw()),
            (uid, gid),
            "{conf}"
        );
        let found: Vec<_> = found.groups.iter().map(|gid| gid.as_raw()).collect();
        assert_eq!(found, groups, "{conf}");
    }
}

#[test]
fn distribution_defaults_apply_without_settings() {
    let red_hat = "root:x:0:0:::\nqemu:x:107:107:::\n";
    let both = "libvirt-qemu:x:64055:107:::\nqemu:x:107:107:::\n";
    let groups = "kvm:x:108:\nqemu:x:107:\nlibvirt-qemu:x:64055:\n";
    // passwd, os-release => uid and gid
    let table = [
        (PASSWD, DEBIAN, (64055, 64055)),
        (PASSWD, UBUNTU, (64055, 108)),
        (
            PASSWD,
            "ID=\"pop\"\nID_LIKE=\"ubuntu debian\"\n",
            (64055, 108),
        ),
        (
            red_hat,
            "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n",
            (107, 107),
        ),
        (red_hat, "", (107, 107)),
        (both, DEBIAN, (64055, 64055)),
        (both, "ID=fedora\n", (107, 107)),
    ];
    for (passwd, os_release, ids) in table {
        let pod = Pod {
            passwd,
            os_release,
            group: groups,
            ..POD
        };
        let found = resolve(&pod).unwrap();
        assert_eq!(
            (found.uid.as_raw(), found.gid.as_raw()),
            ids,
            "{passwd} {os_release}"
        );
    }
}

#[test]
fn flags_override_qemu_conf() {
    let conf = Some("user = \"root\"\ngroup = \"root\"\n");
    let flags = (Some("nova"), Some("+108"));
    let found = resolve(&Pod { conf, flags, ..POD }).unwrap();
    assert_eq!((found.uid.as_raw(), found.gid.as_raw()), (42424, 108));
}

#[test]
fn unresolvable_user_or_group_is_reported_with_its_origin() {
    let both = "libvirt-qemu:x:64055:107:::\nqemu:x:107:107:::\n";
    let none = "root:x:0:0:::\n";
    // pod => parts of the text, and whether the reason is only a missing user or group
    let table: [(Pod<'_>, &[&str], bool); 8] = [
        (
            Pod {
                conf: Some("\nuser = \"nava\"\n"),
                ..POD
            },
            &["qemu.conf:2: user", "`nava`", "etc/passwd"],
            true,
        ),
        (
            Pod {
                conf: Some("user = \"nova\"\ngroup = \"kvn\"\n"),
                ..POD
            },
            &["qemu.conf:2: group", "`kvn`", "etc/group"],
            true,
        ),
        (
            Pod {
                flags: (Some("nava"), None),
                ..POD
            },
            &["--qemu-user", "`nava`"],
            false,
        ),
        (
            Pod {
                flags: (Some("+-1"), None),
                ..POD
            },
            &["--qemu-user", "`+-1`"],
            false,
        ),
        (
            Pod {
                flags: (Some("4294967295"), None),
                ..POD
            },
            &["--qemu-user"],
            false,
        ),
        (
            Pod {
                passwd: none,
                ..POD
            },
            &["--qemu-user", "libvirt-qemu"],
            true,
        ),
        (
            Pod {
                passwd: both,
                os_release: "ID=arch\n",
                ..POD
            },
            &["ambiguous", "--qemu-user"],
            false,
        ),
        (
            Pod {
                os_release: "",
                ..POD
            },
            &["ambiguous", "--qemu-group"],
            false,
        ),
    ];
    for (pod, parts, absence) in table {
        let unknown = resolve(&pod).unwrap_err();
        let text = unknown.to_string();
        for part in parts {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(unknown.is_absence(), absence, "{text}");
    }
}
