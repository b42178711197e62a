//! Verdicts and the exit codes that stand for them, the same for every command.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};

/// What the run came to. The exit code follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The state is right, and QEMU can open KVM (or `--proof off`, `--missing skip`). `watch`: a signal
    /// ended it. `logs`: no failure found.
    Ok,
    /// `check` and `--dry-run`: QEMU cannot open KVM and `apply` would mend it, or it can and the node's
    /// next event or the chart's libvirt.sh takes it away. `logs`: failures found.
    Drift,
    /// A bad flag or configuration; nothing was changed.
    Usage,
    /// A safety rule said no; nothing was changed.
    Refused,
    /// A system call failed; the text names it with its arguments. Also a proof that could not be done.
    Failed,
    /// The state is right and QEMU still cannot open KVM, or this container may not ask.
    Unproven,
    /// No KVM on this node; nothing was changed.
    Absent,
}

impl Verdict {
    /// All of them, by exit code.
    pub const ALL: [Self; 7] = [
        Self::Ok,
        Self::Drift,
        Self::Usage,
        Self::Refused,
        Self::Failed,
        Self::Unproven,
        Self::Absent,
    ];

    /// The exit code.
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

    /// The word for it, as the report has it.
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
