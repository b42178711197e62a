//! What was said on a command line and has to be said again: variables and the configuration file speak
//! to the next command by themselves.

use std::path::Path;

use crate::cli::Options;

/// The flags that `apply` needs to mean what this command line meant, as a shell takes them, each after a
/// blank. `--persist` is not among them: whether it is needed is for the report to say.
pub(super) fn again(flags: &Options) -> String {
    const NOT: [&str; 6] = [
        "persist",
        "format",
        "dry-run",
        "recheck",
        "metrics-file",
        "status-file",
    ];
    // What says no more than nothing would, and another root may be named instead.
    let is_default = |name, text: &str| name == "root" && Path::new(text) == Path::new("/");
    let named = flags.named();
    let named = named.into_iter().filter(|(name, _)| !NOT.contains(name));
    let all = [("config", flags.config.as_ref())];
    let given = all.into_iter().chain(named);
    let given = given.filter_map(|(name, flag)| Some((name, flag?)));
    let given = given.filter(|(name, text)| !is_default(*name, text));
    given
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
    fn what_was_said_is_said_again_and_a_shell_reads_the_same() {
        let options = Options {
            config: Some("/etc/a b.yaml".to_owned()),
            host_root: Some("/mnt/host-rootfs".to_owned()),
            root: Some("//".to_owned()),
            qemu_user: Some("+107".to_owned()),
            qemu_group: Some("it's; $x `y`".to_owned()),
            strict: Some("true".to_owned()),
            persist: Some("true".to_owned()),
            format: Some("json".to_owned()),
            ..Options::default()
        };
        let again = again(&options);
        assert_eq!(
            again,
            " --config='/etc/a b.yaml' --host-root=/mnt/host-rootfs --qemu-user=+107 \
             --qemu-group='it'\\''s; $x `y`' --strict=true"
        );
        let script = format!("printf '%s\\n'{again}");
        let shell = std::process::Command::new("sh")
            .args(["-c", &script])
            .output();
        let said = String::from_utf8(shell.unwrap().stdout).unwrap();
        assert!(said.contains("\n--qemu-group=it's; $x `y`\n"), "{said}");
    }
}
