//! Chooses the target GID from the candidates.
//!
//! The pod follows the node: unless `--gid` is set, the GID that the node's udev sets on the device has precedence,
//! because the next udev event would undo any other GID. The GID in the pod's image comes last.
#![forbid(unsafe_code)]

use nix::unistd::Gid;

use super::context::Context;
use crate::codes::{Source, Warning, WarningCode};
use crate::config::is_id;
use crate::formats::accounts::group;
use crate::formats::udev::Predictions;
use crate::observe::GROUP_FILE;

/// A GID that could become the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Can be 0 or 4294967295, which [`resolve`] skips.
    pub gid: Gid,
    pub source: Source,
    /// Where the GID comes from, for messages: file and line, option or path.
    pub at: String,
}

impl Candidate {
    /// The beginning of a message: `the node's /etc/group:12 sets GID 108`.
    pub(super) fn sets_gid(&self) -> String {
        match self.source {
            Source::Device | Source::Kept => format!("{} has GID {}", self.at, self.gid),
            _ => format!("{} sets GID {}", self.at, self.gid),
        }
    }
}

/// The valid candidates, with warnings about invalid ones and disagreements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Highest precedence first: the first is the target.
    pub candidates: Vec<Candidate>,
    pub warnings: Vec<Warning>,
}

impl Resolution {
    pub fn target(&self) -> Option<&Candidate> {
        self.candidates.first()
    }

    /// The warning that `--gid`, the node's udev and its group database disagree.
    pub fn disagreement(&self) -> Option<&Warning> {
        let mut warnings = self.warnings.iter();
        warnings.find(|warning| warning.code == WarningCode::Disagreement)
    }
}

/// The predictions from the node's rules by which the target is chosen. With `--persist`, the rule that this program
/// wrote is excluded; otherwise it would confirm its own GID forever. Without `--persist`, it counts like any other
/// rule of the node, because it decides which GID udev sets.
pub(super) fn rules_of_the_node<'a>(context: &Context<'a>) -> Option<&'a Predictions> {
    let host = context.seen.host.as_ref()?;
    let others = host.others.as_ref().filter(|_| context.policy.persist);
    Some(others.unwrap_or(&host.udev))
}

/// Warns about a rule written by an earlier run if the target would be a different GID without it.
pub(super) fn outdated_rule(context: &Context<'_>, resolution: &Resolution) -> Option<Warning> {
    let others = context.seen.host.as_ref()?.others.as_ref()?;
    let now = resolution.target().filter(|_| !context.policy.persist)?;
    let without = resolve(candidates(context, Some(others)));
    let without = without.target().filter(|other| other.gid != now.gid)?;
    let text = format!(
        "{}, which an earlier run wrote (--persist), sets GID {}, but without that rule the GID would be \
         {} ({}): run `libvirt-kvm-init apply --persist` to update the rule",
        now.at, now.gid, without.gid, without.at
    );
    Some(Warning::new(WarningCode::UdevRuleOutdated, text))
}

pub(super) fn candidates(context: &Context<'_>, udev: Option<&Predictions>) -> Vec<Candidate> {
    let Context { seen, policy, .. } = *context;
    let mut list = Vec::new();
    if let Some((gid, origin)) = context.explicit_gid() {
        let at = origin.to_string();
        let source = Source::Flag;
        list.push(Candidate { gid, source, at });
    }
    let host = seen.host.as_ref();
    if let Some(outcome) = udev.and_then(|udev| udev.add.outcome())
        && let Some(gid) = outcome.gid
    {
        let at = format!("the node's {}", outcome.rule);
        let source = Source::Udev;
        list.push(Candidate { gid, source, at });
    }
    if let Some(group) = host.and_then(|host| host.db.by_name(&policy.group)) {
        let (gid, at) = (group.gid, format!("the node's {}", group.at));
        let source = Source::HostGroup;
        list.push(Candidate { gid, source, at });
    }
    if let Some(gid) = context.last_good_gid() {
        let (source, at) = (Source::Kept, "the last working state".to_owned());
        list.push(Candidate { gid, source, at });
    }
    if let Some(device) = seen.device.as_ref().filter(|device| device.facts.is_kvm())
        && !device.unmapped
    {
        let (gid, at) = (device.facts.gid, seen.device_path.display().to_string());
        let source = Source::Device;
        list.push(Candidate { gid, source, at });
    }
    let in_pod = seen.pod.image_group().filter(|_| !seen.pod.is_host);
    if let Some(group) = in_pod.and_then(|file| group::by_name(file, policy.group.as_bytes())) {
        let file = seen.pod.root.join(GROUP_FILE);
        let (gid, at) = (group.gid, format!("{}:{}", file.display(), group.line));
        let source = Source::PodGroup;
        list.push(Candidate { gid, source, at });
    }
    list
}

/// Sorts the candidates by precedence, skips invalid GIDs, and warns if `--gid`, the node's udev and the node's group
/// database differ. A different GID of the device or in the pod causes no warning: `apply` changes it.
pub fn resolve(candidates: impl IntoIterator<Item = Candidate>) -> Resolution {
    let mut warnings = Vec::new();
    let mut usable = Vec::new();
    for candidate in candidates {
        if is_id(candidate.gid.as_raw()) {
            usable.push(candidate);
        } else if candidate.source != Source::Device {
            // Group 0 is expected: devtmpfs creates the device with it.
            let text = format!(
                "{}, which is not valid for KVM: skipped",
                candidate.sets_gid()
            );
            warnings.push(Warning::new(WarningCode::CandidateSkipped, text));
        }
    }
    usable.sort_by_key(|candidate: &Candidate| candidate.source);
    let mut compared = usable
        .iter()
        .filter(|candidate| candidate.source <= Source::HostGroup);
    let first = compared.next();
    for second in compared {
        let Some(first) = first.filter(|first| first.gid != second.gid) else {
            continue;
        };
        let text = format!(
            "{}, but {}: {} takes precedence",
            first.sets_gid(),
            second.sets_gid(),
            first.gid
        );
        warnings.push(Warning::new(WarningCode::Disagreement, text));
    }
    Resolution {
        candidates: usable,
        warnings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(gid: u32, source: Source) -> Candidate {
        Candidate {
            gid: Gid::from_raw(gid),
            source,
            at: format!("{source:?}"),
        }
    }

    #[test]
    fn the_valid_candidate_with_the_highest_precedence_becomes_the_target() {
        use Source::{Device, Flag, HostGroup, PodGroup, Udev};
        type Row<'a> = (&'a [(u32, Source)], Option<u32>, &'a [WarningCode]);
        let table: [Row<'_>; 11] = [
            (
                &[(108, HostGroup), (929_292, Udev), (424, PodGroup)],
                Some(929_292),
                &[WarningCode::Disagreement],
            ),
            (
                &[(500, Flag), (108, Udev), (108, HostGroup)],
                Some(500),
                &[WarningCode::Disagreement, WarningCode::Disagreement],
            ),
            (
                &[(424, PodGroup), (424, Device), (108, HostGroup)],
                Some(108),
                &[],
            ),
            (
                &[(424, PodGroup), (500, Flag), (108, HostGroup)],
                Some(500),
                &[WarningCode::Disagreement],
            ),
            (&[(108, Flag), (108, HostGroup)], Some(108), &[]),
            (
                &[(424, PodGroup), (0, HostGroup), (36, Device)],
                Some(36),
                &[WarningCode::CandidateSkipped],
            ),
            (
                &[(u32::MAX, HostGroup), (424, PodGroup)],
                Some(424),
                &[WarningCode::CandidateSkipped],
            ),
            (&[(0, Device), (424, PodGroup)], Some(424), &[]),
            (
                &[(0, Device), (0, PodGroup)],
                None,
                &[WarningCode::CandidateSkipped],
            ),
            (&[(777, Device), (424, PodGroup)], Some(777), &[]),
            (&[], None, &[]),
        ];
        for (candidates, target, codes) in table {
            let resolution = resolve(
                candidates
                    .iter()
                    .map(|(gid, source)| candidate(*gid, *source)),
            );
            let got = resolution.target().map(|target| target.gid.as_raw());
            assert_eq!(got, target, "{candidates:?}");
            let got: Vec<_> = resolution.warnings.iter().map(|w| w.code).collect();
            assert_eq!(got, codes, "{candidates:?}");
        }
    }
}
