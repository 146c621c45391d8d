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
