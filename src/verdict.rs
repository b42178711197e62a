//! Verdicts and their exit codes, which are the same for every command.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// Outcome of a run, which determines the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The state is correct and QEMU can open KVM; with `--proof off` or `--missing skip`, exit code 0 does not imply
    /// that. `watch`: ended by a signal. `logs`: no failures found.
    Ok,
    /// `check` and `--dry-run`: QEMU cannot open KVM and `apply` would repair it; or QEMU can open KVM, but the file of
    /// `--group-file-out` is missing or out of date, or the node's next event or the chart's libvirt.sh will deny
    /// access. `logs`: failures found.
    Drift,
    /// Invalid flag, environment variable or configuration; nothing was changed.
    Usage,
    /// Refused by a safety check; nothing was changed.
    Refused,
    /// A system call failed (the message contains the call with its arguments), or the proof could not be run.
    Failed,
    /// The state is correct but QEMU cannot open KVM, or this container lacks the privilege to open the device.
    Unproven,
    /// No KVM on this node; nothing was changed.
    Absent,
}

impl Verdict {
    /// In the order of the exit codes.
    pub const ALL: [Self; 7] = [
        Self::Ok,
        Self::Drift,
        Self::Usage,
        Self::Refused,
        Self::Failed,
        Self::Unproven,
        Self::Absent,
    ];

    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Drift => 1,
            Self::Usage => 2,
            Self::Refused => 3,
            Self::Failed => 4,
            Self::Unproven => 5,
            Self::Absent => 6,
        }
    }

    /// The word in the report.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Drift => "drift",
            Self::Usage => "usage",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Unproven => "unproven",
            Self::Absent => "absent",
        }
    }
}
