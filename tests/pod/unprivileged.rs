//! Tests of the step in containers that are not privileged: which changes it can still make, and what it reports
//! instead of a proof.

use std::path::Path;

use k8s_openapi::api::core::v1::Capabilities;

use crate::failures::{goes_on, output, refuses, with_step};
use crate::kubelet::{Ended, Pod, STEP};
use crate::node::{DEVICE, Node, device, on_a_node};
use support::guest::NODE;
use support::set_owner;

const FILTER: &str = "the cgroup's device filter denies this container access, which says \
                      nothing about the node; run this step with privileged: true";

/// The patched pod, whose step runs without `privileged` and without these capabilities.
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

/// Sets the device to the state in which the kernel creates it.
fn fresh() {
    set_owner(Path::new(DEVICE), 0, 0, 0o600);
}

/// Asserts that the step makes its changes and reports that it could not prove the result.
fn unproven(pod: &Pod, reason: &str) -> Ended {
    let ended = pod.step(STEP);
    assert_eq!(ended.code, 5, "{ended:?}");
    let start = "libvirt-kvm-init: unproven: ";
    assert!(ended.reason().starts_with(start), "{ended:?}");
    assert!(ended.reason().contains(reason), "{ended:?}");
    assert_eq!(device(), (0, NODE, 0o660), "{ended:?}");
    ended
}

/// The step can change owner and mode; that it cannot open the device is due to its container, not to the node.
#[test]
fn step_under_device_filter_is_unproven() {
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
        // With nothing left to change, the result is still not proven.
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

/// Without the capabilities to take on the QEMU identity, the step does not open the device.
#[test]
fn step_without_setuid_and_setgid_is_unproven() {
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

/// The step reports the change that it has no permission for.
#[test]
fn step_without_chown_fails() {
    on_a_node(|node| {
        let denied = "fchownat(/dev/kvm, 0, 108): EPERM";
        for (capabilities, once_right) in [
            (&["CHOWN"][..], FILTER),
            (&["ALL"], "run it as root with CAP_SETUID and CAP_SETGID"),
        ] {
            let pod = without(node, capabilities);
            fresh();
            // The step writes the pod's group file first and changes the device last.
            let ended = pod.step(STEP);
            assert_eq!(ended.code, 4, "{ended:?}");
            assert!(ended.reason().contains(denied), "{ended:?}");
            assert!(output(&pod).exists());
            assert_eq!(device(), (0, 0, 0o600));
            refuses(&pod, 4, "run this step as root with CAP_CHOWN");
            // After a udev event nothing is left to change.
            node.event();
            unproven(&pod, once_right);
        }
    });
}

/// As another user than root, the step can only confirm a state that is already correct.
#[test]
fn step_as_non_root_fails_or_is_unproven() {
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
