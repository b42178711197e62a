//! The one rules file that this program writes, and what the node's rules are with and without it.
//!
//! The rule has no `ACTION` guard: a change event, which comes with each guest, must not leave the
//! device to a rule that has none either. It assigns with `=`, not `:=`: a file that sorts after it
//! was named so to override it, and a final assignment does not bind when udevd starts. It
//! assigns a number, so that the node needs no group of any name.

use nix::unistd::Gid;

use super::file::RuleFile;

/// The file's name. It sorts after what distributions and deployment tools write.
pub const NAME: &str = "99-libvirt-kvm-init.rules";
/// The directory that it goes to, below the node's root: the strongest one.
pub const DIRECTORY: &str = "etc/udev/rules.d";
/// The file's path on the node.
pub const PATH: &str = "/etc/udev/rules.d/99-libvirt-kvm-init.rules";

/// How each of these files begins, whatever the version that wrote it.
const MARK: &[u8] = b"# Written by libvirt-kvm-init";

/// What the rule sets; the owner is always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnRule {
    /// The group.
    pub gid: Gid,
    /// The mode.
    pub mode: u16,
}

impl OwnRule {
    /// The file that sets it.
    pub fn file(&self) -> RuleFile {
        let Self { gid, mode } = self;
        let content = format!(
            "# Written by libvirt-kvm-init (--persist), which may write it anew. To take it out:\n\
             #   rm {PATH}\n\
             #   udevadm trigger --action=add --name-match=kvm\n\
             SUBSYSTEM==\"misc\", KERNEL==\"kvm\", OWNER=\"0\", GROUP=\"{gid}\", MODE=\"{mode:04o}\", \
             OPTIONS+=\"static_node=kvm\"\n"
        );
        RuleFile {
            path: PATH.to_owned(),
            content: content.into_bytes(),
        }
    }

    /// What such a file sets; nothing if it was edited.
    pub fn of(content: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(content).ok()?;
        let value = |key: &str| Some(text.split_once(key)?.1.split_once('"')?.0);
        let own_rule = Self {
            gid: Gid::from_raw(value("GROUP=\"")?.parse().ok()?),
            mode: u16::from_str_radix(value("MODE=\"")?, 8).ok()?,
        };
        (own_rule.file().content == content).then_some(own_rule)
    }
}

/// Whether this program wrote it.
pub fn is_own(content: &[u8]) -> bool {
    content.starts_with(MARK)
}

/// The files that udevd reads, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// As they are.
    pub files: Vec<RuleFile>,
    /// The file of the same name in a weaker directory, which counts once the own one is gone.
    pub hidden: Option<RuleFile>,
}

impl Rules {
    /// All of them.
    pub fn all(&self) -> Vec<&RuleFile> {
        self.files.iter().collect()
    }

    /// What is left without the own file; nothing where there is none.
    pub fn without_own(&self) -> Option<Vec<&RuleFile>> {
        let own = self.files.iter().position(|file| file.path == PATH)?;
        let (before, after) = (self.files.get(..own)?, self.files.get(own + 1..)?);
        Some(before.iter().chain(&self.hidden).chain(after).collect())
    }

    /// What there would be with this file, which goes where [`PATH`] says.
    pub fn with<'a>(&'a self, own: &'a RuleFile) -> Vec<&'a RuleFile> {
        let others = self.files.iter().filter(|file| file.name() != NAME);
        let mut files: Vec<_> = others.collect();
        let at = files.partition_point(|file| file.name() < NAME);
        files.insert(at, own);
        files
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own_rule(gid: u32, mode: u16) -> OwnRule {
        let gid = Gid::from_raw(gid);
        OwnRule { gid, mode }
    }

    #[test]
    fn a_file_says_what_it_was_made_from() {
        for (gid, mode) in [(1, 0o660), (108, 0o666), (u32::MAX - 1, 0o664)] {
            let content = own_rule(gid, mode).file().content;
            assert!(is_own(&content));
            assert_eq!(OwnRule::of(&content), Some(own_rule(gid, mode)));
            let edited = [&content[..], b"KERNEL==\"kvm\", RUN+=\"/bin/true\"\n"].concat();
            assert!(is_own(&edited));
            assert_eq!(OwnRule::of(&edited), None);
        }
        assert_eq!(
            OwnRule::of(b"KERNEL==\"kvm\", GROUP=\"5\", MODE=\"0660\""),
            None
        );
        assert!(!is_own(b"") && !is_own(b"KERNEL==\"kvm\", GROUP=\"5\"\n"));
    }

    #[test]
    fn the_file_takes_its_place_by_name_and_hides_weaker_ones() {
        let file = |path: &str| RuleFile {
            path: path.to_owned(),
            content: Vec::new(),
        };
        let paths = |files: Vec<&RuleFile>| -> Vec<String> {
            files.iter().map(|file| file.path.clone()).collect()
        };
        let stock = file("/usr/lib/udev/rules.d/50-udev-default.rules");
        let weaker = file("/usr/lib/udev/rules.d/99-libvirt-kvm-init.rules");
        let (kolla, local) = (
            file("/etc/udev/rules.d/99-kolla-kvm.rules"),
            file("/etc/udev/rules.d/99-local.rules"),
        );
        let own = own_rule(108, 0o660).file();
        let want = [&stock, &kolla, &own, &local].map(|file| file.path.clone());

        let mut rules = Rules {
            files: vec![stock.clone(), kolla.clone(), local.clone()],
            hidden: None,
        };
        assert_eq!(paths(rules.with(&own)), want);
        assert_eq!(rules.without_own(), None);

        rules.files.insert(2, weaker.clone());
        assert_eq!(paths(rules.with(&own)), want);
        assert_eq!(rules.without_own(), None);

        rules.files[2] = own_rule(5, 0o660).file();
        rules.hidden = Some(weaker.clone());
        assert_eq!(paths(rules.with(&own)), want);
        let want = [&stock, &kolla, &weaker, &local].map(|file| file.path.clone());
        assert_eq!(paths(rules.without_own().unwrap()), want);
    }
}
