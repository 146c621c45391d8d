//! `tools`, `tool_choice` and `response_format`: what may be called, what an answer's form is, and the grammars of both.

use std::sync::Arc;

use retune_task::Grammar;
use serde_json::{Value, json};

use crate::messages::object;
use crate::params::{Params, unsupported, wrong_type};
use crate::refusal::Refusal;

/// OpenAI's limit.
const MAX_TOOLS: usize = 128;

/// Functions that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tools {
    /// As the app sent them: what a chat template shows the model.
    pub list: Arc<Value>,
    functions: Vec<Function>,
    pub choice: ToolChoice,
}

#[derive(Debug, Clone, PartialEq)]
struct Function {
    name: String,
    /// A JSON schema.
    parameters: Value,
}

/// Whether the model calls something, and what.
#[derive(Debug, Clone, PartialEq)]
pub enum ToolChoice {
    /// As it likes.
    Auto,
    /// Something.
    Required,
    /// This function.
    Named(String),
}

impl Tools {
    /// None where there are none, or none may be called.
    pub(crate) fn read(p: &mut Params) -> Result<Option<Self>, Refusal> {
        let list = p.array("tools")?.unwrap_or_default();
        let choice = p.take("tool_choice");
        // One call at a time is made, which both values allow.
        p.boolean("parallel_tool_calls")?;
        if list.is_empty() {
            return match choice {
                Some(choice) if choice != "none" && choice != "auto" => Err(Refusal::param(
                    "tool_choice",
                    "invalid_parameter_combination",
                    "'tool_choice' is only allowed when 'tools' are specified.",
                )),
                _ => Ok(None),
            };
        }
        if list.len() > MAX_TOOLS {
            let message = format!(
                "Invalid 'tools': array too long. Expected an array with maximum length {MAX_TOOLS}, but got an array with length {} instead.",
                list.len()
            );
            return Err(Refusal::param("tools", "array_above_max_length", message));
        }
        let functions: Result<Vec<Function>, Refusal> = list
            .iter()
            .enumerate()
            .map(|(i, tool)| function(tool.clone(), &format!("tools[{i}]")))
            .collect();
        let functions = functions?;
        let choice = match choice {
            None => ToolChoice::Auto,
            Some(Value::String(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => ToolChoice::Auto,
                "required" => ToolChoice::Required,
                other => {
                    let message = format!(
                        "Invalid value: '{other}'. Supported values are: 'none', 'auto', 'required', and a function."
                    );
                    return Err(Refusal::param("tool_choice", "invalid_value", message));
                }
            },
            Some(Value::Object(members)) => {
                named(Params::inner(members, "tool_choice"), &functions)?
            }
            Some(other) => return Err(wrong_type("tool_choice", "a string or an object", &other)),
        };
        Ok(Some(Self {
            list: Arc::new(Value::Array(list)),
            functions,
            choice,
        }))
    }

    /// The functions' names, in the app's order.
    pub fn names(&self) -> Vec<&str> {
        self.functions.iter().map(|f| f.name.as_str()).collect()
    }

    /// What the answer is decoded under where something must be called: the arguments of the one function, or an object with
    /// `name` and `arguments`.
    pub fn grammar(&self) -> Option<Grammar> {
        let schema = match (&self.choice, self.functions.as_slice()) {
            (ToolChoice::Auto, _) => return None,
            (ToolChoice::Named(name), functions) => {
                let function = functions.iter().find(|f| f.name == *name)?;
                function.parameters.clone()
            }
            (ToolChoice::Required, [only]) => only.parameters.clone(),
            (ToolChoice::Required, several) => {
                let one = |f: &Function| {
                    json!({
                        "type": "object",
                        "properties": { "name": { "const": f.name }, "arguments": f.parameters },
                        "required": ["name", "arguments"],
                        "additionalProperties": false,
                    })
                };
                json!({ "anyOf": several.iter().map(one).collect::<Vec<_>>() })
            }
        };
        Some(Grammar::JsonSchema(schema))
    }

    /// The one function that can be called, if there is only one and something must be.
    pub fn only(&self) -> Option<&str> {
        match (&self.choice, self.functions.as_slice()) {
            (ToolChoice::Named(name), _) => Some(name),
            (ToolChoice::Required, [only]) => Some(&only.name),
            _ => None,
        }
    }
}

fn function(tool: Value, path: &str) -> Result<Function, Refusal> {
    let mut tool = Params::inner(object(tool, path)?, path);
    let kind = tool.string("type")?;
    if tool.required("type", kind)? != "function" {
        return Err(unsupported(&tool.name("type")));
    }
    let function = tool.object("function")?;
    let function = tool.required("function", function)?;
    tool.finish()?;
    let mut function = Params::inner(function, &format!("{path}.function"));
    let name = function.string("name")?;
    let name = function.required("name", name)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if name.is_empty() || name.len() > 64 || !name.chars().all(allowed) {
        let at = function.name("name");
        let message =
            format!("Invalid '{at}': expected 1 to 64 letters, digits, underscores and dashes.");
        return Err(Refusal::param(&at, "invalid_value", message));
    }
    function.string("description")?;
    function.boolean("strict")?;
    let parameters = function.object("parameters")?;
    function.finish()?;
    // Without parameters there is nothing to hand over.
    let nothing = || json!({ "type": "object", "properties": {}, "additionalProperties": false });
    Ok(Function {
        name,
        parameters: parameters.map_or_else(nothing, Value::Object),
    })
}

fn named(mut choice: Params, functions: &[Function]) -> Result<ToolChoice, Refusal> {
    let kind = choice.string("type")?;
    if choice.required("type", kind)? != "function" {
        return Err(unsupported("tool_choice.type"));
    }
    let function = choice.object("function")?;
    let function = choice.required("function", function)?;
    choice.finish()?;
    let mut function = Params::inner(function, "tool_choice.function");
    let name = function.string("name")?;
    let name = function.required("name", name)?;
    function.finish()?;
    if functions.iter().all(|f| f.name != name) {
        let message = format!("Tool choice '{name}' is none of the functions in 'tools'.");
        return Err(Refusal::param("tool_choice", "invalid_value", message));
    }
    Ok(ToolChoice::Named(name))
}

/// A request's own form for the answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ResponseFormat {
    /// Any.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON under this schema.
    JsonSchema(Value),
}

impl ResponseFormat {
    pub(crate) fn read(p: &mut Params) -> Result<Option<Self>, Refusal> {
        let Some(members) = p.object("response_format")? else {
            return Ok(None);
        };
        let mut format = Params::inner(members, "response_format");
        let kind = format.string("type")?;
        let found = match format.required("type", kind)?.as_str() {
            "text" => Self::Text,
            "json_object" => Self::JsonObject,
            "json_schema" => {
                let inner = format.object("json_schema")?;
                let inner = format.required("json_schema", inner)?;
                let mut inner = Params::inner(inner, "response_format.json_schema");
                let name = inner.string("name")?;
                inner.required("name", name)?;
                inner.string("description")?;
                // Strict or not, answers are decoded under the schema: nobody asks for one to have it broken.
                inner.boolean("strict")?;
                let schema = inner.object("schema")?;
                let schema = inner.required("schema", schema)?;
                inner.finish()?;
                Self::JsonSchema(Value::Object(schema))
            }
            other => {
                let message = format!(
                    "Invalid value: '{other}'. Supported values are: 'text', 'json_object', and 'json_schema'."
                );
                return Err(Refusal::param(
                    "response_format.type",
                    "invalid_value",
                    message,
                ));
            }
        };
        format.finish()?;
        Ok(Some(found))
    }

    /// OpenAI's word.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::JsonObject => "json_object",
            Self::JsonSchema(_) => "json_schema",
        }
    }

    /// What the answer is decoded under.
    pub fn grammar(&self) -> Option<Grammar> {
        match self {
            Self::Text => None,
            Self::JsonObject => Some(Grammar::JsonObject),
            Self::JsonSchema(schema) => Some(Grammar::JsonSchema(schema.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn read(body: Value) -> Result<Option<Tools>, Refusal> {
        Tools::read(&mut Params::parse(body.to_string().as_bytes())?)
    }

    fn tool(name: &str) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}})
    }

    #[test]
    fn the_grammar_follows_the_choice() {
        let two =
            |choice: Value| read(json!({"tools": [tool("a"), tool("b")], "tool_choice": choice}));
        assert_eq!(two(json!("none")).unwrap(), None);
        assert_eq!(two(json!("auto")).unwrap().unwrap().grammar(), None);
        let required = two(json!("required")).unwrap().unwrap();
        assert_eq!(required.only(), None);
        match required.grammar().unwrap() {
            Grammar::JsonSchema(schema) => {
                assert_eq!(schema["anyOf"][1]["properties"]["name"]["const"], "b")
            }
            other => unreachable!("{other:?}"),
        }
        let named = two(json!({"type": "function", "function": {"name": "b"}}))
            .unwrap()
            .unwrap();
        assert_eq!(named.only(), Some("b"));
        assert!(two(json!({"type": "function", "function": {"name": "c"}})).is_err());
        assert!(two(json!({"type": "allowed_tools"})).is_err());
        let one = read(json!({"tools": [tool("a")], "tool_choice": "required"}))
            .unwrap()
            .unwrap();
        assert_eq!(one.only(), Some("a"));
        assert!(read(json!({"tools": [tool("a b")]})).is_err());
    }
}
