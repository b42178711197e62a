//! Builds observations for the tests of the plan.

use std::sync::Arc;

use libvirt_kvm_init::config::PodRoot;
use libvirt_kvm_init::formats::udev::own_rule::Rules;
use libvirt_kvm_init::formats::udev::{Predictions, RuleFile, Udevd};
use libvirt_kvm_init::observe::group_db::GroupDb;
use libvirt_kvm_init::observe::view::View;
use libvirt_kvm_init::observe::{DeviceState, Driver, Host, Observation, Pod};
use libvirt_kvm_init::sys::device::DeviceStat;
use nix::sys::stat::SFlag;
use nix::unistd::{Gid, Uid};

/// A device with owner 0, this GID and mode 0660.
pub fn device(gid: u32) -> DeviceState {
    DeviceState {
        facts: DeviceStat {
            kind: SFlag::S_IFCHR,
            major: 10,
            minor: 232,
            uid: Uid::from_raw(0),
            gid: Gid::from_raw(gid),
            mode: 0o660,
            inode: (1, 2),
            ctime: (0, 0),
        },
        acl: None,
        nodev: false,
        unmapped: false,
    }
}

/// A node with these group lines after root's, these udev rules and systemd 252; `gid` is the device's GID.
pub fn host(groups: &str, rules: Vec<RuleFile>, gid: Option<u32>) -> Host {
    let mut host = Host {
        root: "/host".into(),
        db: GroupDb {
            files: vec![("etc/group", format!("root:x:0:\n{groups}").into_bytes())],
            ..GroupDb::default()
        },
        group_files: Vec::new(),
        device: gid.map(|gid| device(gid).facts),
        udev: Predictions::default(),
        others: None,
        slot: None,
        udevd: Udevd {
            version: Some(252),
            ..Udevd::default()
        },
        rules: Rules {
            files: rules,
            hidden: None,
        },
        passwd: Vec::new(),
        view: View::Whole,
        unseen: Vec::new(),
        not_shown: Vec::new(),
    };
    host.foresee();
    host
}

/// This node and a pod with root `root`, these group lines after root's and the QEMU user nova.
pub fn observation(host: Host, root: &str, groups: &str) -> Observation {
    let device = host.device.map(|stat| device(stat.gid.as_raw()));
    let driver = match device {
        Some(_) => Driver::Present,
        None => Driver::Absent,
    };
    Observation {
        device_path: "/dev/kvm".into(),
        device_explicit: false,
        host: Some(host),
        pod: Pod {
            root: PodRoot::at(root.into()),
            is_host: false,
            etc: None,
            group: Some(Arc::new(format!("root:x:0:\n{groups}").into_bytes())),
            group_stamp: None,
            out_path: None,
            group_out: None,
            passwd: b"root:x:0:0:::\nnova:x:42424:42424:::\n".to_vec(),
            qemu_conf: Some(b"user = \"nova\"\ngroup = \"kvm\"\n".to_vec()),
            qemu_conf_name: "qemu.conf".to_owned(),
            os_release: None,
            nscd: None,
        },
        device,
        driver,
        doubt: None,
    }
}
