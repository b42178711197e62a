//! Which GID, and why.
//!
//! The pod follows the host: the number that the node's udev gives the device anyway is the only
//! one that nobody fights over. What the pod's image says comes last.
#![forbid(unsafe_code)]

use nix::unistd::Gid;

use super::context::Context;
use crate::codes::{Source, Warning, WarningCode};
use crate::config::is_id;
use crate::formats::accounts::group;
use crate::formats::udev::Predictions;
use crate::observe::GROUP_FILE;

/// A number that could be the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The number; 0 and 4294967295 are skipped.
    pub gid: Gid,
    /// Where it comes from.
    pub source: Source,
    /// File and line, flag or path.
    pub at: String,
}

/// What came of the candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolution {
    /// Those that can be meant, strongest first: the first is the target.
    pub candidates: Vec<Candidate>,
    /// Skipped candidates and disagreements.
    pub warnings: Vec<Warning>,
}

impl Resolution {
    /// The strongest candidate.
    pub fn target(&self) -> Option<&Candidate> {
        self.candidates.first()
    }

    /// Whether two of those that speak for the node disagree.
    pub fn disagreement(&self) -> Option<&Warning> {
        let mut found = self.warnings.iter();
        found.find(|warning| warning.code == WarningCode::Disagreement)
    }
}

/// The rules that speak for the node. Where the own one may be written again it does not count:
/// otherwise it would be the reason for its own number for ever. Where it is not, it is a rule of the
/// node as any other, which decides what udev gives.
pub(super) fn rules_of_the_node<'a>(context: &Context<'a>) -> Option<&'a Predictions> {
    let host = context.seen.host.as_ref()?;
    let others = host.others.as_ref().filter(|_| context.policy.persist);
    Some(others.unwrap_or(&host.udev))
}

/// A rule of an earlier run that gives another number than the node would have without it.
pub(super) fn outdated_rule(context: &Context<'_>, found: &Resolution) -> Option<Warning> {
    let others = context.seen.host.as_ref()?.others.as_ref()?;
    let now = found.target().filter(|_| !context.policy.persist)?;
    let without = resolve(candidates(context, Some(others)));
    let without = without.target().filter(|other| other.gid != now.gid)?;
    let text = format!(
        "{}, which an earlier run wrote (--persist), gives the number {}, and without it the number \
         would be {} ({}): `apply --persist` writes it again",
        now.at, now.gid, without.gid, without.at
    );
    Some(Warning::new(WarningCode::UdevRuleOutdated, text))
}

pub(super) fn candidates(context: &Context<'_>, udev: Option<&Predictions>) -> Vec<Candidate> {
    let Context { seen, policy, .. } = *context;
    let mut found = Vec::new();
    if let Some((gid, origin)) = context.explicit_gid() {
        let at = origin.to_string();
        let source = Source::Flag;
        found.push(Candidate { gid, source, at });
    }
    let host = seen.host.as_ref();
    if let Some(outcome) = udev.and_then(|udev| udev.add.outcome())
        && let Some(gid) = outcome.gid
    {
        let at = format!("the node's {}", outcome.rule);
        let source = Source::Udev;
        found.push(Candidate { gid, source, at });
    }
    if let Some(group) = host.and_then(|host| host.db.by_name(&policy.group)) {
        let (gid, at) = (group.gid, format!("the node's {}", group.at));
        let source = Source::HostGroup;
        found.push(Candidate { gid, source, at });
    }
    if let Some(gid) = context.last_good_gid() {
        let (source, at) = (Source::Kept, "what worked last".to_owned());
        found.push(Candidate { gid, source, at });
    }
    if let Some(node) = seen.device.as_ref().filter(|node| node.facts.is_kvm())
        && !node.unmapped
    {
        let (gid, at) = (node.facts.gid, seen.device_path.display().to_string());
        let source = Source::Device;
        found.push(Candidate { gid, source, at });
    }
    let in_pod = seen.pod.image_group().filter(|_| !seen.pod.is_host);
    if let Some(group) = in_pod.and_then(|file| group::by_name(file, policy.group.as_bytes())) {
        let file = seen.pod.root.join(GROUP_FILE);
        let (gid, at) = (group.gid, format!("{}:{}", file.display(), group.line));
        let source = Source::PodGroup;
        found.push(Candidate { gid, source, at });
    }
    found
}

/// Orders the candidates by strength, drops what is no ID, and compares those that speak for the
/// node: `--gid`, its udev and its group database. That device or pod differ is what there is to
/// change, never a disagreement.
pub fn resolve(candidates: impl IntoIterator<Item = Candidate>) -> Resolution {
    let mut warnings = Vec::new();
    let mut usable = Vec::new();
    for candidate in candidates {
        if is_id(candidate.gid.as_raw()) {
            usable.push(candidate);
        } else if candidate.source != Source::Device {
            // A device of group 0 is how the kernel makes it, and nothing to wonder about.
            let (gid, at) = (candidate.gid, candidate.at);
            let text =
                format!("{at} gives the number {gid}, which is never a group for KVM: skipped");
            warnings.push(Warning::new(WarningCode::CandidateSkipped, text));
        }
    }
    usable.sort_by_key(|candidate: &Candidate| candidate.source);
    let mut speakers = usable
        .iter()
        .filter(|candidate| candidate.source <= Source::HostGroup);
    let first = speakers.next();
    for second in speakers {
        let Some(first) = first.filter(|first| first.gid != second.gid) else {
            continue;
        };
        let text = format!(
            "{} says {}, {} says {}: {} is used",
            first.at, first.gid, second.at, second.gid, first.gid
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
    fn the_strongest_usable_candidate_wins() {
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
        for (given, target, codes) in table {
            let resolution = resolve(given.iter().map(|(gid, source)| candidate(*gid, *source)));
            let got = resolution.target().map(|target| target.gid.as_raw());
            assert_eq!(got, target, "{given:?}");
            let got: Vec<_> = resolution.warnings.iter().map(|w| w.code).collect();
            assert_eq!(got, codes, "{given:?}");
        }
    }
}
