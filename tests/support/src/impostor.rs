//! A process of an unprivileged user that looks like a libvirtd in a container: name, root, files and the node's device.
//! The files below its root belong to root; the process bind-mounts them in its own user and mount namespace.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::scratch;

/// The UID of the impostor, which owns no files of a test.
pub const UID: u32 = 1_951_600;

/// Runs in the impostor's namespaces: `$1` is the directory for its root, `$2` the file to use as its group file.
const SETUP: &str = r#"
    set -e
    mount -t tmpfs none "$1"
    cd "$1"
    mkdir etc etc/libvirt app dev
    for name in usr lib lib64 bin; do
        if [ -L /$name ]; then cp -P /$name .; elif [ -d /$name ]; then mkdir $name; mount --rbind /$name $name; fi
    done
    mount --rbind /dev dev
    : >etc/group
    mount --bind "$2" etc/group
    echo 'root:x:0:0::/:/bin/sh' >etc/passwd
    echo 'nova:x:42424:42424::/:/bin/sh' >>etc/passwd
    printf '%s\n' 'user = "nova"' 'group = "+108"' >etc/libvirt/qemu.conf
    # The executable has the expected name and is owned by root.
    : >app/libvirtd
    mount --bind "$(command -v sleep)" app/libvirtd
    echo up
"#;

/// The running impostor, killed on drop.
pub struct Impostor {
    child: Child,
    pid: u32,
}

impl Impostor {
    /// Starts the impostor with this file as its group file. `enter` is a command prefix that enters a PID namespace.
    pub fn start(enter: &[String], group: &Path) -> Self {
        Self::run(enter, group, "")
    }

    /// Starts an impostor that has another process repeatedly swap its group file between two files.
    pub fn flipping(enter: &[String], group: &Path, other: &Path) -> Self {
        let flip = format!(
            "(while :; do for file in '{}' '{}'; do
                 mount --bind \"$file\" etc/group && umount etc/group; umount etc/group
                 mount --bind \"$file\" etc/group
             done; done) >&- 2>&- &",
            other.display(),
            group.display()
        );
        Self::run(enter, group, &flip)
    }

    fn run(enter: &[String], group: &Path, more: &str) -> Self {
        let at = scratch().join(format!("impostor-{}", group.file_name().unwrap().display()));
        fs::create_dir_all(&at).unwrap();
        let script = format!("{SETUP}\n{more}\nexec chroot . /app/libvirtd 600");
        let id = UID.to_string();
        let mut words: Vec<String> = enter.to_vec();
        let user = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
        let namespaces = ["unshare", "--user", "--map-root-user", "--mount", "setsid"];
        words.extend(user.iter().chain(&namespaces).map(ToString::to_string));
        words.extend(["sh", "-c", &script, "sh"].map(ToOwned::to_owned));
        let mut cmd = Command::new(&words[0]);
        cmd.args(&words[1..]).arg(&at).arg(group);
        let mut child = cmd
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        child.stdout.as_mut().unwrap().read_exact(&mut up).unwrap();
        let named = || named(child.id());
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        let pid = loop {
            match named() {
                Some(pid) => break pid,
                None if std::time::Instant::now() > end => {
                    panic!("the impostor did not start libvirtd")
                }
                None => std::thread::sleep(std::time::Duration::from_millis(5)),
            }
        };
        Self { child, pid }
    }

    /// The process ID in the PID namespace of the test.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The root directory, in /proc.
    pub fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.pid))
    }
}

/// Finds the process named libvirtd among a process and its descendants.
fn named(pid: u32) -> Option<u32> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim_end() == "libvirtd" {
        return Some(pid);
    }
    let list = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace()
        .find_map(|pid| named(pid.parse().ok()?))
}

impl Drop for Impostor {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.pid.cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
