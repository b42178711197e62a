//! Invariants of edits of the group file and of lookups in passwd and group files.
#![allow(clippy::unwrap_used)] // a panic reports the failure

use std::borrow::Cow;

use libvirt_kvm_init::formats::accounts::edit::{Change, Want, align};
use libvirt_kvm_init::formats::accounts::{group, passwd};
use nix::unistd::Gid;

/// Checks that the edit makes the wanted change and no other.
pub fn edit(file: &[u8], want: &Want<'_>) {
    let (after, changes) = align(file, want).unwrap();
    assert_eq!(changes.is_empty(), matches!(after, Cow::Borrowed(_)));
    let edited = group::by_name(&after, want.group).unwrap();
    assert_eq!(edited.gid, want.gid);
    if let Some(user) = want.member {
        assert!(edited.has_member(user));
        assert!(group::gids_of(&after, user, Gid::from_raw(65000)).contains(&want.gid));
    }
    // A second edit changes nothing.
    let (repeated, no_changes) = align(&after, want).unwrap();
    assert!(matches!(repeated, Cow::Borrowed(_)) && no_changes.is_empty());
    if changes.is_empty() {
        assert_eq!(&*after, file);
    } else {
        let undone = undo(file, &after, want, &changes);
        assert_eq!(undone.as_deref(), Some(file), "{}", after.escape_ascii());
    }
    // Other users stay members of the same groups, except the group whose GID was changed.
    let others = |text: &[u8]| -> Vec<Gid> {
        let own: Vec<_> = group::all_by_name(file, want.group)
            .map(|g| g.gid)
            .collect();
        let mut gids = group::gids_of(text, b"a", Gid::from_raw(65000));
        // A line of the edited group can have had the invalid GID 4294967295.
        let invalid = Gid::from_raw(u32::MAX);
        gids.retain(|g| !own.contains(g) && *g != want.gid && *g != invalid);
        gids
    };
    if want.member != Some(b"a") {
        assert_eq!(others(file), others(&after));
    }
}

/// Lookups by name, GID and member find exactly the entries that the iterator returns.
pub fn group_look_ups(file: &[u8]) {
    for group in group::groups(file) {
        let first = group::by_name(file, group.name).unwrap();
        assert!(first.line <= group.line);
        assert!(group::all_by_name(file, group.name).any(|g| g == group));
        assert!(group::all_by_gid(file, group.gid).any(|g| g == group));
        for member in group.members() {
            assert!(group.has_member(member));
            let gids = group::gids_of(file, member, Gid::from_raw(65000));
            assert!(gids.contains(&group.gid));
        }
    }
}

/// Lookups find each entry of a passwd file, or an earlier line with the same UID or name.
pub fn passwd_look_ups(file: &[u8]) {
    for user in passwd::users(file) {
        let first = passwd::by_uid(file, user.uid);
        assert!(first.is_none_or(|first| first.line <= user.line));
        let first = passwd::by_name(file, user.name);
        assert!(first.is_none_or(|first| first.line <= user.line));
    }
}

/// Reverts the edit, using only the changes that `align` reported. `None` if they do not explain the difference.
fn undo(before: &[u8], after: &[u8], want: &Want<'_>, changes: &[Change]) -> Option<Vec<u8>> {
    // The edit is within one line: the text before and after it is equal.
    let same = |(a, b): &(&u8, &u8)| a == b;
    let prefix = before.iter().zip(after).take_while(same).count();
    let line = before[..prefix]
        .iter()
        .rposition(|b| *b == b'\n')
        .map_or(0, |at| at + 1);
    let (head, before, after) = (&before[..line], &before[line..], &after[line..]);
    let member = want.member.unwrap_or_default();
    if let [Change::AddGroup { .. }, ..] = changes {
        // A line was added. If it begins like the next line, the common prefix is too long, so try each position.
        let gid = want.gid.to_string();
        let text = [want.group, b":x:", gid.as_bytes(), b":", member, b"\n"].concat();
        let all = [head, after].concat();
        return (0..=all.len().saturating_sub(text.len())).find_map(|at| {
            let rest = all[at..].strip_prefix(&text[..])?;
            let without_newline = all[..at].strip_suffix(b"\n").unwrap_or(&all[..at]);
            let whole = [head, before].concat();
            [&all[..at], without_newline]
                .into_iter()
                .map(|start| [start, rest].concat())
                .find(|undone| *undone == whole)
        });
    }
    let end = |text: &[u8]| text.iter().position(|b| *b == b'\n').unwrap_or(text.len());
    let (old, old_rest) = before.split_at(end(before));
    let (new, new_rest) = after.split_at(end(after));
    if old_rest != new_rest {
        return None;
    }
    let colons = |text: &[u8], count: usize| -> Option<usize> {
        let mut colons = text.iter().enumerate().filter(|(_, b)| **b == b':');
        colons.nth(count).map(|(at, _)| at)
    };
    // The fields: name and password, GID, members.
    let visible = old.iter().position(|b| *b == 0).unwrap_or(old.len());
    let old_gid = colons(old, 1)? + 1..colons(&old[..visible], 2).unwrap_or(visible);
    let new_visible = new.iter().position(|b| *b == 0).unwrap_or(new.len());
    let new_gid = colons(new, 1)? + 1..colons(&new[..new_visible], 2).unwrap_or(new_visible);
    if old[..old_gid.start] != new[..new_gid.start] {
        return None;
    }
    let set = changes.iter().any(|c| matches!(c, Change::SetGid { .. }));
    let gid = &new[new_gid.clone()];
    if set && gid != want.gid.to_string().as_bytes() || !set && gid != &old[old_gid.clone()] {
        return None;
    }
    let (old_tail, new_tail) = (&old[old_gid.end..], &new[new_gid.end..]);
    // The texts that the edit can have inserted at any position of the tail.
    let inserted = [
        vec![],
        b":".to_vec(),
        member.to_vec(),
        [b":", member].concat(),
        [b",", member].concat(),
        [member, b","].concat(),
    ];
    let fits = inserted.iter().any(|text| {
        (0..=old_tail.len()).any(|at| [&old_tail[..at], text, &old_tail[at..]].concat() == new_tail)
    });
    fits.then(|| [head, before].concat())
}
