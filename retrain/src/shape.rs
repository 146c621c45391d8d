//! What every trainer has to know of a base: how wide it is, and how long its context. Read from its configuration as it stands, since
//! a base that Retune's own trainer does not know may be another one's.

use std::path::Path;

use serde_json::Value;

use crate::Error;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Width of its layers.
    pub(crate) hidden: usize,
    /// Tokens.
    pub(crate) context: usize,
}

impl Shape {
    /// Of the base in a folder.
    pub(crate) fn of(base: &Path) -> Result<Self, Error> {
        let path = base.join("config.json");
        let text = std::fs::read_to_string(&path).map_err(Error::file(&path))?;
        let wrong = |what: String| Error::Base {
            path: path.clone(),
            what,
        };
        let config: Value =
            serde_json::from_str(&text).map_err(|error| wrong(format!("no JSON: {error}")))?;
        // Models of texts and images have the text's in an object of its own.
        let number = |key: &str| {
            let found = [&config, &config["text_config"]];
            let found = found.iter().find_map(|of| of[key].as_u64());
            let found = found.and_then(|n| usize::try_from(n).ok());
            found.ok_or_else(|| wrong(format!("without `{key}`, a whole number")))
        };
        Ok(Self {
            hidden: number("hidden_size")?,
            context: number("max_position_embeddings")?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn where_it_stands_and_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let of = |text: &str| {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            Shape::of(folder.path())
        };
        let wanted = Shape {
            hidden: 64,
            context: 512,
        };
        let plain = r#"{"hidden_size": 64, "max_position_embeddings": 512}"#;
        assert_eq!(of(plain).unwrap(), wanted);
        assert_eq!(
            of(&format!(r#"{{"text_config": {plain}}}"#)).unwrap(),
            wanted
        );
        for (text, says) in [
            ("{", "no JSON"),
            (r#"{"hidden_size": 64}"#, "max_position_embeddings"),
        ] {
            let error = of(text).unwrap_err().to_string();
            assert!(
                error.contains(says) && error.contains("config.json"),
                "{error}"
            );
        }
    }
}
