//! The members of a request, taken out one by one with OpenAI's words for what is wrong with them.
//!
//! Taking them by hand rather than with a derived reader names the parameter in every error, and finds those nobody took.

use serde_json::{Map, Value};

use crate::refusal::Refusal;

/// What is left of a request's JSON object.
pub struct Params {
    members: Map<String, Value>,
    /// Goes before each parameter's name in errors: `rubric.` inside of `rubric`.
    path: String,
}

impl Params {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<Self, Refusal> {
        let malformed = |what: String| Refusal {
            message: format!(
                "We could not parse the JSON body of your request. ({what}) The API expects a JSON object."
            ),
            param: None,
            code: None,
        };
        match serde_json::from_slice(body) {
            Ok(Value::Object(members)) => Ok(Self::of(members)),
            Ok(_) => Err(malformed("It is JSON, but not an object.".to_owned())),
            Err(e) => Err(malformed(format!("{e}."))),
        }
    }

    /// The members of an object that was read already.
    pub(crate) fn of(members: Map<String, Value>) -> Self {
        Self {
            members,
            path: String::new(),
        }
    }

    /// The members of an object inside a request.
    pub fn inner(members: Map<String, Value>, path: &str) -> Self {
        Self {
            members,
            path: format!("{path}."),
        }
    }

    /// A parameter's full name.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// The parameter's value; a null is an absent one.
    pub fn take(&mut self, key: &str) -> Option<Value> {
        self.members.remove(key).filter(|v| !v.is_null())
    }

    /// The parameter's value, which stays.
    pub(crate) fn peek(&self, key: &str) -> Option<&Value> {
        self.members.get(key)
    }

    /// The value, or the refusal of a request that lacks it.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, Refusal> {
        let name = self.name(key);
        value.ok_or_else(|| {
            Refusal::param(
                &name,
                "missing_required_parameter",
                format!("Missing required parameter: '{name}'."),
            )
        })
    }

    /// A text.
    pub fn string(&mut self, key: &str) -> Result<Option<String>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(wrong_type(&self.name(key), "a string", &other)),
        }
    }

    /// A truth value.
    pub fn boolean(&mut self, key: &str) -> Result<Option<bool>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(b)),
            Some(other) => Err(wrong_type(&self.name(key), "a boolean", &other)),
        }
    }

    /// An object's members; [`Self::inner`] reads them.
    pub fn object(&mut self, key: &str) -> Result<Option<Map<String, Value>>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Object(o)) => Ok(Some(o)),
            Some(other) => Err(wrong_type(&self.name(key), "an object", &other)),
        }
    }

    /// A list.
    pub fn array(&mut self, key: &str) -> Result<Option<Vec<Value>>, Refusal> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::Array(a)) => Ok(Some(a)),
            Some(other) => Err(wrong_type(&self.name(key), "an array of objects", &other)),
        }
    }

    /// A number within `from..=to`.
    pub fn decimal(&mut self, key: &str, from: f64, to: f64) -> Result<Option<f64>, Refusal> {
        let name = self.name(key);
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let Some(number) = value.as_f64() else {
            return Err(wrong_type(&name, "a decimal", &value));
        };
        if number < from {
            return Err(out_of_range(
                &name,
                "decimal",
                "below minimum",
                ">=",
                from,
                number,
            ));
        }
        if number > to {
            return Err(out_of_range(
                &name,
                "decimal",
                "above maximum",
                "<=",
                to,
                number,
            ));
        }
        Ok(Some(number))
    }

    /// A whole number within `from..=to`.
    pub fn integer(&mut self, key: &str, from: i64, to: i64) -> Result<Option<i64>, Refusal> {
        let name = self.name(key);
        let Some(value) = self.take(key) else {
            return Ok(None);
        };
        let Some(number) = value.as_i64() else {
            return Err(match value.as_u64() {
                Some(beyond) => out_of_range(&name, "integer", "above maximum", "<=", to, beyond),
                None => wrong_type(&name, "an integer", &value),
            });
        };
        if number < from {
            return Err(out_of_range(
                &name,
                "integer",
                "below minimum",
                ">=",
                from,
                number,
            ));
        }
        if number > to {
            return Err(out_of_range(
                &name,
                "integer",
                "above maximum",
                "<=",
                to,
                number,
            ));
        }
        Ok(Some(number))
    }

    /// Refuses a known parameter that asks for what is not done here; a value that asks for nothing passes.
    pub fn unsupported(
        &mut self,
        key: &str,
        asks_for_nothing: impl Fn(&Value) -> bool,
    ) -> Result<(), Refusal> {
        let name = self.name(key);
        match self.take(key) {
            Some(value) if !asks_for_nothing(&value) => Err(unsupported(&name)),
            _ => Ok(()),
        }
    }

    /// Refuses what nobody took.
    pub fn finish(self) -> Result<(), Refusal> {
        match self.members.keys().next() {
            None => Ok(()),
            Some(key) => {
                let name = self.name(key);
                Err(Refusal::param(
                    &name,
                    "unknown_parameter",
                    format!("Unrecognized request argument supplied: {name}"),
                ))
            }
        }
    }
}

/// A parameter that OpenAI has and this server does not (yet).
pub(crate) fn unsupported(name: &str) -> Refusal {
    Refusal::param(
        name,
        "unsupported_parameter",
        format!("Unsupported parameter: '{name}' is not supported by this server."),
    )
}

pub(crate) fn wrong_type(name: &str, expected: &str, found: &Value) -> Refusal {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a decimal",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    let message =
        format!("Invalid type for '{name}': expected {expected}, but got {found} instead.");
    Refusal::param(name, "invalid_type", message)
}

fn out_of_range(
    name: &str,
    kind: &str,
    side: &str,
    sign: &str,
    limit: impl std::fmt::Display,
    found: impl std::fmt::Display,
) -> Refusal {
    let code = match (kind, side) {
        ("decimal", "below minimum") => "decimal_below_min_value",
        ("decimal", _) => "decimal_above_max_value",
        (_, "below minimum") => "integer_below_min_value",
        _ => "integer_above_max_value",
    };
    let message = format!(
        "Invalid '{name}': {kind} {side} value. Expected a value {sign} {limit}, but got {found} instead."
    );
    Refusal::param(name, code, message)
}
