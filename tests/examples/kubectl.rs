//! Builds the example manifests with kustomize, and runs the kubectl command of examples/README.md.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Value, json};

use crate::kubernetes::{OF_THE_NODE, mounts, request, typed};
use support::{copy, ok, project, read, yaml};

/// The fixtures and the number of their libvirt DaemonSets.
const FIXTURES: [(&str, usize); 4] = [
    ("genestack/base", 1),
    ("genestack/talos", 1),
    ("chart-2026.1", 1),
    ("label-overrides", 2),
];

/// The names and pods of the DaemonSets that kustomize builds from a resource and Components.
fn build(resource: &str, components: &[&str]) -> Vec<(String, PodSpec)> {
    let workspace = tempfile::tempdir().unwrap();
    let at = |name: &str| workspace.path().join(name);
    copy(&project("tests/fixtures"), &at("fixtures"));
    copy(&project("helm-patch"), &at("helm-patch"));
    copy(&project("examples/kubernetes"), &at("kubernetes"));
    fs::create_dir(at("overlay")).unwrap();
    let overlay = json!({ "resources": [resource], "components": components });
    fs::write(at("overlay/kustomization.yaml"), overlay.to_string()).unwrap();
    let built = ok(Command::new("kubectl").arg("kustomize").arg(at("overlay")));
    let sets = yaml::documents(&built);
    let sets = sets.iter().filter(|it| it["kind"] == "DaemonSet");
    let sets = sets.map(typed::<DaemonSet>);
    sets.map(|set| {
        let pod = set.spec.unwrap().template.spec.unwrap();
        (set.metadata.name.unwrap(), pod)
    })
    .collect()
}

/// Asserts that every mount has a volume and that volume names are unique.
fn assert_sound(name: &str, pod: &PodSpec) {
    let volumes = pod.volumes.as_deref().unwrap_or_default();
    let mut names: Vec<_> = volumes.iter().map(|volume| &volume.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), volumes.len(), "{name}: duplicate volume");
    for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
        for mount in mounts(container) {
            let known = names.contains(&&mount.name);
            assert!(known, "{name}: {} {mount:?}", container.name);
        }
    }
}

fn metrics_directory(pod: &PodSpec) -> Option<String> {
    let mut volumes = pod.volumes.iter().flatten();
    let volume = volumes.find(|volume| volume.name == "kvm-metrics")?;
    volume.host_path.as_ref().map(|host| host.path.clone())
}

const TEXTFILE: &str = "/var/lib/node_exporter/textfile_collector";

#[test]
fn sidecar_follows_the_step_in_every_libvirt_pod() {
    for (fixture, count) in FIXTURES {
        let resource = format!("../fixtures/{fixture}");
        let step = "../helm-patch/kustomize";
        for (more, directory) in [
            (&["../kubernetes/sidecar"][..], None),
            (
                &["../kubernetes/sidecar", "../kubernetes/textfile"],
                Some(TEXTFILE),
            ),
        ] {
            let sets = build(&resource, &[&[step], more].concat());
            let pods = sets
                .iter()
                .filter(|(name, _)| name.starts_with("libvirt-libvirt-"));
            assert_eq!(pods.clone().count(), count, "{fixture}");
            for (name, pod) in pods {
                assert_sound(name, pod);
                let init = pod.init_containers.as_ref().unwrap();
                let last: Vec<_> = init[init.len() - 2..].iter().collect();
                let names: Vec<_> = last.iter().map(|it| it.name.as_str()).collect();
                assert_eq!(
                    names,
                    ["libvirt-kvm-init", "libvirt-kvm-watch"],
                    "{fixture}"
                );
                assert_eq!(last[0].image, pod.containers[0].image, "{fixture}");
                assert_eq!(last[1].image, pod.containers[0].image, "{fixture}");
                assert_eq!(metrics_directory(pod).as_deref(), directory, "{fixture}");
            }
            // Other DaemonSets are unchanged.
            for (name, pod) in sets
                .iter()
                .filter(|(name, _)| !name.starts_with("libvirt-"))
            {
                assert_eq!(metrics_directory(pod), None, "{name}");
            }
        }
    }
}

#[test]
fn daemonset_builds_privileged_and_unprivileged() {
    let built = ok(Command::new("kubectl")
        .arg("kustomize")
        .arg(project("examples/kubernetes/daemonset")));
    let set: DaemonSet = typed(&yaml::parse(&built));
    let image = set.spec.unwrap().template.spec.unwrap().containers[0]
        .image
        .clone();
    assert_eq!(
        image.as_deref(),
        Some("YOUR-REGISTRY/libvirt-kvm-init:YOUR-TAG")
    );

    let (textfile, unprivileged) = ("../kubernetes/textfile", "../kubernetes/unprivileged");
    let sets = build("../kubernetes/daemonset", &[unprivileged, textfile]);
    let [(name, pod)] = &sets[..] else {
        panic!("{sets:?}")
    };
    assert_sound(name, pod);
    assert_eq!(metrics_directory(pod).as_deref(), Some(TEXTFILE));
    for volume in pod.volumes.iter().flatten() {
        let host = volume.host_path.as_ref().map(|host| host.path.as_str());
        assert!(host.is_none_or(|it| it == TEXTFILE || OF_THE_NODE.contains(&it)));
    }
    let watch = &pod.containers[0];
    let context = watch.security_context.as_ref().unwrap();
    assert_eq!(context.privileged, Some(false));
    assert_eq!(context.allow_privilege_escalation, Some(false));
    let capabilities = context.capabilities.as_ref().unwrap();
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    let add = capabilities.add.as_ref().unwrap();
    assert_eq!(add, &["CHOWN", "SYS_PTRACE"]);
    assert_eq!(
        request(watch).0.proof,
        libvirt_kvm_init::config::ProofKind::Off
    );
    assert!(
        watch.readiness_probe.is_none(),
        "readiness would never be reached without a proof"
    );
}

#[test]
fn flatcar_component_mounts_baselayout() {
    let sets = build("../kubernetes/daemonset", &["../kubernetes/flatcar"]);
    let [(name, pod)] = &sets[..] else {
        panic!("{sets:?}")
    };
    assert_sound(name, pod);
    let mount = mounts(&pod.containers[0]).last().unwrap();
    assert_eq!(mount.mount_path, "/host/usr/share/baselayout");
    assert_eq!(mount.read_only, Some(true));
    assert_eq!(mount.mount_propagation.as_deref(), Some("HostToContainer"));
    let volume = pod.volumes.iter().flatten().last().unwrap();
    let host = volume.host_path.as_ref().unwrap();
    assert_eq!(
        (&volume.name, host.path.as_str()),
        (&mount.name, "/usr/share/baselayout")
    );
    assert_eq!(host.type_.as_deref(), Some("Directory"));
}

/// An API server that implements what `kubectl get nodes` needs; it ends with the test.
fn api_server(nodes: &Value) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let resources = json!({
        "kind": "APIResourceList", "groupVersion": "v1", "resources": [{
            "name": "nodes", "singularName": "node", "namespaced": false, "kind": "Node",
            "verbs": ["get", "list"], "shortNames": ["no"],
        }],
    });
    let answers = [
        ("/api/v1/nodes", nodes.to_string()),
        ("/api/v1", resources.to_string()),
        (
            "/apis",
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [] }).to_string(),
        ),
        (
            "/api",
            json!({ "kind": "APIVersions", "versions": ["v1"] }).to_string(),
        ),
    ];
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let Some(Ok(request)) = lines.next() else {
                continue;
            };
            while lines
                .next()
                .is_some_and(|line| line.is_ok_and(|line| !line.is_empty()))
            {}
            let path = request.split_whitespace().nth(1).unwrap_or_default();
            let path = path.split('?').next().unwrap_or_default();
            let found = answers.iter().find(|(known, _)| *known == path);
            let (status, body) =
                found.map_or(("404 Not Found", "{}"), |(_, body)| ("200 OK", body));
            let _ = write!(
                stream,
                "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    port
}

fn node(name: &str, condition: Option<(&str, &str)>) -> Value {
    let mut conditions = vec![json!({ "type": "Ready", "status": "True", "message": "kubelet" })];
    if let Some((status, message)) = condition {
        let condition =
            json!({ "type": "LibvirtKVMProblem", "status": status, "message": message });
        conditions.push(condition);
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": name },
        "status": { "conditions": conditions },
    })
}

fn shell(line: &str, kubeconfig: &Path) -> String {
    ok(Command::new("sh")
        .args(["-c", line])
        .env("KUBECONFIG", kubeconfig)
        .env("HOME", "/nonexistent"))
}

/// The command in examples/README.md must print the output shown there.
#[test]
fn readme_command_prints_every_nodes_verdict() {
    let readme = read("examples/README.md");
    let block = readme
        .split("```console\n$ kubectl get nodes ")
        .nth(1)
        .unwrap();
    let (block, _) = block.split_once("```").unwrap();
    let (line, table) = block.split_once('\n').unwrap();
    let config: Value = serde_json::from_str(&read(
        "examples/node-problem-detector/libvirt-kvm-init.json",
    ))
    .unwrap();
    let good = config["conditions"][0]["message"].as_str().unwrap();
    // The line that node-problem-detector would get from the program.
    let mut report = libvirt_kvm_init::report::Report::new(
        libvirt_kvm_init::verdict::Verdict::Drift,
        "QEMU as nova (42424:424) cannot open /dev/kvm: EACCES; run `libvirt-kvm-init apply` to repair it",
    );
    report.proof.cause = Some(libvirt_kvm_init::codes::Cause::Ownership);
    let bad = libvirt_kvm_init::report::monitors::npd(&report);
    let nodes = json!({ "apiVersion": "v1", "kind": "NodeList", "metadata": {}, "items": [
        node("node-1", Some(("False", good))),
        node("node-2", Some(("True", bad.trim_end()))),
        node("node-3", None),
    ]});
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("config");
    let port = api_server(&nodes);
    let access = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{ "name": "test", "cluster": { "server": format!("http://127.0.0.1:{port}") } }],
        "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "" } }],
    });
    fs::write(&kubeconfig, access.to_string()).unwrap();
    let cache = dir.path().join("cache");
    let line = format!("kubectl --cache-dir={} get nodes {line}", cache.display());
    assert_eq!(shell(&line, &kubeconfig), table);
}
