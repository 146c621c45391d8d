//! All that is printed goes through here: results to stdout, problems to stderr.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::Result;
use serde_json::Value;

/// One line on stdout, there at once even in a pipe. Fails where nobody reads any more.
pub(crate) fn line(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(format!("{text}\n").as_bytes())?;
    out.flush()?;
    Ok(())
}

/// One value, one line.
pub(crate) fn json(value: &Value) -> Result<()> {
    line(value)
}

/// What went wrong, on stderr. Where that is closed nobody can be told.
pub(crate) fn problem(text: impl Display) {
    writeln!(io::stderr().lock(), "retune: {text}").ok();
}

/// An error with its causes, each once: many messages have their cause's words in them.
pub(crate) fn with_causes(error: &anyhow::Error) -> String {
    let mut said = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !said.contains(&cause) {
            said = format!("{said}: {cause}");
        }
    }
    said
}

/// Columns as wide as their widest cell.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> Result<()> {
    let mut widths: Vec<usize> = head.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        line(padded.join("  ").trim_end())
    };
    print(&mut head.iter().copied())?;
    rows.iter()
        .try_for_each(|row| print(&mut row.iter().map(String::as_str)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let source = || io::Error::other("the disk is full");
        let told = anyhow::Error::new(source()).context("cannot write a.json: the disk is full");
        assert_eq!(with_causes(&told), "cannot write a.json: the disk is full");
        let told = anyhow::Error::new(source())
            .context("cannot write a.json")
            .context("nothing is kept");
        assert_eq!(
            with_causes(&told),
            "nothing is kept: cannot write a.json: the disk is full"
        );
    }
}
