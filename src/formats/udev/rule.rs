//! What a line of rules means, or why udevd drops it.

use std::borrow::Cow;

use super::key::Key;
use super::location::Location;
use super::pair::Pair;
use memchr::arch::all::memchr::Three;

/// A line of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    pub(super) at: Location<'a>,
    /// In the order in which udevd asks them.
    pub(super) comparisons: Vec<Pair<'a>>,
    pub(super) assignments: Vec<Pair<'a>>,
    pub(super) label: Option<Cow<'a, [u8]>>,
    pub(super) goto: Option<Cow<'a, [u8]>>,
}

impl<'a> Rule<'a> {
    /// Reads the rule `at`; nothing where it cannot matter to kvm: it [`is_idle`], and one of its comparisons
    /// never holds. Most rules are for other devices, and leaving them at the first such comparison saves a
    /// tenth of a run.
    ///
    /// # Errors
    /// Why udevd drops it.
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

/// Hands each pair of a line to `push`, up to one by which the line cannot matter; whether there was none.
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

/// Whether a rule does nothing for kvm where one of its comparisons does not hold: no `GOTO` leads to it, and
/// it sets nothing for a static node. Nor does it name kvm, so that nothing has to be reported of it.
pub(super) fn is_idle(line: &[u8]) -> bool {
    // The three words by a letter of theirs that few others have.
    let mut after = 0;
    while let Some(found) = line
        .get(after..)
        .and_then(|rest| Three::new(b'k', b'B', b'P').find(rest))
    {
        let at = after + found;
        let from = |back: usize| at.checked_sub(back).and_then(|start| line.get(start..));
        let starts = |back, word| from(back).is_some_and(|text: &[u8]| text.starts_with(word));
        if starts(0, &b"kvm"[..]) || starts(2, b"LABEL") || starts(1, b"OPTIONS") {
            return false;
        }
        after = at + 1;
    }
    true
}
