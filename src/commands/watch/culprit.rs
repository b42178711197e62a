//! Names what probably reverts every repair of the device: a udev rule or the chart's libvirt.sh. Pure.
#![forbid(unsafe_code)]

use crate::judge::next_events::{CHARTS_GROUP, NextEvent, next_events};
use crate::observe::{DeviceState, Observation};

/// Names the udev event or script that would set exactly the owner and mode that the device has now; `None`
/// if there is none. `old_gid` is the GID that the pod's group had before `watch` aligned it.
pub(super) fn culprit(
    seen: &Observation,
    device: &DeviceState,
    old_gid: Option<&str>,
) -> Option<String> {
    let facts = &device.facts;
    let state = format!("{}:{} {:04o}", facts.uid, facts.gid, facts.mode);
    let sets_the_same = |event: &NextEvent| {
        let after = event.device.facts;
        (after.uid, after.gid, after.mode) == (facts.uid, facts.gid, facts.mode)
    };
    if let Some(event) = next_events(seen, true).iter().find(|e| sets_the_same(e)) {
        return Some(format!("{state} is what {} sets", event.what));
    }
    let image_gid = seen.pod.image_gid(CHARTS_GROUP);
    let image_gid = image_gid.map(|gid| gid.to_string());
    let gid = facts.gid.to_string();
    let is_charts_gid = image_gid.as_deref() == Some(&gid) || old_gid == Some(&gid);
    (is_charts_gid && facts.mode == 0o660).then(|| {
        format!(
            "{state} is what the chart's libvirt.sh sets in a container without the aligned group file"
        )
    })
}
