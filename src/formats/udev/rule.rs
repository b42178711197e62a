//! Parses one line of a rules file.

use std::borrow::Cow;

use super::key::Key;
use super::location::Location;
use super::pair::Pair;
use memchr::arch::all::memchr::Three;

/// A parsed line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    pub(super) at: Location<'a>,
    /// In the order in which udevd evaluates them.
    pub(super) comparisons: Vec<Pair<'a>>,
    pub(super) assignments: Vec<Pair<'a>>,
    pub(super) label: Option<Cow<'a, [u8]>>,
    pub(super) goto: Option<Cow<'a, [u8]>>,
}

impl<'a> Rule<'a> {
    /// Parses the rule `at`. `None` if it cannot affect kvm: it [`is_idle`], and one of its comparisons is never
    /// true. Most rules are for other devices, and stopping at the first such comparison saves a tenth of a run.
    ///
    /// # Errors
    /// The reason why udevd drops the line.
    pub(super) fn read(
        at: Location<'a>,
        line: &Cow<'a, [u8]>,
        never: impl Fn(&Pair<'_>) -> bool,
    ) -> Result<Option<Self>, String> {
        let mut rule = Self {
            at,
            comparisons: Vec::new(),
            assignments: Vec::new(),
            label: None,
            goto: None,
        };
        let matters = match line {
            Cow::Borrowed(line) => pairs(line, never, |pair| rule.push(pair))?,
            Cow::Owned(line) => pairs(line, never, |pair| rule.push(pair.into_owned()))?,
        };
        rule.comparisons.sort_by_key(Pair::order);
        Ok(matters.then_some(rule))
    }

    fn push(&mut self, pair: Pair<'a>) {
        match pair.key {
            Key::Label => self.label = Some(pair.value),
            Key::Goto => {
                self.goto.get_or_insert(pair.value);
            }
            _ if pair.is_comparison() => self.comparisons.push(pair),
            _ => self.assignments.push(pair),
        }
    }
}

/// Passes each pair of a line to `push`. Stops and returns false at a pair that shows that the line cannot affect
/// kvm.
fn pairs<'a>(
    line: &'a [u8],
    never: impl Fn(&Pair<'_>) -> bool,
    mut push: impl FnMut(Pair<'a>),
) -> Result<bool, String> {
    let mut rest = line;
    while let Some((pair, after)) = Pair::read(rest)? {
        if never(&pair) && is_idle(line) {
            return Ok(false);
        }
        push(pair);
        rest = after;
    }
    Ok(true)
}

/// Whether a rule has no effect on kvm if one of its comparisons is false: no `GOTO` can jump to it, and it sets
/// nothing for a static node. It also must not contain `kvm`, because such rules can need a diagnostic.
pub(super) fn is_idle(line: &[u8]) -> bool {
    // Searches for the three words by one letter of each that is rare in rules.
    let mut after = 0;
    while let Some(offset) = line
        .get(after..)
        .and_then(|rest| Three::new(b'k', b'B', b'P').find(rest))
    {
        let at = after + offset;
        let from = |back: usize| at.checked_sub(back).and_then(|start| line.get(start..));
        let starts = |back, word| from(back).is_some_and(|text: &[u8]| text.starts_with(word));
        if starts(0, &b"kvm"[..]) || starts(2, b"LABEL") || starts(1, b"OPTIONS") {
            return false;
        }
        after = at + 1;
    }
    true
}
