//! Whose group file is kept: where no root was named, perhaps that of a libvirtd in another container.

use std::path::Path;

use crate::config::Config;
use crate::oddities::is_libvirtd;
use crate::place::{self, HostRoot};
use crate::sys::Inode;
use crate::sys::processes::Process;
use crate::sys::root::Root;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whose {
    /// It was said, or this is libvirtd's own container.
    Own,
    /// Just one container has a libvirtd: this one.
    Of(Process),
    /// None runs, as far as can be seen.
    Nobodys,
    /// Several run, or one whose root may not be looked at: none of their files is touched.
    Unclear(String),
}

/// Finds it. A libvirtd that has the node's own root is none that runs in a container, and where the
/// node's root is not seen that cannot be told.
///
/// `before` is the one that was found before: it stays the one as long as it runs.
pub(super) fn whose(asked: &Config, daemons: &[Process], before: Option<u32>) -> Whose {
    let here = Path::new("/");
    if asked.root != here || asked.group_file_out.is_some() {
        return Whose::Own;
    }
    let host = match place::find(asked.host_root.as_deref()) {
        Ok(HostRoot::At(host)) => host.id().ok(),
        _ => None,
    };
    let own = Root::open(here).and_then(|root| root.id()).ok();
    // A root that holds only parts of the node's is another folder than its own.
    let nodes = [host, place::nodes_own_root()];
    choose(own, nodes, daemons, before)
}

type Id = Option<Inode>;

fn choose(own: Id, nodes: [Id; 2], daemons: &[Process], before: Option<u32>) -> Whose {
    let [host, _] = nodes;
    let libvirtds = || daemons.iter().filter(|process| is_libvirtd(process));
    if !nodes.contains(&own)
        && libvirtds().any(|process| process.root.is_some() && process.root == own)
    {
        return Whose::Own;
    }
    let way_out = "give --root, or --group-file-out";
    let is_hosts = |process: &&Process| process.root.is_some() && nodes.contains(&process.root);
    let mut found: Vec<&Process> = Vec::new();
    for process in libvirtds().filter(|process| !is_hosts(process)) {
        let Process { name, pid, .. } = process;
        if process.root.is_none() || host.is_none() {
            let what = if host.is_none() {
                "the node's root"
            } else {
                "its root"
            };
            return Whose::Unclear(format!(
                "{name} (pid {pid}) runs, and {what} may not be looked at: its files are left \
                 alone; {way_out}"
            ));
        }
        if found.iter().all(|known| known.root != process.root) {
            found.push(process);
        }
    }
    let known = found.iter().find(|process| Some(process.pid) == before);
    match known.map_or(&found[..], std::slice::from_ref)[..] {
        [] => Whose::Nobodys,
        [process] => Whose::Of(process.clone()),
        _ => {
            let pids: Vec<_> = found
                .iter()
                .map(|process| process.pid.to_string())
                .collect();
            Whose::Unclear(format!(
                "libvirtd runs in several containers (pid {}): their files are left alone; {way_out}",
                pids.join(", ")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn daemon(pid: u32, name: &str, root: Id) -> Process {
        let name = name.to_owned();
        let started = 0;
        Process {
            pid,
            name,
            started,
            root,
        }
    }

    #[test]
    fn only_a_container_that_is_certain_is_chosen() {
        let (own, host, one, other) = (Some((1, 1)), Some((1, 2)), Some((1, 3)), Some((1, 4)));
        let libvirtd = |pid, root| daemon(pid, "libvirtd", root);
        let of = |pid, root| Whose::Of(libvirtd(pid, root));
        let pick = |own, host, daemons: &[Process]| choose(own, [host, None], daemons, None);
        let unclear = |found: &Whose| matches!(found, Whose::Unclear(_));

        assert_eq!(pick(own, host, &[]), Whose::Nobodys);
        assert_eq!(
            pick(own, host, &[daemon(7, "systemd-udevd", one)]),
            Whose::Nobodys
        );
        assert_eq!(pick(own, host, &[libvirtd(7, one)]), of(7, one));
        // The node's own is none of a container, also where this runs on the node.
        assert_eq!(pick(own, host, &[libvirtd(7, host)]), Whose::Nobodys);
        assert_eq!(pick(host, host, &[libvirtd(7, host)]), Whose::Nobodys);
        assert_eq!(
            pick(host, host, &[libvirtd(7, host), libvirtd(8, one)]),
            of(8, one)
        );
        let parts = [Some((1, 9)), host];
        assert_eq!(
            choose(own, parts, &[libvirtd(7, host)], None),
            Whose::Nobodys
        );
        // This very container's.
        assert_eq!(
            pick(own, host, &[libvirtd(7, one), libvirtd(8, own)]),
            Whose::Own
        );
        // Two daemons of one container, and two containers.
        let both = [libvirtd(7, one), daemon(8, "virtqemud", one)];
        assert_eq!(pick(own, host, &both), of(7, one));
        let both = [libvirtd(7, one), libvirtd(8, other)];
        assert!(unclear(&pick(own, host, &both)));
        assert_eq!(choose(own, [host, None], &both, Some(8)), of(8, other));
        // What cannot be seen may be the node's.
        assert!(unclear(&pick(own, None, &[libvirtd(7, one)])));
        assert!(unclear(&pick(own, host, &[libvirtd(7, None)])));
        assert_eq!(pick(own, None, &[]), Whose::Nobodys);
    }
}
