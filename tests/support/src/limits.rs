//! Restrictions for a command: failing system calls, limits of memory and processor time, another root, fewer
//! capabilities.
#![allow(unsafe_code)]

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Makes a system call fail with `errno` in a command, as an older kernel or a container runtime's filter does.
pub fn without_call(cmd: &mut Command, call: libc::c_long, errno: i32) -> &mut Command {
    let call = u32::try_from(call).unwrap();
    let errno = u32::try_from(errno).unwrap();
    let code = |op: u32| u16::try_from(op).unwrap();
    let step = |op: u32, k, jt, jf| libc::sock_filter {
        code: code(op),
        jt,
        jf,
        k,
    };
    let filter = [
        // The system call number is the first word of struct seccomp_data.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, call, 0, 1),
        step(
            libc::BPF_RET | libc::BPF_K,
            libc::SECCOMP_RET_ERRNO | errno,
            0,
            0,
        ),
        step(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let install = move || {
        let program = libc::sock_fprog {
            len: 4,
            filter: filter.as_ptr().cast_mut(),
        };
        // SAFETY: the program outlives the call, which copies it.
        let done = unsafe {
            libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
        };
        if done == 0 {
            Ok(())
        } else {
            Err(std::io::Error::last_os_error())
        }
    };
    // SAFETY: one system call, no allocation.
    unsafe { cmd.pre_exec(install) }
}

/// Limits the memory that a command can map, in bytes.
pub fn bounded_memory(cmd: &mut Command, bytes: u64) -> &mut Command {
    limited(cmd, libc::RLIMIT_AS as _, bytes)
}

/// Limits the processor time of a command to 20 s, more than reading its input needs.
pub fn bounded_cpu(cmd: &mut Command) -> &mut Command {
    limited(cmd, libc::RLIMIT_CPU as _, 20)
}

fn limited(cmd: &mut Command, resource: u32, most: u64) -> &mut Command {
    let limit = move || {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: reads a valid local struct.
        match unsafe { libc::setrlimit(resource as _, &raw const limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one system call.
    unsafe { cmd.pre_exec(limit) }
}

/// Runs a command with another root directory.
pub fn below<'a>(cmd: &'a mut Command, root: &Path) -> &'a mut Command {
    let root = root.to_owned();
    let change = move || {
        nix::unistd::chroot(&root)?;
        nix::unistd::chdir("/")?;
        Ok(())
    };
    // SAFETY: two system calls; the paths are short enough for nix not to allocate.
    unsafe { cmd.pre_exec(change) }
}

/// Drops a capability from the bounding set of a command.
pub fn without_capability(cmd: &mut Command, capability: caps::Capability) -> &mut Command {
    let drop =
        move || caps::drop(None, caps::CapSet::Bounding, capability).map_err(std::io::Error::other);
    // SAFETY: one prctl(2).
    unsafe { cmd.pre_exec(drop) }
}
