//! Takes a snapshot of every fact that a decision depends on. Nothing here decides or changes anything.

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
use device::{driver, inspect};
use doubt::doubt;
use host_root::HostRoot;
use pod::{pod, pod_root_error};

pub use device::{DeviceState, Driver, directories_above, is_no_driver};
pub use doubt::{Doubt, OtherDevice};
pub use host::Host;
#[cfg(feature = "watch")]
pub use pod::group_file_stands;
pub use pod::{GROUP_FILE, Pod};

/// The state of node, pod and device at one moment.
#[derive(Debug)]
pub struct Observation {
    pub device_path: PathBuf,
    /// Whether the path was set explicitly (`--device`).
    pub device_explicit: bool,
    /// The node; `None` if no host root was found.
    pub host: Option<Host>,
    pub pod: Pod,
    /// The file at the device's path; `None` if there is none.
    pub device: Option<DeviceState>,
    pub driver: Driver,
    /// Why a proof may not apply to the running libvirtd.
    pub doubt: Option<Doubt>,
}

/// Takes the snapshot. The second value is the device, held but not opened (`O_PATH`), for the steps that
/// change it.
///
/// # Errors
/// [`Error::Usage`](crate::error::Error::Usage) if a configured path does not exist; otherwise the failed call.
pub fn observe(sources: &Sources) -> Result<(Observation, Option<Device>)> {
    let host_root = match host_root::find(sources.host_root.as_deref()) {
        Err(_) if sources.host_root_optional => HostRoot::Nowhere,
        result => result?,
    };
    match &host_root {
        HostRoot::At(root) => log::debug!("host root: {}", root.path().display()),
        HostRoot::Nowhere => log::debug!("host root: none found"),
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
    let state = device.as_ref().map(inspect).transpose()?;
    let driver = driver(device.as_ref());
    let pod = pod(&pod_root, is_host, host.as_ref(), sources)?;
    let seen = Observation {
        device_path: sources.device.clone(),
        device_explicit: sources.device_explicit,
        host,
        pod,
        device: state,
        driver,
        doubt: doubt(sources, device.as_ref()),
    };
    Ok((seen, device))
}

/// Updates only the device in an observation: it changes more often than the files that determine its owner and mode.
#[cfg(feature = "watch")]
pub fn look_again(seen: &mut Observation, sources: &Sources) -> Result<Option<Device>> {
    let device = Device::find(&sources.device)?;
    seen.device = device.as_ref().map(inspect).transpose()?;
    seen.driver = driver(device.as_ref());
    if let Some(host) = &mut seen.host {
        host.device = Root::open(&host.root)?
            .stat("dev/kvm")?
            .map(DeviceStat::from);
    }
    seen.doubt = doubt(sources, device.as_ref());
    Ok(device)
}
