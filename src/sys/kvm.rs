//! The major and minor number of KVM, and the first requests that QEMU sends to it.

use std::os::fd::BorrowedFd;

use super::syscalls;

/// Major number of the misc devices (include/uapi/linux/major.h, `MISC_MAJOR`).
pub const MAJOR: u64 = 10;
/// Minor number of KVM (include/linux/miscdevice.h, `KVM_MINOR`).
pub const MINOR: u64 = 232;
/// The only version that QEMU accepts (include/uapi/linux/kvm.h, `KVM_API_VERSION`).
pub const API_VERSION: i32 = 12;

/// `_IO(KVMIO, 0x00)`
const KVM_GET_API_VERSION: u32 = 0xae00;
/// `_IO(KVMIO, 0x01)`
const KVM_CREATE_VM: u32 = 0xae01;

/// The API version of an open KVM device.
///
/// # Errors
/// `ENOTTY` if the descriptor is not KVM.
pub fn api_version(fd: BorrowedFd<'_>) -> nix::Result<i32> {
    super::retry(|| syscalls::ioctl_zero(fd, KVM_GET_API_VERSION))
}

/// Creates a virtual machine and closes it at once. `EINTR` is retried, as QEMU does.
///
/// # Errors
/// `EBUSY` if another hypervisor uses the virtualization extensions of the processor.
pub fn create_vm(fd: BorrowedFd<'_>) -> nix::Result<()> {
    let vm = super::retry(|| syscalls::ioctl_zero(fd, KVM_CREATE_VM))?;
    let _ = nix::unistd::close(vm);
    Ok(())
}
