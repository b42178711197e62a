//! What a line of rules means, or why udevd drops it.

use std::borrow::Cow;

use super::key::Key;
use super::location::Location;
use super::pair::Pair;
use crate::find::three;

/// A line of rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule<'a> {
    pub(super) at: Location<'a>,
    /// What it compares and sets, in the order in which udevd handles it.
    pub(super) pairs: Vec<Pair<'a>>,
    pub(super) label: Option<Cow<'a, [u8]>>,
    pub(super) goto: Option<Cow<'a, [u8]>>,
}

impl<'a> Rule<'a> {
    /// Reads the rule `at`; nothing where it cannot matter to kvm: it [`is_idle`], and one of its comparisons
    /// never holds. Most rules are for other devices, so that this takes a tenth of the time of a run away.
    ///
    /// # Errors
    /// Why udevd drops it.
    pub(super) fn read(
        at: Location<'a>,
        line: &Cow<'a, [u8]>,
        never: impl Fn(&Pair<'_>) -> bool,
    ) -> Result<Option<Self>, String> {
        let pairs = match line {
            Cow::Borrowed(line) => pairs(line, never)?,
            Cow::Owned(line) => {
                pairs(line, never)?.map(|pairs| pairs.into_iter().map(Pair::into_owned).collect())
            }
        };
        let Some(mut pairs) = pairs else {
            return Ok(None);
        };
        let values = |key| pairs.iter().filter(move |pair| pair.key == key);
        let label = values(Key::Label)
            .next_back()
            .map(|pair| pair.value.clone());
        let goto = values(Key::Goto).next().map(|pair| pair.value.clone());
        pairs.retain(|pair| !matches!(pair.key, Key::Label | Key::Goto));
        pairs.sort_by_key(|pair| (!pair.is_comparison(), pair.order()));
        Ok(Some(Self {
            at,
            pairs,
            label,
            goto,
        }))
    }
}

/// The pairs of a line; nothing where it cannot matter.
fn pairs<'a>(
    line: &'a [u8],
    never: impl Fn(&Pair<'_>) -> bool,
) -> Result<Option<Vec<Pair<'a>>>, String> {
    let mut pairs = Vec::new();
    let mut rest = line;
    while let Some((pair, after)) = Pair::read(rest)? {
        if never(&pair) && is_idle(line) {
            return Ok(None);
        }
        pairs.push(pair);
        rest = after;
    }
    Ok(Some(pairs))
}

/// Whether a rule does nothing for kvm where one of its comparisons does not hold: no `GOTO` leads to it, and
/// it sets nothing for a static node. Nor does it name kvm, so that nothing has to be reported of it.
pub(super) fn is_idle(line: &[u8]) -> bool {
    // The three words by a letter of theirs that few others have.
    let mut after = 0;
    while let Some(found) = line
        .get(after..)
        .and_then(|rest| three(b'k', b'B', b'P', rest))
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
