//! An output format, and whether an answer holds it. Pure: compiled once, checked without I/O.

mod cycle;

use std::sync::Arc;

use jsonschema::PatternOptions;
use regex::Regex;
use serde_json::Value;

/// Steps after which a backtracking pattern of a schema gives up: some milliseconds.
const BACKTRACKS: usize = 100_000;

/// What every answer of a task must look like.
#[derive(Debug)]
pub struct Format {
    kind: Kind,
    grammar: Option<Arc<Grammar>>,
}

/// What answers can be held to while they are made, token by token.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that this schema allows.
    JsonSchema(Value),
    /// Any JSON object.
    JsonObject,
    /// A regular expression for the whole answer.
    Regex(String),
}

#[derive(Debug)]
enum Kind {
    JsonSchema(Box<jsonschema::Validator>),
    Regex(Regex),
    Template(Regex),
    Length { least: usize, most: usize },
}

/// What came out of checking an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It holds the format.
    Valid,
    /// It does not.
    Invalid {
        /// A metric label out of a closed set: `not_json`, `type`, `required`, `additional`, `enum`, `pattern`,
        /// `schema` (any other keyword), `regex`, `template`, `too_short`, `too_long`.
        reason: &'static str,
        /// What is wrong, for a person; holds parts of the answer.
        detail: String,
    },
}

impl Check {
    /// Whether the answer holds the format.
    pub fn is_valid(&self) -> bool {
        *self == Check::Valid
    }

    fn invalid(reason: &'static str, detail: impl Into<String>) -> Self {
        Check::Invalid {
            reason,
            detail: detail.into(),
        }
    }
}

impl Format {
    /// From the text of a JSON schema, draft 2020-12 where it names none. `format` is checked, in every draft; references to other
    /// documents are not resolved. A `pattern` with look-around or back-references backtracks: past
    /// 100,000 steps the answer counts as invalid, so that no answer holds up a server.
    pub fn json_schema(text: &str) -> Result<Self, String> {
        let schema: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        if cycle::has_cycle(&schema) {
            return Err("not a JSON schema: a $ref in it leads back to itself without looking at a part of the answer; expected a way out".into());
        }
        let validator = jsonschema::options()
            .should_validate_formats(true)
            .with_pattern_options(PatternOptions::fancy_regex().backtrack_limit(BACKTRACKS))
            .build(&schema)
            .map_err(|e| format!("not a JSON schema: {}{e}", at(&e.instance_path)))?;
        Ok(Format {
            kind: Kind::JsonSchema(Box::new(validator)),
            grammar: Some(Arc::new(Grammar::JsonSchema(schema))),
        })
    }

    /// From a regular expression that the whole answer must match, white space around it included. It runs in time linear
    /// in the answer's length.
    pub fn regex(pattern: &str) -> Result<Self, String> {
        // By itself first: `a)|(b` would become right, and mean something else, inside the brackets.
        Regex::new(pattern).map_err(|e| e.to_string())?;
        // A pattern that ends in a comment, as (?x) allows, needs a line's end before the bracket.
        let whole = Regex::new(&format!(r"\A(?:{pattern})\z"))
            .or_else(|_| Regex::new(&format!("\\A(?:{pattern}\n)\\z")))
            .map_err(|e| e.to_string())?;
        Ok(Format {
            kind: Kind::Regex(whole),
            grammar: Some(Arc::new(Grammar::Regex(pattern.to_owned()))),
        })
    }

    /// From a text with `{placeholders}`, named by letters, digits and `_`; `{{` and `}}` are braces. Each stands for some
    /// text on one line, the last for some text on any lines; white space alone is no text, and around the answer it is ignored.
    pub fn template(text: &str) -> Result<Self, String> {
        const PLACEHOLDER: &str = r".*\S.*";
        const LAST: &str = r"(?s:.*\S.*)";
        let mut pieces = Vec::new();
        let mut last = None;
        let mut rest = text.trim();
        while let Some(brace) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(brace);
            pieces.push(regex::escape(before));
            if from.starts_with("{{") || from.starts_with("}}") {
                pieces.push(regex::escape(&from[..1]));
                rest = &from[2..];
                continue;
            }
            let name = from.strip_prefix('{').and_then(|s| s.split_once('}'));
            let named = name.filter(|(name, _)| {
                !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
            });
            let Some((_, after)) = named else {
                return Err(format!(
                    "{:?} begins no {{placeholder}}; a brace that belongs to the text is written {{{{ or }}}}",
                    from.chars().take(20).collect::<String>()
                ));
            };
            last = Some(pieces.len());
            pieces.push(PLACEHOLDER.to_owned());
            rest = after;
        }
        let last = last.ok_or("there is no {placeholder} in it")?;
        pieces[last] = LAST.to_owned();
        let pattern = format!(r"\A{}{}\z", pieces.concat(), regex::escape(rest));
        Ok(Format {
            kind: Kind::Template(Regex::new(&pattern).map_err(|e| e.to_string())?),
            grammar: None,
        })
    }

    /// From the least and the most characters (Unicode scalar values) an answer may have.
    pub fn length(least: usize, most: usize) -> Result<Self, String> {
        if least > most {
            return Err(format!("the least, {least}, is above the most, {most}"));
        }
        Ok(Format {
            kind: Kind::Length { least, most },
            grammar: None,
        })
    }

    /// `json_schema`, `regex`, `template` or `length`.
    pub fn kind(&self) -> &'static str {
        match self.kind {
            Kind::JsonSchema(_) => "json_schema",
            Kind::Regex(_) => "regex",
            Kind::Template(_) => "template",
            Kind::Length { .. } => "length",
        }
    }

    /// What answers can be held to; none of templates and lengths.
    pub fn grammar(&self) -> Option<&Arc<Grammar>> {
        self.grammar.as_ref()
    }

    /// Checks a whole answer. For a schema the answer must be one JSON value; white space around it is allowed, code
    /// fences and other text are not: a program reads it. Of a key that stands twice the last counts, as with most parsers.
    pub fn check(&self, answer: &str) -> Check {
        match &self.kind {
            Kind::JsonSchema(schema) => check_json(schema, answer),
            Kind::Regex(regex) if regex.is_match(answer) => Check::Valid,
            Kind::Regex(_) => {
                Check::invalid("regex", "the answer does not match the regular expression")
            }
            Kind::Template(regex) if regex.is_match(answer.trim()) => Check::Valid,
            Kind::Template(_) => {
                Check::invalid("template", "the answer does not fill the template")
            }
            Kind::Length { least, most } => match answer.chars().count() {
                n if n < *least => {
                    Check::invalid("too_short", format!("{n} characters; at least {least}"))
                }
                n if n > *most => {
                    Check::invalid("too_long", format!("{n} characters; at most {most}"))
                }
                _ => Check::Valid,
            },
        }
    }
}

fn check_json(schema: &jsonschema::Validator, answer: &str) -> Check {
    use jsonschema::error::ValidationErrorKind as E;
    let value: Value = match serde_json::from_str(answer) {
        Ok(value) => value,
        Err(error) => return Check::invalid("not_json", error.to_string()),
    };
    let Err(error) = schema.validate(&value) else {
        return Check::Valid;
    };
    let reason = match error.kind {
        E::Type { .. } => "type",
        E::Required { .. } => "required",
        E::AdditionalProperties { .. } | E::UnevaluatedProperties { .. } => "additional",
        E::Enum { .. } | E::Constant { .. } => "enum",
        E::Pattern { .. } | E::Format { .. } => "pattern",
        _ => "schema",
    };
    Check::invalid(reason, format!("{}{error}", at(&error.instance_path)))
}

/// Where in a document, as a prefix of what is wrong there.
fn at(path: &jsonschema::paths::Location) -> String {
    match path.as_str() {
        "" => String::new(),
        path => format!("{path}: "),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::{Check, Format};

    fn reason(format: &Format, answer: &str) -> &'static str {
        match format.check(answer) {
            Check::Valid => "valid",
            Check::Invalid { reason, .. } => reason,
        }
    }

    #[test]
    fn json_schema() {
        let format = Format::json_schema(
            r#"{"type": "object", "required": ["team", "day"], "additionalProperties": false, "properties": {
                "team": {"enum": ["billing", "shipping"]},
                "day": {"type": ["string", "null"], "pattern": "^\\d{4}-\\d{2}-\\d{2}$"},
                "n": {"type": "integer", "minimum": 1}}}"#,
        )
        .unwrap();
        for (answer, expected) in [
            (r#"{"team": "billing", "day": null}"#, "valid"),
            (
                " {\"team\": \"shipping\", \"day\": \"2026-03-14\"}\n",
                "valid",
            ),
            ("```json\n{}\n```", "not_json"),
            (r#"{"team": "billing", "day": null} thanks"#, "not_json"),
            (r#"{"team": "x", "team": "billing", "day": null}"#, "valid"),
            (r#"{"team": "billing""#, "not_json"),
            ("", "not_json"),
            ("[]", "type"),
            (r#"{"team": "billing"}"#, "required"),
            (r#"{"team": "sales", "day": null}"#, "enum"),
            (r#"{"team": "billing", "day": "14 March"}"#, "pattern"),
            (r#"{"team": "billing", "day": null, "x": 1}"#, "additional"),
            (r#"{"team": "billing", "day": null, "n": 0}"#, "schema"),
        ] {
            assert_eq!(reason(&format, answer), expected, "{answer}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(reason(&format, &deep), "not_json");
    }

    #[test]
    fn a_schema_is_refused_where_it_would_not_be_checked_as_written() {
        for (wrong, why) in [
            ("{", "not JSON"),
            (r#"{"type": "objekt"}"#, "not a JSON schema: /type"),
            (
                r#"{"pattern": "("}"#,
                r#"not a JSON schema: "(" is not a "regex""#,
            ),
            (r##"{"allOf": [{"$ref": "#"}]}"##, "leads back to itself"),
            (r##"{"$ref": "#/$defs/none"}"##, "none"),
            (r#"{"$ref": "file:///etc/hostname"}"#, "/etc/hostname"),
            (r#"{"$ref": "http://127.0.0.1:9/a.json"}"#, "127.0.0.1:9"),
        ] {
            let error = Format::json_schema(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
    }

    #[test]
    fn formats_are_checked_in_every_draft() {
        for draft in ["draft-07/schema#", "draft/2020-12/schema"] {
            let host = if draft.contains('#') { "http" } else { "https" };
            let schema =
                format!(r#"{{"$schema": "{host}://json-schema.org/{draft}", "format": "date"}}"#);
            let format = Format::json_schema(&schema).unwrap();
            assert_eq!(reason(&format, r#""2028-02-29""#), "valid", "{draft}");
            assert_eq!(reason(&format, r#""2026-02-29""#), "pattern", "{draft}");
        }
    }

    #[test]
    fn a_pattern_that_backtracks_without_end_is_cut_off() {
        let format = Format::json_schema(r#"{"pattern": "^(a|a)+(?!b)c$"}"#).unwrap();
        let began = std::time::Instant::now();
        let answer = format!("\"{}\"", "a".repeat(60));
        assert_eq!(
            reason(&format, &answer),
            "schema",
            "not `pattern`: undecided"
        );
        assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    }

    #[test]
    fn regex_template_and_length() {
        let regex = Format::regex("yes|no").unwrap();
        assert_eq!(reason(&regex, "yes"), "valid");
        assert_eq!(reason(&regex, "yes, no"), "regex");
        assert_eq!(reason(&regex, "yes\n"), "regex");
        assert_eq!(reason(&Format::regex("(?m)^a$").unwrap(), "a\nb"), "regex");
        let commented = Format::regex("(?x) a b # two letters").unwrap();
        assert_eq!(reason(&commented, "ab"), "valid");
        assert_eq!(reason(&commented, "abc"), "regex");
        assert!(Format::regex("(").is_err());
        assert!(Format::regex("a)|(?:b").is_err());

        let template = Format::template("Dear {name},\n{body}\nYours, Acme").unwrap();
        assert_eq!(
            reason(&template, "Dear Ann,\nOne.\nTwo.\nYours, Acme"),
            "valid"
        );
        assert_eq!(reason(&template, "Dear ,\nOne.\nYours, Acme"), "template");
        assert_eq!(
            reason(&template, "Dear A\nB,\nOne.\nYours, Acme"),
            "template"
        );
        assert_eq!(reason(&template, "Dear  ,\nOne.\nYours, Acme"), "template");
        let json = Format::template("{{\"a\": {a_1}}}").unwrap();
        assert_eq!(reason(&json, " {\"a\": 1}\n"), "valid");
        assert_eq!(reason(&json, "\"a\": 1"), "template");
        for wrong in [
            "nothing to fill",
            "{",
            "{}",
            "}",
            "{a",
            "{\"a\": {x}}",
            "a { b }",
        ] {
            assert!(Format::template(wrong).is_err(), "{wrong}");
        }

        let length = Format::length(2, 4).unwrap();
        assert_eq!(reason(&length, "äöü"), "valid");
        assert_eq!(reason(&length, "a"), "too_short");
        assert_eq!(reason(&length, "abcde"), "too_long");
        assert!(Format::length(4, 2).is_err());
    }
}
