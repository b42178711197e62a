//! Runs a pod that the patches render, as a kubelet does.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Container, PodSpec, Volume, VolumeMount};

use crate::node::{Image, Node, Running, copy_program, written_by};
use support::guest::{self, Guest};
use support::yaml;
use support::{Tree, ok, run, scratch};

pub const STEP: &str = "libvirt-kvm-init";
/// Mount point of the node's root, or of parts of it, in containers.
pub const HOST: &str = "/mnt/host-rootfs";

/// A replacement of the chart's script that reloads the KVM module: the node's device is then a new inode with owner
/// and mode 0:0 0600.
const MODULES: &str = "#!/bin/sh
set -e
rm /mnt/host-rootfs/dev/kvm
mknod -m 600 /mnt/host-rootfs/dev/kvm c 10 232
: >/etc/modprobe.d_host/loaded
";

/// A replacement of the chart's script that writes libvirtd's options.
const OPTIONS: &str = "#!/bin/sh
exec cp /etc/libvirt/libvirtd.conf.image /tmp/pod-shared/libvirtd.conf
";

/// A pod of a DaemonSet, and its directories on the node.
pub struct Pod<'a> {
    pub node: &'a Node,
    pub spec: PodSpec,
    /// The content of the config map of options.
    pub options: Vec<(&'static str, &'static str)>,
    /// The libvirt image; tests change it before they run containers.
    pub image: Tree,
    libvirt: Image,
    directory: PathBuf,
    pub guest: Guest,
    main: Option<(String, Running)>,
}

/// The result of a container.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// The container's writable layer.
    pub layer: PathBuf,
}

impl Ended {
    /// The last line of stderr, which `kubectl describe` shows.
    pub fn reason(&self) -> &str {
        self.stderr.lines().last().unwrap_or_default()
    }

    /// The container's own group file, if the container changed it.
    pub fn group(&self) -> Option<String> {
        fs::read_to_string(self.layer.join("etc/group")).ok()
    }
}

impl<'a> Pod<'a> {
    /// The pod of the first DaemonSet in a golden.
    pub fn new(node: &'a Node, golden: &str) -> Self {
        let documents = yaml::documents(&support::golden::golden(golden));
        let set: DaemonSet = serde_json::from_value(documents[0].clone()).unwrap();
        let spec = set.spec.unwrap().template.spec.unwrap();
        let (libvirt, image) = Image::libvirt(node);
        image.file("etc/libvirt/libvirtd.conf.image", guest::LIBVIRTD_CONF);
        let directory = tempfile::Builder::new().prefix("pod").tempdir_in(scratch());
        let mut pod = Self {
            node,
            spec,
            options: Vec::new(),
            image,
            libvirt,
            directory: directory.unwrap().keep(),
            guest: Guest {
                run: node.at("run/libvirt"),
                logs: PathBuf::new(),
                messages: PathBuf::new(),
                proc: "/proc".into(),
            },
            main: None,
        };
        pod.guest.logs = pod.volume("logs");
        for volume in pod.spec.volumes.iter().flatten() {
            pod.volume(&volume.name);
        }
        let domains = pod.volume("etc-libvirt-qemu");
        fs::write(domains.join("guest.xml"), guest::DOMAIN).unwrap();
        pod
    }

    /// Adds the program to the image.
    pub fn with_program(&self) {
        copy_program(&self.image.at("usr/local/bin/libvirt-kvm-init"));
    }

    /// Adds the program to the image, and the hook of helm-patch/values at the chart's path.
    pub fn with_hook(&self) {
        self.with_program();
        let hook = script("hooks.yaml", "/conf/hooks/scripts/daemon");
        let place = "etc/libvirt/hooks/daemon";
        self.image.file(place, &hook);
        let mode = fs::Permissions::from_mode(0o755);
        fs::set_permissions(self.image.at(place), mode).unwrap();
    }

    /// The path of a volume on the node; created if it does not exist.
    pub fn volume(&self, name: &str) -> PathBuf {
        let mut volumes = self.spec.volumes.iter().flatten();
        let volume = volumes.find(|volume| volume.name == name);
        let volume = volume.unwrap_or_else(|| panic!("no volume {name}"));
        // libvirt would create cgroups for its guests; without the mount it runs them without.
        if let Some(at) = volume.host_path.as_ref().filter(|_| name != "cgroup") {
            let path = self.node.at(&at.path);
            if !path.exists() {
                fs::create_dir_all(&path).unwrap();
            }
            return path;
        }
        let path = self.directory.join("volumes").join(name);
        if !path.exists() {
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
            fill(volume, &path);
        }
        path
    }

    /// One of the pod's containers.
    pub fn container(&mut self, name: &str) -> &mut Container {
        let init = self.spec.init_containers.iter_mut().flatten();
        let mut all = init.chain(&mut self.spec.containers);
        all.find(|container| container.name == name).unwrap()
    }

    /// Replaces an argument in a container's command.
    pub fn replace(&mut self, container: &str, old: &str, new: &[&str]) {
        let command = self.container(container).command.as_mut().unwrap();
        let at = command.iter().position(|word| word == old);
        let at = at.unwrap_or_else(|| panic!("no {old} in {command:?}"));
        command.splice(at..=at, new.iter().map(|word| (*word).to_owned()));
    }

    /// Removes a mount from a container.
    pub fn unmount(&mut self, container: &str, path: &str) {
        let mounts = self.container(container).volume_mounts.as_mut().unwrap();
        let before = mounts.len();
        mounts.retain(|mount| mount.mount_path != path);
        assert_eq!(mounts.len() + 1, before, "{path}");
    }

    /// Removes all mounts of the node's file system from a container.
    pub fn unmount_host(&mut self, container: &str) {
        let mounts = self.container(container).volume_mounts.as_mut().unwrap();
        let before = mounts.len();
        mounts.retain(|mount| !mount.mount_path.starts_with(HOST));
        assert!(mounts.len() < before, "{container}");
    }

    /// The name of the container and the `podman run` command for it.
    fn command(&self, container: &Container) -> (String, Command) {
        // A container without a command runs the entrypoint of its image.
        let entry = "/libvirt-kvm-init".to_owned();
        let (image, command) = match &container.command {
            Some(command) => (&self.libvirt, command),
            None => (&Image::program(), &vec![entry]),
        };
        let (mut podman, name, root) = self.node.run(&container.name, image);
        for (on, option) in [
            (self.spec.host_network, "--network=host"),
            (self.spec.host_pid, "--pid=host"),
            (self.spec.host_ipc, "--ipc=host"),
        ] {
            podman.args(on.unwrap_or(false).then_some(option));
        }
        set_privileges(container, &mut podman);
        for mount in container.volume_mounts.iter().flatten() {
            podman.arg("-v").arg(self.mount(mount));
        }
        podman.arg("-v").arg(self.termination_log(container));
        for (name, value) in self.variables(container) {
            podman.args(["-e", &format!("{name}={value}")]);
        }
        podman.arg("--rootfs").arg(root).args(command);
        podman.args(container.args.iter().flatten());
        (name, podman)
    }

    /// The variables that a container gets from the config map of options, as a whole or by key.
    fn variables(&self, container: &Container) -> Vec<(String, &str)> {
        const MAP: &str = "libvirt-kvm-init";
        let mut found = Vec::new();
        for (option, value) in &self.options {
            let mut sources = container.env_from.iter().flatten();
            let of_map = sources.any(|source| {
                let map = source.config_map_ref.as_ref();
                map.is_some_and(|map| map.name == MAP)
            });
            if of_map {
                found.push(((*option).to_owned(), *value));
            }
            for variable in container.env.iter().flatten() {
                let source = variable.value_from.as_ref();
                let key = source.and_then(|source| source.config_map_key_ref.as_ref());
                if key.is_some_and(|key| key.name == MAP && key.key == *option) {
                    found.push((variable.name.clone(), *value));
                }
            }
        }
        found
    }

    fn mount(&self, mount: &VolumeMount) -> String {
        let mut source = self.volume(&mount.name);
        if let Some(inner) = &mount.sub_path {
            source.push(inner);
            // The kubelet creates a missing path as a directory, too.
            if !source.exists() {
                fs::create_dir_all(&source).unwrap();
            }
        }
        let mut option = match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => "rslave",
            Some("Bidirectional") => "rshared",
            _ => "rprivate",
        }
        .to_owned();
        if mount.read_only == Some(true) {
            option += ",ro";
        }
        format!("{}:{}:{option}", source.display(), mount.mount_path)
    }

    fn termination_log(&self, container: &Container) -> String {
        let file = self
            .directory
            .join(format!("{}.termination", container.name));
        fs::write(&file, "").unwrap();
        let at = container.termination_message_path.as_deref();
        let at = at.unwrap_or("/dev/termination-log");
        format!("{}:{at}", file.display())
    }

    /// Runs the libvirt container and waits until it ends.
    pub fn libvirt(&self) -> Ended {
        self.ended(&self.spec.containers[0])
    }

    /// Runs an init container and waits until it ends.
    pub fn step(&self, name: &str) -> Ended {
        let mut steps = self.spec.init_containers.iter().flatten();
        let step = steps.find(|step| step.name == name);
        self.ended(step.unwrap_or_else(|| panic!("no init container {name}")))
    }

    /// Runs a container and waits until it ends.
    pub fn ended(&self, container: &Container) -> Ended {
        let began = Instant::now();
        let (name, mut podman) = self.command(container);
        let (code, stdout, stderr) = run(&mut podman);
        eprintln!(
            "{}: {code} after {:.1?}\n{stdout}{stderr}",
            container.name,
            began.elapsed()
        );
        Ended {
            code,
            stdout,
            stderr,
            layer: written_by(&name),
        }
    }

    /// Runs the init containers one after the other until one fails. Skips the one that waits for other services, since
    /// there is no cluster.
    pub fn init(&self) -> Result<(), (String, Ended)> {
        let steps = self.spec.init_containers.iter().flatten();
        for step in steps.filter(|step| step.name != "init") {
            let ended = self.ended(step);
            if ended.code != 0 {
                return Err((step.name.clone(), ended));
            }
        }
        Ok(())
    }

    /// Starts the libvirt container and waits until its libvirtd accepts connections.
    pub fn start(&mut self) {
        assert!(self.main.is_none());
        let (name, mut command) = self.command(&self.spec.containers[0]);
        self.guest.messages = self.directory.join(format!("{name}.log"));
        let log = fs::File::create_new(&self.guest.messages).unwrap();
        let _ = fs::remove_file(self.guest.socket());
        let began = Instant::now();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let mut running = Running::start(&mut command);
        while UnixStream::connect(self.guest.socket()).is_err() {
            let ended = running.ended();
            if ended.is_some() || began.elapsed() > Duration::from_secs(60) {
                panic!("{name}: no libvirtd ({ended:?}):\n{}", self.guest.said());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{name}: libvirtd is ready after {:.1?}", began.elapsed());
        self.main = Some((name, running));
    }

    /// Stops the libvirt container.
    pub fn stop(&mut self) {
        let (name, running) = self.main.take().expect("the libvirt container is running");
        ok(self.node.podman("stop").args(["--time=10", &name]));
        running.end();
    }

    /// Runs a command in the libvirt container, like `kubectl exec`.
    pub fn exec(&self, words: &[&str]) -> (i32, String, String) {
        let (name, _) = self
            .main
            .as_ref()
            .expect("the libvirt container is running");
        run(self.node.podman("exec").arg(name).args(words))
    }

    /// The libvirt container's own group file.
    pub fn group(&self) -> String {
        let (code, stdout, stderr) = self.exec(&["cat", "/etc/group"]);
        assert_eq!(code, 0, "{stderr}");
        stdout
    }
}

/// A script of helm-patch/values: `path` leads to it in the YAML.
pub fn script(file: &str, path: &str) -> String {
    let values = format!("{}/helm-patch/values/{file}", env!("CARGO_MANIFEST_DIR"));
    let values = yaml::parse(&fs::read_to_string(values).unwrap());
    values.pointer(path).unwrap().as_str().unwrap().to_owned()
}

/// Fills a volume with the content of its config map or secret.
fn fill(volume: &Volume, path: &Path) {
    let libvirt = format!(
        "#!/bin/sh\nset -ex\n{}\nPATH=/opt/libvirt/bin:/usr/local/bin \
         LIBVIRT_DRIVER_DIR=/opt/libvirt/drivers exec /usr/sbin/libvirtd\n",
        guest::CHART
    );
    if volume.empty_dir.is_some() {
        return;
    }
    let files: &[(&str, &str)] = match volume.name.as_str() {
        "libvirt-bin" => &[
            ("libvirt.sh", &libvirt),
            ("libvirt-init-modules.sh", MODULES),
            ("init-dynamic-options.sh", OPTIONS),
        ],
        "libvirt-etc" => &[("qemu.conf", guest::QEMU_CONF)],
        _ => &[],
    };
    let config = volume.config_map.as_ref().and_then(|it| it.default_mode);
    let secret = volume.secret.as_ref().and_then(|it| it.default_mode);
    let mode = config.or(secret).unwrap_or(0o644);
    // The kubelet uses this layout to replace the whole content atomically.
    fs::create_dir(path.join("..2026")).unwrap();
    symlink("..2026", path.join("..data")).unwrap();
    for (name, text) in files {
        let file = path.join("..2026").join(name);
        fs::write(&file, text).unwrap();
        let mode = fs::Permissions::from_mode(mode.try_into().unwrap());
        fs::set_permissions(&file, mode).unwrap();
        symlink(Path::new("..data").join(name), path.join(name)).unwrap();
    }
}

/// Sets the user and the privileges of a container.
fn set_privileges(container: &Container, podman: &mut Command) {
    let context = container.security_context.clone().unwrap_or_default();
    let user = context.run_as_user.unwrap_or(0);
    podman.args(["--user", &user.to_string()]);
    if context.privileged == Some(true) {
        podman.arg("--privileged");
    }
    let drop = context.capabilities.unwrap_or_default().drop;
    for capability in drop.iter().flatten() {
        podman.args(["--cap-drop", capability]);
    }
    if context.allow_privilege_escalation == Some(false) {
        podman.args(["--security-opt", "no-new-privileges"]);
    }
    if context.read_only_root_filesystem == Some(true) {
        podman.args(["--read-only", "--read-only-tmpfs=false"]);
    }
}
