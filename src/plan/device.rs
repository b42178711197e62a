//! The steps of the device: owner, group and mode, or the ACL.

use nix::unistd::{Gid, Uid};

use super::Step;
use super::context::Context;
use crate::codes::{Warning, WarningCode};
use crate::observe::DeviceState;

/// The steps of the device.
pub(super) fn steps(
    node: &DeviceState,
    context: &Context<'_>,
    target: Gid,
    warnings: &mut Vec<Warning>,
) -> Vec<Step> {
    let mut steps = Vec::new();
    let facts = &node.facts;
    let owner = (Uid::from_raw(0), target);
    if node.unmapped {
        let text = format!(
            "{} belongs to {}:{}, which may be IDs that this user namespace does not map: owner \
             and group are left alone",
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
    // The owner first: what a wider mode gives then goes to the group that is to have it.
    if let Some(acl) = &node.acl {
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

/// The exact mode if one was asked for, else what is there and `rw` for owner and group.
pub fn wanted_mode(now: u16, exact: Option<u16>) -> u16 {
    exact.unwrap_or(now | 0o660)
}
