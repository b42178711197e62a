//! The flags of a command line that have to be repeated: variables and the configuration file speak to the
//! next command by themselves.

use std::path::Path;

use super::options::{Flags, OPTIONS};

/// The flags that `apply` needs to mean what this command line meant, as a shell takes them, each after a
/// space.
pub(super) fn replay_flags(flags: &Flags) -> String {
    // What says no more than nothing would, and another root may be named instead.
    let is_default = |name, text: &str| name == "root" && Path::new(text) == Path::new("/");
    let repeated = OPTIONS.iter().filter(|option| option.is_repeated);
    let given = repeated.filter_map(|option| Some((option.name, flags.get(option.name)?)));
    given
        .filter(|(name, text)| !is_default(*name, text))
        .map(|(name, text)| format!(" --{name}={}", word(text)))
        .collect()
}

/// Text as a shell takes it for one word.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "%+,-./:=@_".contains(c);
    match text.chars().all(is_plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_repeated_so_that_a_shell_reads_the_same() {
        let options = Flags::new([
            ("config", "/etc/a b.yaml"),
            ("host-root", "/mnt/host-rootfs"),
            ("root", "//"),
            ("qemu-user", "+107"),
            ("qemu-group", "it's; $x `y`"),
            ("strict", "true"),
            ("persist", "true"),
            ("format", "json"),
        ]);
        let flags = replay_flags(&options);
        assert_eq!(
            flags,
            " --config='/etc/a b.yaml' --host-root=/mnt/host-rootfs --qemu-user=+107 \
             --qemu-group='it'\\''s; $x `y`' --strict=true"
        );
        let script = format!("printf '%s\\n'{flags}");
        let shell = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        let read = String::from_utf8(shell.unwrap().stdout).unwrap();
        assert!(read.contains("\n--qemu-group=it's; $x `y`\n"), "{read}");
    }
}
