//! The messages to search for. Pure.
//!
//! Every message contains `KVM` or `kvm`, its anchor. A block is searched only for the anchors, in two
//! passes however many messages there are; then the bytes around each anchor are compared.
//! To add a message, add a row to [`PATTERNS`], and a [`Form`] if it has a new meaning.
#![forbid(unsafe_code)]

use std::iter;
use std::ops::Range;

use memchr::memmem::Finder;

/// The meaning of a message. A later form is nearer to the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// libvirt: the emulator has no accelerator or virt type `kvm`, or no emulator has one.
    NoAccel,
    /// libvirt: `Domain requires KVM, but it is not available`
    Requires,
    /// QEMU: `failed to initialize kvm`, the last line of each KVM failure.
    Initialize,
    /// QEMU: `Could not access KVM kernel module`
    Access,
    /// QEMU: `ioctl(KVM_CREATE_VM) failed`
    CreateVm,
    /// QEMU: `kvm version too old`
    TooOld,
    /// QEMU: `kvm version not supported`
    NotSupported,
}

impl Form {
    /// The bit of this form in a set of forms.
    pub fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The text of each message before its anchor, the text from the anchor on, and its form.
pub const PATTERNS: [(&str, &str, Form); 10] = [
    ("Could not access ", "KVM kernel module", Form::Access),
    ("failed to initialize ", "kvm", Form::Initialize),
    ("failed to initialize ", "KVM", Form::Initialize),
    ("ioctl(", "KVM_CREATE_VM) failed", Form::CreateVm),
    ("", "kvm version too old", Form::TooOld),
    ("", "kvm version not supported", Form::NotSupported),
    ("Domain requires ", "KVM", Form::Requires),
    ("the accel '", "kvm' is not supported by", Form::NoAccel),
    ("does not support virt type '", "kvm'", Form::NoAccel),
    // `could not find capabilities for arch=x86_64 domaintype=kvm`
    ("domaintype=", "kvm", Form::NoAccel),
];

/// Upper limit for the length of a message, and so for its extent on either side of its anchor.
pub const LONGEST: usize = 64;

/// A message in a text. Positions are byte offsets into that text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    pub anchor: usize,
    pub end: usize,
    pub form: Form,
}

#[derive(Debug)]
pub struct Searcher {
    upper: Finder<'static>,
    lower: Finder<'static>,
}

impl Default for Searcher {
    fn default() -> Self {
        Self {
            upper: Finder::new("KVM"),
            lower: Finder::new("kvm"),
        }
    }
}

impl Searcher {
    /// The messages whose anchor begins in `range` of `text`, in order.
    pub fn messages<'a>(
        &'a self,
        text: &'a [u8],
        range: Range<usize>,
    ) -> impl Iterator<Item = Message> + 'a {
        // An anchor is three bytes long, so search two more bytes for one that begins at the end of the range.
        let end = text.len().min(range.end + 2);
        let part = text.get(range.start..end).unwrap_or_default();
        let mut upper = self.upper.find_iter(part).peekable();
        let mut lower = self.lower.find_iter(part).peekable();
        let mut anchors = iter::from_fn(move || match (upper.peek(), lower.peek()) {
            (Some(one), Some(other)) if other < one => lower.next(),
            (Some(_), _) => upper.next(),
            (None, _) => lower.next(),
        });
        iter::from_fn(move || anchors.find_map(|at| message(text, range.start + at)))
    }
}

/// The message around the anchor at `at`.
fn message(text: &[u8], at: usize) -> Option<Message> {
    let (before, after) = text.split_at(at);
    let is_here = |(head, rest, _): &&(&str, &str, _)| {
        after.starts_with(rest.as_bytes()) && before.ends_with(head.as_bytes())
    };
    let (_, rest, form) = PATTERNS.iter().find(is_here)?;
    Some(Message {
        anchor: at,
        end: at + rest.len(),
        form: *form,
    })
}
