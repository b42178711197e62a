//! The flags to repeat in a suggested command. Options from the environment or the configuration file need no
//! repeating.

use std::path::Path;

use super::options::{Flags, OPTIONS};

/// The flags that `apply` needs to have the effect of this command line, quoted for a shell, each preceded by a
/// space.
pub(super) fn replay_flags(flags: &Flags) -> String {
    // `--root=/` is the default, and the caller may append another root.
    let is_default = |name, text: &str| name == "root" && Path::new(text) == Path::new("/");
    let repeated = OPTIONS.iter().filter(|option| option.is_repeated);
    let flags_set = repeated.filter_map(|option| Some((option.name, flags.get(option.name)?)));
    flags_set
        .filter(|(name, text)| !is_default(*name, text))
        .map(|(name, text)| format!(" --{name}={}", word(text)))
        .collect()
}

/// Quotes text as one word of a shell, if necessary.
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
    fn a_shell_parses_the_repeated_flags_as_the_original_values() {
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
