//! Schemas that refer to themselves without ever looking at a smaller part of the answer: `{"allOf": [{"$ref": "#"}]}`.
//!
//! Checking any answer against one recurses until the stack is full, which ends the whole process: so they are refused when
//! they are read. Recursion through `properties` or `items` is fine, since an answer has an end.

use std::collections::HashSet;

use serde_json::Value;

/// Keywords whose schemas look at the same value as the schema that they stand in.
const IN_PLACE: [&str; 8] = [
    "allOf", "anyOf", "oneOf", "not", "if", "then", "else", BY_NAME,
];
/// The one of them that has its schemas by name.
const BY_NAME: &str = "dependentSchemas";
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];

/// Whether such a cycle is in a schema. References by anchor or id are not followed, those by pointer (`#/$defs/a`) are.
pub(super) fn has_cycle(root: &Value) -> bool {
    let mut walk = Walk {
        root,
        open: HashSet::new(),
        done: HashSet::new(),
    };
    walk.every_part(root)
}

struct Walk<'s> {
    root: &'s Value,
    /// Schemas between the start and here.
    open: HashSet<*const Value>,
    /// Schemas that lead to no cycle.
    done: HashSet<*const Value>,
}

impl<'s> Walk<'s> {
    fn every_part(&mut self, value: &'s Value) -> bool {
        match value {
            Value::Object(parts) => {
                self.from(value) || parts.values().any(|part| self.every_part(part))
            }
            Value::Array(parts) => parts.iter().any(|part| self.every_part(part)),
            _ => false,
        }
    }

    fn from(&mut self, schema: &'s Value) -> bool {
        let id = std::ptr::from_ref(schema);
        if self.done.contains(&id) {
            return false;
        }
        if !self.open.insert(id) {
            return true;
        }
        let found = self.next(schema).into_iter().any(|next| self.from(next));
        self.open.remove(&id);
        self.done.insert(id);
        found
    }

    fn next(&self, schema: &'s Value) -> Vec<&'s Value> {
        let inner = IN_PLACE
            .iter()
            .filter_map(|keyword| Some((keyword, schema.get(keyword)?)))
            .flat_map(|(keyword, value)| match value {
                Value::Array(list) => list.iter().collect(),
                Value::Object(named) if *keyword == BY_NAME => named.values().collect(),
                _ => vec![value],
            });
        let pointed = REFERENCES.iter().filter_map(|keyword| {
            let pointer = schema.get(keyword)?.as_str()?.strip_prefix('#')?;
            self.root.pointer(pointer)
        });
        inner.chain(pointed).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::has_cycle;

    #[test]
    fn cycles_are_found_and_recursion_into_parts_is_none() {
        for (schema, expected) in [
            (r##"{"$ref": "#"}"##, true),
            (r##"{"allOf": [{"$ref": "#"}]}"##, true),
            (
                r##"{"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"not": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}"##,
                true,
            ),
            (
                r##"{"properties": {"x": {"if": {"$ref": "#/properties/x"}}}}"##,
                true,
            ),
            (r##"{"dependentSchemas": {"x": {"$ref": "#"}}}"##, true),
            (
                r##"{"type": ["object", "null"], "properties": {"child": {"$ref": "#"}}}"##,
                false,
            ),
            (
                r##"{"anyOf": [{"type": "null"}, {"items": {"$ref": "#"}}]}"##,
                false,
            ),
            (
                r##"{"not": {"properties": {"child": {"$ref": "#"}}}}"##,
                false,
            ),
            (
                r##"{"$defs": {"a": {"type": "string"}}, "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/a"}]}"##,
                false,
            ),
            (r#"true"#, false),
        ] {
            let schema = serde_json::from_str(schema).unwrap();
            assert_eq!(has_cycle(&schema), expected, "{schema}");
        }
    }
}
