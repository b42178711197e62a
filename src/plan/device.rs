//! Plans the steps for the device: owner and group, then mode or ACL.

use nix::unistd::{Gid, Uid};

use super::Step;
use super::context::Context;
use crate::codes::{Warning, WarningCode};
use crate::observe::DeviceState;

pub(super) fn steps(
    device: &DeviceState,
    context: &Context<'_>,
    target: Gid,
    warnings: &mut Vec<Warning>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let facts = &device.facts;
    let owner = (Uid::from_raw(0), target);
    if device.unmapped {
        let text = format!(
            "{} belongs to {}:{}, which may stand for IDs that this user namespace does not map, so owner \
             and group are not changed; run the pod without hostUsers: false",
            context.seen.device_path.display(),
            facts.uid,
            facts.gid
        );
        warnings.push(Warning::new(WarningCode::UnmappedOwner, text));
    } else if (facts.uid, facts.gid) != owner {
        steps.push(Step::Owner {
            from: (facts.uid, facts.gid),
            to: owner,
        });
    }
    // Owner and group come first, so that a wider mode never applies to the old group.
    if let Some(acl) = &device.acl {
        let repaired = acl.repaired(context.policy.mode);
        if repaired != *acl {
            steps.push(Step::Acl {
                from: acl.clone(),
                to: repaired,
            });
        }
    } else {
        let to = wanted_mode(facts.mode, context.policy.mode);
        if to != facts.mode {
            steps.push(Step::Mode {
                from: facts.mode,
                to,
            });
        }
    }
    steps
}

/// The exact mode if one is set; otherwise the present mode with `rw` added for owner and group.
pub fn wanted_mode(now: u16, exact: Option<u16>) -> u16 {
    exact.unwrap_or(now | 0o660)
}
