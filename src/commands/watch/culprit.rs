//! Who it looks like that undoes every change. Pure.
#![forbid(unsafe_code)]

use crate::judge::next_events::{CHARTS_GROUP, NextEvent, next_events};
use crate::observe::{DeviceState, Observation};

/// Who left the device as it is, as far as its numbers tell. `old` is what the pod's group was before.
pub(super) fn culprit(seen: &Observation, node: &DeviceState, old: Option<&str>) -> Option<String> {
    let facts = &node.facts;
    let numbers = format!("{}:{} {:04o}", facts.uid, facts.gid, facts.mode);
    let like = |coming: &NextEvent| {
        let its = coming.device.facts;
        (its.uid, its.gid, its.mode) == (facts.uid, facts.gid, facts.mode)
    };
    let coming = next_events(seen, true);
    if let Some(coming) = coming.iter().find(|coming| like(coming)) {
        return Some(format!("{numbers} is what {} gives it", coming.what));
    }
    let image = seen.pod.image_gid(CHARTS_GROUP);
    let image = image.map(|gid| gid.to_string());
    let its = facts.gid.to_string();
    let by_chart = (image.as_deref() == Some(&its) || old == Some(&its)) && facts.mode == 0o660;
    by_chart.then(|| {
        format!(
            "{numbers} is what the chart's libvirt.sh gives it in a container whose group file is \
             not the aligned one"
        )
    })
}
