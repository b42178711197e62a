//! The rules file that `--persist` writes, and the node's rules with and without it.
//!
//! The rule has no `ACTION` guard: KVM sends a change event for each guest, and another rule without
//! a guard would decide there. It assigns with `=` instead of `:=`: an administrator who names a file
//! to sort later wants it to take precedence, and `:=` has no effect when udevd starts. It assigns a
//! GID, so that the node needs no group of any name.

use nix::unistd::Gid;

use super::file::RuleFile;

/// The name sorts after the files of distributions and deployment tools.
pub const NAME: &str = "99-libvirt-kvm-init.rules";
/// The directory with the highest priority, below the node's root.
pub const DIRECTORY: &str = "etc/udev/rules.d";
/// The file's path on the node.
pub const PATH: &str = "/etc/udev/rules.d/99-libvirt-kvm-init.rules";

/// The beginning of the file, the same in every version of this program.
const MARK: &[u8] = b"# Written by libvirt-kvm-init";

/// The values that the rule sets; the owner is always 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnRule {
    pub gid: Gid,
    pub mode: u16,
}

impl OwnRule {
    /// The rules file with these values.
    pub fn file(&self) -> RuleFile {
        let Self { gid, mode } = self;
        let content = format!(
            "# Written by libvirt-kvm-init (--persist), which may overwrite it. To remove it:\n\
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

    /// The values that such a file sets; `None` if the file was edited. The words of the leading comments do not count:
    /// they differ between versions of this program.
    pub fn of(content: &[u8]) -> Option<Self> {
        let text = rule(std::str::from_utf8(content).ok()?);
        let value = |key: &str| Some(text.split_once(key)?.1.split_once('"')?.0);
        let own_rule = Self {
            gid: Gid::from_raw(value("GROUP=\"")?.parse().ok()?),
            mode: u16::from_str_radix(value("MODE=\"")?, 8).ok()?,
        };
        let written = own_rule.file().content;
        (rule(std::str::from_utf8(&written).ok()?) == text).then_some(own_rule)
    }
}

/// The file without the comment lines at its beginning.
fn rule(mut text: &str) -> &str {
    while let Some((comment, rest)) = text.split_once('\n')
        && comment.starts_with('#')
    {
        text = rest;
    }
    text
}

/// Whether this program wrote the file.
pub fn is_own(content: &[u8]) -> bool {
    content.starts_with(MARK)
}

/// The files that udevd reads, in its order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    pub files: Vec<RuleFile>,
    /// The file of the same name that udevd reads once the file of `--persist` is removed.
    pub hidden: Option<RuleFile>,
}

impl Rules {
    pub fn all(&self) -> Vec<&RuleFile> {
        self.files.iter().collect()
    }

    /// The files without the one of `--persist`; `None` if it does not exist.
    pub fn without_own(&self) -> Option<Vec<&RuleFile>> {
        let own = self.files.iter().position(|file| file.path == PATH)?;
        let (before, after) = (self.files.get(..own)?, self.files.get(own + 1..)?);
        Some(before.iter().chain(&self.hidden).chain(after).collect())
    }

    /// The files with `own` at [`PATH`].
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
    fn reads_a_file_that_version_0_1_0_wrote() {
        let content = "# Written by libvirt-kvm-init (--persist), which may write it anew. To take it out:\n\
                       #   rm /etc/udev/rules.d/99-libvirt-kvm-init.rules\n\
                       #   udevadm trigger --action=add --name-match=kvm\n\
                       SUBSYSTEM==\"misc\", KERNEL==\"kvm\", OWNER=\"0\", GROUP=\"108\", MODE=\"0660\", \
                       OPTIONS+=\"static_node=kvm\"\n";
        assert!(is_own(content.as_bytes()));
        assert_eq!(OwnRule::of(content.as_bytes()), Some(own_rule(108, 0o660)));
    }

    #[test]
    fn reads_back_the_values_of_an_unedited_file() {
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
    fn rule_file_is_sorted_by_name_and_masks_files_of_its_name() {
        let file = |path: &str| RuleFile {
            path: path.to_owned(),
            content: Vec::new(),
        };
        let paths = |files: Vec<&RuleFile>| -> Vec<String> {
            files.iter().map(|file| file.path.clone()).collect()
        };
        let stock = file("/usr/lib/udev/rules.d/50-udev-default.rules");
        let masked = file("/usr/lib/udev/rules.d/99-libvirt-kvm-init.rules");
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

        rules.files.insert(2, masked.clone());
        assert_eq!(paths(rules.with(&own)), want);
        assert_eq!(rules.without_own(), None);

        rules.files[2] = own_rule(5, 0o660).file();
        rules.hidden = Some(masked.clone());
        assert_eq!(paths(rules.with(&own)), want);
        let want = [&stock, &kolla, &masked, &local].map(|file| file.path.clone());
        assert_eq!(paths(rules.without_own().unwrap()), want);
    }
}
