//! An output format, and whether an answer holds it. Pure: compiled once, checked without I/O.

use regex::Regex;
use serde_json::Value;

/// What every answer of a task must look like.
#[derive(Debug)]
pub struct Format(Kind);

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
    /// From the text of a JSON schema. References to other documents are not resolved.
    pub fn json_schema(text: &str) -> Result<Self, String> {
        let schema: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        let validator =
            jsonschema::validator_for(&schema).map_err(|e| format!("not a JSON schema: {e}"))?;
        Ok(Format(Kind::JsonSchema(Box::new(validator))))
    }

    /// From a regular expression that the whole answer must match. It runs in time linear in the answer's length.
    pub fn regex(pattern: &str) -> Result<Self, String> {
        let whole = Regex::new(&format!("^(?:{pattern})$")).map_err(|e| e.to_string())?;
        Ok(Format(Kind::Regex(whole)))
    }

    /// From a text with `{placeholders}`: each stands for one or more characters of one line, the last for any text.
    /// White space around the answer is ignored.
    pub fn template(text: &str) -> Result<Self, String> {
        let mut pattern = String::from("^");
        let mut rest = text.trim();
        let mut placeholders = 0;
        while let Some(open) = rest.find('{') {
            let close = rest[open..].find('}').ok_or("a { has no }")? + open;
            if close == open + 1 {
                return Err("a placeholder has no name: {}".into());
            }
            pattern.push_str(&regex::escape(&rest[..open]));
            rest = &rest[close + 1..];
            placeholders += 1;
            pattern.push_str(if rest.contains('{') { ".+?" } else { "(?s:.+)" });
        }
        if placeholders == 0 {
            return Err("there is no {placeholder} in it".into());
        }
        pattern.push_str(&regex::escape(rest));
        pattern.push('$');
        Ok(Format(Kind::Template(
            Regex::new(&pattern).map_err(|e| e.to_string())?,
        )))
    }

    /// From the least and the most characters (Unicode scalar values) an answer may have.
    pub fn length(least: usize, most: usize) -> Result<Self, String> {
        if least > most {
            return Err(format!("the least, {least}, is above the most, {most}"));
        }
        Ok(Format(Kind::Length { least, most }))
    }

    /// `json_schema`, `regex`, `template` or `length`.
    pub fn kind(&self) -> &'static str {
        match self.0 {
            Kind::JsonSchema(_) => "json_schema",
            Kind::Regex(_) => "regex",
            Kind::Template(_) => "template",
            Kind::Length { .. } => "length",
        }
    }

    /// Checks a whole answer. For a schema the answer must be one JSON value; white space around it is allowed, code
    /// fences and other text are not: a program reads it.
    pub fn check(&self, answer: &str) -> Check {
        match &self.0 {
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
    Check::invalid(reason, format!("{}: {error}", error.instance_path))
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
        assert!(Format::json_schema("{").is_err());
        assert!(Format::json_schema(r#"{"type": "objekt"}"#).is_err());
    }

    #[test]
    fn regex_template_and_length() {
        let regex = Format::regex("yes|no").unwrap();
        assert_eq!(reason(&regex, "yes"), "valid");
        assert_eq!(reason(&regex, "yes, no"), "regex");
        assert!(Format::regex("(").is_err());

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
        assert!(Format::template("nothing to fill").is_err());
        assert!(Format::template("{").is_err());

        let length = Format::length(2, 4).unwrap();
        assert_eq!(reason(&length, "äöü"), "valid");
        assert_eq!(reason(&length, "a"), "too_short");
        assert_eq!(reason(&length, "abcde"), "too_long");
        assert!(Format::length(4, 2).is_err());
    }
}
