//! A guest that needs KVM, the accounts of an image, and helpers that start the guest with libvirtd.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crate::run;

/// The GID that the node's udev sets on the device.
pub const NODE: u32 = 108;
/// The GID of kvm in the image.
pub const IMAGE: u32 = 424;
/// The UID and GID of the image's nova.
pub const NOVA: u32 = 42424;
/// QEMU's error in the incident.
pub const ERROR: &str = "Could not access KVM kernel module: Permission denied";

/// A domain without disks and firmware, and with a CPU model that needs neither vmx nor svm.
pub const DOMAIN: &str = "<domain type='kvm'>
  <name>guest</name>
  <uuid>6b7ab1f6-0d33-4d4e-9c1a-5b9f2a0c4e11</uuid>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='q35'>hvm</type></os>
  <cpu mode='custom' match='exact' check='none'>
    <model fallback='allow'>qemu64</model>
    <feature policy='disable' name='svm'/>
  </cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
";

/// The commands of the chart's libvirt.sh that run after every init step.
pub const CHART: &str = "if [ -c /dev/kvm ]; then chmod 660 /dev/kvm; chown root:kvm /dev/kvm; fi";

/// The image's qemu.conf.
pub const QEMU_CONF: &str =
    "user = \"nova\"\ngroup = \"kvm\"\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\n";
/// The image's libvirtd.conf.
pub const LIBVIRTD_CONF: &str = "auth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n";

/// The image's group file and passwd file. They keep the distribution's lines, since libvirtd also looks up its built-in
/// default user and group.
pub fn accounts() -> (String, String) {
    let keep = |file: &str| -> String {
        let text = fs::read_to_string(file).unwrap();
        text.lines()
            .filter(|l| {
                let mut fields = l.split(':');
                let (name, id) = (
                    fields.next().unwrap_or_default(),
                    fields.nth(1).unwrap_or_default(),
                );
                !["kvm", "nova"].contains(&name) && !["108", "424", "42424"].contains(&id)
            })
            .map(|l| format!("{l}\n"))
            .collect()
    };
    (
        keep("/etc/group") + &format!("kvm:x:{IMAGE}:nova\nnova:x:{NOVA}:\n"),
        keep("/etc/passwd") + &format!("nova:x:{NOVA}:{NOVA}::/var/lib/nova:/bin/sh\n"),
    )
}

/// Creates the directories `bin` and `drivers`, for PATH and `LIBVIRT_DRIVER_DIR`, with only the QEMU driver and only
/// one QEMU.
pub fn only_qemu(directory: &Path) {
    let (bin, drivers) = (directory.join("bin"), directory.join("drivers"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&drivers).unwrap();
    symlink(
        "/usr/bin/qemu-system-x86_64",
        bin.join("qemu-system-x86_64"),
    )
    .unwrap();
    symlink(qemu_driver(), drivers.join("libvirt_driver_qemu.so")).unwrap();
}

/// The path of libvirt's QEMU driver in this distribution.
fn qemu_driver() -> PathBuf {
    ["/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib"]
        .iter()
        .map(|dir| Path::new(dir).join("libvirt/connection-driver/libvirt_driver_qemu.so"))
        .find(|path| path.is_file())
        .expect("this tier needs libvirt's QEMU driver, which this machine does not have")
}

/// The IDs of the guest's QEMU process.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    /// The value of all four UIDs.
    pub uid: u32,
    /// The value of all four GIDs.
    pub gid: u32,
    /// Sorted.
    pub groups: Vec<u32>,
}

/// The guest of `DOMAIN`, and the paths of its libvirtd.
pub struct Guest {
    /// libvirtd's /run/libvirt.
    pub run: PathBuf,
    /// libvirtd's /var/log/libvirt.
    pub logs: PathBuf,
    /// libvirtd's log file.
    pub messages: PathBuf,
    /// The /proc of libvirtd's PID namespace.
    pub proc: PathBuf,
}

impl Guest {
    /// libvirtd's socket.
    pub fn socket(&self) -> PathBuf {
        self.run.join("libvirt-sock")
    }

    /// The content of libvirtd's log.
    pub fn said(&self) -> String {
        fs::read_to_string(&self.messages).unwrap_or_default()
    }

    fn virsh(&self, args: &[&str]) -> (i32, String, String) {
        let began = Instant::now();
        let socket = self.socket();
        let uri = format!("qemu+unix:///system?socket={}", socket.display());
        let out = run(Command::new("timeout")
            .args(["-k", "5", "180", "virsh", "-q", "-c", &uri])
            .args(args)
            .env("LC_ALL", "C"));
        eprintln!(
            "virsh {}: {} after {:.1?}",
            args.join(" "),
            out.0,
            began.elapsed()
        );
        out
    }

    /// Asserts that the guest fails to start with the error of the incident.
    pub fn fails(&self, when: &str) {
        self.fails_with(ERROR, when);
    }

    /// Asserts that the guest fails to start with this error of QEMU.
    pub fn fails_with(&self, error: &str, when: &str) {
        let (code, _, stderr) = self.virsh(&["start", "guest"]);
        let log = fs::read_to_string(self.logs.join("qemu/guest.log")).unwrap_or_default();
        assert_ne!(code, 0, "{when}: the guest must not start");
        assert!(
            stderr.contains(error) || log.contains(error),
            "{when}: another error\n{stderr}\n{log}"
        );
    }

    /// Asserts that the guest starts and runs, destroys it, and returns the identity of its QEMU.
    pub fn starts(&self, when: &str) -> Identity {
        let (code, _, stderr) = self.virsh(&["start", "guest"]);
        assert_eq!(code, 0, "{when}: {stderr}\n{}", self.said());
        let (_, state, _) = self.virsh(&["domstate", "guest"]);
        assert_eq!(state.trim(), "running", "{when}");
        let identity = self.identity();
        eprintln!("{when}: QEMU runs as {identity:?}");
        let (code, _, stderr) = self.virsh(&["destroy", "guest"]);
        assert_eq!(code, 0, "{when}: {stderr}");
        identity
    }

    /// The identity in /proc/PID/status of the guest's QEMU.
    fn identity(&self) -> Identity {
        let pid = fs::read_to_string(self.run.join("qemu/guest.pid")).unwrap();
        let status = fs::read_to_string(self.proc.join(pid.trim()).join("status")).unwrap();
        let ids = |key: &str| -> Vec<u32> {
            let line = status.lines().find_map(|l| l.strip_prefix(key)).unwrap();
            line.split_whitespace()
                .map(|n| n.parse().unwrap())
                .collect()
        };
        let (uid, gid, mut groups) = (ids("Uid:"), ids("Gid:"), ids("Groups:"));
        assert!(
            uid.iter().all(|u| u == &uid[0]) && gid.iter().all(|g| g == &gid[0]),
            "{status}"
        );
        assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
        groups.sort_unstable();
        Identity {
            uid: uid[0],
            gid: gid[0],
            groups,
        }
    }
}
