//! Parses the commands in the patches with the program's own command line.

use clap::Parser;
use libvirt_kvm_init::cli::{Cli, Command};
use libvirt_kvm_init::pipeline::Request;

use super::values::script;
use support::golden::{Way, golden_of};
use support::yaml;

/// The command of a container in a golden.
fn command(way: Way, list: &str, name: &str) -> Vec<String> {
    words(way, list, name, "command")
}

/// The arguments of an init container that runs this project's image, after the image's entrypoint.
fn args(name: &str) -> Vec<String> {
    let mut words = words(Way::Exec, "initContainers", name, "args");
    words.insert(0, "libvirt-kvm-init".to_owned());
    words
}

fn words(way: Way, list: &str, name: &str, field: &str) -> Vec<String> {
    let sets = yaml::documents(&golden_of("genestack/base", way));
    let containers = sets[0]["spec"]["template"]["spec"][list].as_array();
    let found = containers.unwrap().iter().find(|it| it["name"] == name);
    let words = found.unwrap()[field].as_array().unwrap().iter();
    words
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

/// The words of the single call of the program in a script, with continuation lines and variables resolved.
fn call(way: Way) -> Vec<String> {
    let text = script(way)
        .replace("\\\n", " ")
        .replace("\"$host", "/mnt/host-rootfs")
        .replace('"', "");
    let line = text
        .lines()
        .find(|line| line.contains("libvirt-kvm-init apply"));
    let words = line.unwrap().split_whitespace();
    words
        .skip_while(|word| *word != "libvirt-kvm-init")
        .take_while(|word| !word.starts_with(['>', '&']))
        .map(str::to_owned)
        .collect()
}

fn request(words: &[String]) -> Request {
    let cli = Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{words:?}: {e}"));
    let options = match cli.command {
        Command::Apply(options) => options,
        Command::Exec(options) => options.apply,
        _ => panic!("{words:?}"),
    };
    let none = |_: &std::path::Path| Err("no file".to_owned());
    Request::resolve(&options.flags, |_| None, none).unwrap().0
}

#[test]
fn program_accepts_the_commands_of_the_patches() {
    let step = command(Way::Kustomize, "initContainers", "libvirt-kvm-init");
    let wrapper = command(Way::Exec, "containers", "libvirt");
    let Command::Exec(exec) = Cli::try_parse_from(&wrapper).unwrap().command else {
        panic!("{wrapper:?}")
    };
    assert_eq!(exec.command, ["/tmp/libvirt.sh"]);
    let bring = args("libvirt-kvm-init-install");
    let Command::Install(install) = Cli::try_parse_from(&bring).unwrap().command else {
        panic!("{bring:?}")
    };
    assert_eq!(install.directory.to_str(), Some("/pod-shared"));
    for words in [step, wrapper, call(Way::Hooks), call(Way::InitModules)] {
        let request = request(&words);
        let shown = |path: &Option<std::path::PathBuf>| {
            path.as_ref().map(|path| path.display().to_string())
        };
        assert_eq!(
            shown(&request.sources.host_root).as_deref(),
            Some("/mnt/host-rootfs"),
            "{words:?}"
        );
        assert_eq!(request.settle.as_secs(), 30, "{words:?}");
    }
    let request = request(&call(Way::InitModules));
    assert_eq!(
        request.sources.device.display().to_string(),
        "/mnt/host-rootfs/dev/kvm"
    );
}
