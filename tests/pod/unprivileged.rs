//! What the step may still do in a container that is not privileged, and what it says it could not prove.

use std::path::Path;

use k8s_openapi::api::core::v1::Capabilities;

use crate::failures::{goes_on, output, refuses, with_step};
use crate::kubelet::{Ended, Pod, STEP};
use crate::node::{DEVICE, Node, device, on_a_node};
use support::guest::NODE;
use support::set_owner;

const FILTER: &str = "the cgroup's device filter denies this container access, which says \
                      nothing about the node; run this step with privileged: true";

/// The patched pod, its step without `privileged` and without these capabilities.
fn without<'a>(node: &'a Node, capabilities: &[&str]) -> Pod<'a> {
    let mut pod = with_step(node);
    let context = pod.container(STEP).security_context.as_mut().unwrap();
    context.privileged = None;
    context.capabilities = Some(Capabilities {
        add: None,
        drop: Some(capabilities.iter().map(ToString::to_string).collect()),
    });
    pod
}

/// The device as the kernel makes it.
fn fresh() {
    set_owner(Path::new(DEVICE), 0, 0, 0o600);
}

/// The step does its work, and says that it could not prove it.
fn unproven(pod: &Pod, reason: &str) -> Ended {
    let ended = pod.step(STEP);
    assert_eq!(ended.code, 5, "{ended:?}");
    let start = "libvirt-kvm-init: unproven: ";
    assert!(ended.reason().starts_with(start), "{ended:?}");
    assert!(ended.reason().contains(reason), "{ended:?}");
    assert_eq!(device(), (0, NODE, 0o660), "{ended:?}");
    ended
}

/// Owner and mode may be changed; what may not be opened is not the node's fault.
#[test]
fn the_containers_device_filter() {
    on_a_node(|node| {
        let mut pod = without(node, &[]);
        fresh();
        let ended = unproven(&pod, FILTER);
        assert!(
            ended.stdout.contains("set-device-owner 0:0 -> 0:108"),
            "{ended:?}"
        );
        assert!(
            ended.stdout.contains("cause      device-cgroup"),
            "{ended:?}"
        );
        // All is right and nothing is left to do: it is still not proven.
        let ended = unproven(&pod, FILTER);
        assert!(!ended.stdout.contains("changed"), "{ended:?}");

        pod.options = vec![("LIBVIRT_KVM_INIT_PROOF", "off")];
        let ended = goes_on(&pod, NODE);
        assert!(ended.stdout.contains("warning    unproven: "), "{ended:?}");
        fresh();
        goes_on(&pod, NODE);
        assert_eq!(device(), (0, NODE, 0o660));
    });
}

/// Without the right to become QEMU's user nothing is asked.
#[test]
fn no_right_to_become_another_user() {
    on_a_node(|node| {
        let pod = without(node, &["SETUID", "SETGID"]);
        fresh();
        let ended = unproven(&pod, "run it as root with CAP_SETUID and CAP_SETGID");
        assert!(
            ended.stdout.contains("set-device-owner 0:0 -> 0:108"),
            "{ended:?}"
        );
        assert!(ended.stdout.contains("open(2) was not tried"), "{ended:?}");
    });
}

/// What it may not change it names, and leaves.
#[test]
fn no_right_to_give_the_device_away() {
    on_a_node(|node| {
        let denied = "fchownat(/dev/kvm, 0, 108): EPERM";
        for (capabilities, once_right) in [
            (&["CHOWN"][..], FILTER),
            (&["ALL"], "run it as root with CAP_SETUID and CAP_SETGID"),
        ] {
            let pod = without(node, capabilities);
            fresh();
            // The pod's file comes first, the device last.
            let ended = pod.step(STEP);
            assert_eq!(ended.code, 4, "{ended:?}");
            assert!(ended.reason().contains(denied), "{ended:?}");
            assert!(output(&pod).exists());
            assert_eq!(device(), (0, 0, 0o600));
            refuses(&pod, 4, "run this step as root with CAP_CHOWN");
            // The node has done it: there is nothing to change.
            node.event();
            unproven(&pod, once_right);
        }
    });
}

/// Not even root: what is right already is seen, and no more.
#[test]
fn another_user_than_root() {
    on_a_node(|node| {
        let mut pod = without(node, &["ALL"]);
        let context = pod.container(STEP).security_context.as_mut().unwrap();
        context.run_as_user = Some(65534);
        refuses(&pod, 4, "run this step as root");
        assert!(!output(&pod).exists());
        fresh();
        refuses(&pod, 4, "run this step as root");

        node.event();
        let context = pod.container(STEP).security_context.as_mut().unwrap();
        context.run_as_user = Some(0);
        unproven(&pod, "CAP_SETUID");
        let context = pod.container(STEP).security_context.as_mut().unwrap();
        context.run_as_user = Some(65534);
        unproven(&pod, "CAP_SETUID");
    });
}
