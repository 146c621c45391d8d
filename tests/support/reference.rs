//! Pages of docs/reference/ whose tables are made from the code: a test of each crate that has one says what it should be.
//!
//! `RETUNE_WRITE_REFERENCE=1 cargo test --release reference` writes them anew.
#![allow(
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "tests, each of which wants a part"
)]

use std::path::Path;

/// A row of a table.
pub(crate) fn row(cells: &[&str]) -> String {
    format!("| {} |\n", cells.join(" | "))
}

/// A metric's row.
pub(crate) fn metric(kind: &str, name: &str, labels: &[String], help: &str) -> String {
    let kind = kind.trim_start_matches("Int").trim_end_matches("Vec");
    let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
    let (kind, labels) = (kind.to_lowercase(), labels.join(", "));
    row(&[&format!("`{name}`"), &kind, &labels, help])
}

/// Fails unless the page's part between `<!-- part -->` and `<!-- /part -->` is this.
pub(crate) fn holds(page: &str, part: &str, made: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = root.ancestors().map(|folder| folder.join("docs/reference"));
    let folder = folders
        .find(|folder| folder.is_dir())
        .expect("docs/reference");
    let path = folder.join(page);
    let text = std::fs::read_to_string(&path).expect(page);
    let (open, close) = (format!("<!-- {part} -->\n"), format!("<!-- /{part} -->"));
    let (before, rest) = text.split_once(&open).expect(&open);
    let (written, after) = rest.split_once(&close).expect(&close);
    if written == made {
        return;
    }
    if std::env::var_os("RETUNE_WRITE_REFERENCE").is_some() {
        // Other parts of the page are written by other tests at the same time, in other processes: each is run by itself.
        std::fs::write(&path, format!("{before}{open}{made}{close}{after}")).expect(page);
        return;
    }
    panic!(
        "docs/reference/{page}, part {part}, is not what the code says; RETUNE_WRITE_REFERENCE=1 writes it anew:\n{made}"
    );
}
