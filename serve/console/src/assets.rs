//! The console's files, inside of the program: nothing of a page comes from elsewhere.
//!
//! Each has its digest in its address, so that a browser may keep it for ever and never has an old one.

use std::sync::LazyLock;

/// A file.
#[derive(Debug)]
pub struct Asset {
    /// Its name, without the digest.
    pub name: &'static str,
    /// What it is.
    pub content_type: &'static str,
    /// All of it.
    pub text: &'static str,
    /// The first of its SHA-256.
    pub digest: String,
}

/// Hex digits of a digest.
const DIGITS: usize = 12;
const FOLDER: &str = "/console/assets/";

static ALL: LazyLock<Vec<Asset>> = LazyLock::new(|| {
    const CSS: &str = "text/css; charset=utf-8";
    const JS: &str = "text/javascript; charset=utf-8";
    let all = [
        ("console.css", CSS, include_str!("../assets/console.css")),
        ("console.js", JS, include_str!("../assets/console.js")),
        ("plot.js", JS, include_str!("../assets/plot.js")),
        ("try.js", JS, include_str!("../assets/try.js")),
        (
            "htmx.min.js",
            JS,
            include_str!("../assets/vendor/htmx.min.js"),
        ),
        (
            "uplot.min.js",
            JS,
            include_str!("../assets/vendor/uplot.min.js"),
        ),
        (
            "uplot.min.css",
            CSS,
            include_str!("../assets/vendor/uplot.min.css"),
        ),
        (
            "icon.svg",
            "image/svg+xml",
            include_str!("../assets/icon.svg"),
        ),
    ];
    let asset = |(name, content_type, text)| Asset {
        name,
        content_type,
        text,
        digest: retune_task::sha256(text).chars().take(DIGITS).collect(),
    };
    all.into_iter().map(asset).collect()
});

/// Where a file is; the folder alone where there is none of that name.
pub(crate) fn address(name: &str) -> String {
    let asset = ALL.iter().find(|asset| asset.name == name);
    asset.map_or_else(
        || FOLDER.to_owned(),
        |asset| format!("{FOLDER}{}-{name}", asset.digest),
    )
}

/// The file that an address's last part names; of another digest there is none.
pub fn find(last: &str) -> Option<&'static Asset> {
    let (digest, name) = last.split_once('-')?;
    ALL.iter()
        .find(|asset| asset.name == name && asset.digest == digest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn each_file_is_found_where_pages_say_and_nothing_comes_from_elsewhere() {
        for asset in ALL.iter() {
            let address = address(asset.name);
            let last = address.strip_prefix(FOLDER).unwrap();
            assert_eq!(find(last).unwrap().name, asset.name);
            let own = !asset.name.contains(".min.");
            assert!(!own || !asset.text.contains("https://"), "{}", asset.name);
        }
        for last in ["console.css", "0-console.css", "-", "", "../x"] {
            assert!(find(last).is_none(), "{last}");
        }
    }

    #[test]
    fn no_page_is_over_200_kb_with_all_its_files() {
        let all: usize = ALL.iter().map(|asset| asset.text.len()).sum();
        // What is left is a page's own.
        assert!(all < 140_000, "{all}");
    }
}
