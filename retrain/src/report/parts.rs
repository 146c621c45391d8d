//! What a report says of parts: the figures by slices of the traffic, and the regression suite with what was lost of it.

use std::fmt::Write as _;

use super::Report;
use crate::slices::Slice;
use crate::verdict::Paired;

/// One part, as a row of text.
pub(super) struct Part {
    pub(super) name: String,
    pub(super) votes: String,
    pub(super) candidate: String,
    pub(super) baseline: String,
    /// Why it stands out.
    pub(super) note: &'static str,
}

impl Part {
    fn of_slice(slice: &Slice) -> Self {
        Self {
            name: format!("{} = {}", slice.by, slice.value),
            votes: format!("{} / {} / {}", slice.wins, slice.losses, slice.ties),
            note: match (slice.votes_worse, slice.format_worse) {
                (true, true) => "worse, in its format too",
                (true, false) => "worse",
                (false, true) => "worse in its format",
                (false, false) => "",
            },
            ..Self::of_paired("", &slice.format)
        }
    }

    fn of_paired(name: &str, paired: &Paired) -> Self {
        Self {
            name: name.to_owned(),
            votes: String::new(),
            candidate: format!("{} of {}", paired.candidate, paired.prompts),
            baseline: format!("{} of {}", paired.baseline, paired.prompts),
            note: "",
        }
    }
}

impl Report {
    pub(super) fn slice_parts(&self) -> Vec<Part> {
        self.slices.iter().map(Part::of_slice).collect()
    }

    /// The whole suite first, then its slices.
    pub(super) fn suite_parts(&self) -> Vec<Part> {
        let Some(regression) = &self.regression else {
            return Vec::new();
        };
        let whole = Part {
            note: match regression.suite.shown_worse_once() {
                true => "worse",
                false => "",
            },
            ..Part::of_paired("all", &regression.suite)
        };
        let slices = regression.slices.iter();
        let slices = slices.map(|(name, paired)| Part::of_paired(name, paired));
        std::iter::once(whole).chain(slices).collect()
    }

    pub(super) fn write_parts(&self, page: &mut String) -> std::fmt::Result {
        let candidate = self.adapter.as_deref().unwrap_or("no candidate");
        if !self.slices.is_empty() {
            writeln!(
                page,
                "\n### By parts of the traffic\n\n| | won / lost / alike | format of `{candidate}` | format of `{}` | |\n|---|---|---|---|---|",
                self.baseline
            )?;
            for part in self.slice_parts() {
                writeln!(
                    page,
                    "| {} | {} | {} | {} | {} |",
                    cell(&part.name),
                    part.votes,
                    part.candidate,
                    part.baseline,
                    part.note
                )?;
            }
        }
        let Some(regression) = &self.regression else {
            return Ok(());
        };
        writeln!(
            page,
            "\n### Regression suite: answers that pass\n\n| | `{candidate}` | `{}` | |\n|---|---|---|---|",
            self.baseline
        )?;
        for part in self.suite_parts() {
            writeln!(
                page,
                "| {} | {} | {} | {} |",
                cell(&part.name),
                part.candidate,
                part.baseline,
                part.note
            )?;
        }
        for lost in &regression.lost {
            writeln!(page)?;
            for (what, text) in [
                ("lost", &lost.name),
                ("prompt", &lost.prompt),
                ("check", &lost.check),
                ("candidate", &lost.candidate),
                ("baseline", &lost.baseline),
            ] {
                // Indented text is literal in Markdown.
                let text = text.replace('\n', "\n               ");
                writeln!(page, "    {what:>9}: {text}")?;
            }
        }
        Ok(())
    }
}

/// A name that an app or a suite gave, as literal text on one line.
pub(crate) fn cell(name: &str) -> String {
    let plain = |c: char| match c {
        '|' | '`' | '<' | '>' | '[' | ']' | '\\' => ' ',
        c if c.is_control() => ' ',
        c => c,
    };
    name.chars().map(plain).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_name_cannot_leave_its_cell() {
        assert_eq!(super::cell("team = a|b\n<b>`c`"), "team = a b  b  c ");
    }
}
