//! One snapshot of every fact that a decision rests on. Nothing here decides or changes anything.

pub mod daemons;
mod device;
mod doubt;
pub mod group_db;
mod host;
pub mod host_root;
pub mod libvirtd;
mod pod;
pub mod udev_files;
pub mod view;

use std::path::PathBuf;

use crate::config::Sources;
use crate::error::Result;
use crate::sys::device::Device;
#[cfg(feature = "watch")]
use crate::sys::device::DeviceStat;
#[cfg(feature = "watch")]
use crate::sys::root::Root;
use device::{driver, node};
use doubt::doubt;
use host_root::HostRoot;
use pod::{pod, pod_root_error};

pub use device::{DeviceState, Driver, directories_above, is_no_driver};
pub use doubt::{Doubt, OtherDevice};
pub use host::Host;
#[cfg(feature = "watch")]
pub use pod::group_file_stands;
pub use pod::{GROUP_FILE, Pod};

/// Everything that was seen.
#[derive(Debug)]
pub struct Observation {
    /// The device's path.
    pub device_path: PathBuf,
    /// Whether that was named, not assumed.
    pub device_explicit: bool,
    /// The node, if it can be seen from here.
    pub host: Option<Host>,
    /// The pod root.
    pub pod: Pod,
    /// What stands at the device's path.
    pub device: Option<DeviceState>,
    /// Whether a KVM driver is registered.
    pub driver: Driver,
    /// Why a proof may say nothing of the libvirtd that runs.
    pub doubt: Option<Doubt>,
}

/// Looks at everything. The second value is the device, found and still unopened, for the steps
/// that change it.
///
/// # Errors
/// [`Error::Usage`](crate::error::Error::Usage) for what was given and is not there; otherwise the call that failed.
pub fn observe(sources: &Sources) -> Result<(Observation, Option<Device>)> {
    let host_root = match host_root::find(sources.host_root.as_deref()) {
        Err(_) if sources.host_root_optional => HostRoot::Nowhere,
        found => found?,
    };
    match &host_root {
        HostRoot::At(root) => log::debug!("host root: {}", root.path().display()),
        HostRoot::Nowhere => log::debug!("host root: none is seen from here"),
    }
    let pod_root = sources.pod_root.open();
    let pod_root = pod_root.map_err(|error| pod_root_error(&sources.pod_root, error))?;
    let host = match &host_root {
        HostRoot::At(root) => Some(Host::observe(root, sources.rule_slot)?),
        HostRoot::Nowhere => None,
    };
    let is_host = match &host_root {
        HostRoot::At(root) => root.id()? == pod_root.id()?,
        HostRoot::Nowhere => false,
    };
    let device = Device::find(&sources.device)?;
    let node = device.as_ref().map(node).transpose()?;
    let driver = driver(device.as_ref());
    let pod = pod(&pod_root, is_host, host.as_ref(), sources)?;
    let seen = Observation {
        device_path: sources.device.clone(),
        device_explicit: sources.device_explicit,
        host,
        pod,
        device: node,
        driver,
        doubt: doubt(sources, device.as_ref()),
    };
    Ok((seen, device))
}

/// Looks at the device again, which changes more often than what decides about it.
///
/// # Errors
/// The call that failed.
#[cfg(feature = "watch")]
pub fn look_again(seen: &mut Observation, sources: &Sources) -> Result<Option<Device>> {
    let device = Device::find(&sources.device)?;
    seen.device = device.as_ref().map(node).transpose()?;
    seen.driver = driver(device.as_ref());
    if let Some(host) = &mut seen.host {
        host.device = Root::open(&host.root)?
            .stat("dev/kvm")?
            .map(DeviceStat::from);
    }
    seen.doubt = doubt(sources, device.as_ref());
    Ok(device)
}
