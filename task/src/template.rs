//! A base's chat template: how a conversation becomes the text that the model reads.
//!
//! Rendered as Hugging Face renders it (Jinja with `trim_blocks` and `lstrip_blocks`, no documents), and by this code alone, so
//! that training and serving see the same bytes.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use minijinja::value::Kwargs;
use minijinja::{Environment, ErrorKind, context};
use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::chat::ChatMessage;

/// Why a chat template could not be read or rendered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {what}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        what: String,
    },
    /// The template refused these messages.
    #[error("the chat template cannot render these messages: {0}")]
    Render(String),
}

/// A compiled chat template and the special tokens it may name.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    beginning: String,
    end: String,
    end_of_turn: String,
}

const NAME: &str = "chat";
/// What an assistant says where only what follows it matters.
const SAID: &str = "retune-said-this";

impl ChatTemplate {
    /// Reads `tokenizer_config.json` in a base's folder, and `chat_template.jinja` where the template lies beside it.
    pub fn from_folder(base: &Path) -> Result<Self, Error> {
        let path = base.join("tokenizer_config.json");
        let file = |what: String| Error::File {
            path: path.clone(),
            what,
        };
        let text = std::fs::read_to_string(&path).map_err(|source| Error::Io {
            path: path.clone(),
            source,
        })?;
        let config: Value =
            serde_json::from_str(&text).map_err(|e| file(format!("not JSON: {e}")))?;
        let jinja = base.join("chat_template.jinja");
        let source = if jinja.is_file() {
            std::fs::read_to_string(&jinja).map_err(|source| Error::Io {
                path: jinja,
                source,
            })?
        } else {
            template_of(&config).ok_or_else(|| {
                file("there is no chat_template in it, nor a chat_template.jinja beside it; an instruct model has one".into())
            })?
        };
        let end = special(&config, "eos_token").ok_or_else(|| {
            file("there is no eos_token in it: nothing would end an answer".into())
        })?;
        let beginning = special(&config, "bos_token").unwrap_or_default();
        let mut template = Self::new(source, beginning, end).map_err(file)?;
        if let Some(token) = template.after_an_answer(&added_tokens(base, &config)) {
            template.end_of_turn = token;
        }
        Ok(template)
    }

    /// The token that the template writes behind what an assistant said: where it is not the end of a text, as with Gemma and Phi, it
    /// is what the model ends its turn with.
    fn after_an_answer(&self, added: &[String]) -> Option<String> {
        let messages = [
            ChatMessage::new("user", "Hello"),
            ChatMessage::new("assistant", SAID),
        ];
        let text = self.render(&messages, false).ok()?;
        let (_, after) = text.split_once(SAID)?;
        let follows = |token: &&String| !token.is_empty() && after.trim_start().starts_with(*token);
        let longest = added.iter().filter(follows).max_by_key(|token| token.len());
        longest.cloned()
    }

    fn new(source: String, beginning: String, end: String) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function(
            "raise_exception",
            |message: String| -> Result<String, minijinja::Error> {
                Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
            },
        );
        environment.add_function(
            "strftime_now",
            |format: String| -> Result<String, minijinja::Error> {
                use std::fmt::Write;
                let mut out = String::new();
                // One time for all machines; a template that asks for it reads differently each day, whoever renders it.
                write!(out, "{}", chrono::Utc::now().format(&format)).map_err(|_| {
                    minijinja::Error::new(
                        ErrorKind::InvalidOperation,
                        format!("strftime_now({format:?})"),
                    )
                })?;
                Ok(out)
            },
        );
        environment.add_filter("tojson", tojson);
        environment
            .add_template_owned(NAME, without_generation(&source))
            .map_err(|e| format!("chat_template: {e}"))?;
        Ok(ChatTemplate {
            environment,
            source,
            beginning,
            end_of_turn: end.clone(),
            end,
        })
    }

    /// The text that the model reads; with `add_generation_prompt` up to where its answer begins.
    pub fn render(
        &self,
        messages: &[ChatMessage],
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        self.render_with_tools(messages, None, add_generation_prompt)
    }

    /// As [`Self::render`], for a model that may call `tools`: a list as OpenAI's API has it.
    pub fn render_with_tools(
        &self,
        messages: &[ChatMessage],
        tools: Option<&Value>,
        add_generation_prompt: bool,
    ) -> Result<String, Error> {
        let render = || {
            self.environment.get_template(NAME)?.render(context! {
                messages => messages,
                tools => tools,
                documents => (),
                add_generation_prompt => add_generation_prompt,
                bos_token => self.beginning,
                eos_token => self.end,
            })
        };
        render().map_err(|e| Error::Render(e.detail().map_or_else(|| e.to_string(), str::to_owned)))
    }

    /// Whether the template says anything of tools; one that does not leaves the model ignorant of them.
    pub fn knows_tools(&self) -> bool {
        self.source.contains("tools")
    }

    /// The token that ends a text.
    pub fn end_of_text(&self) -> &str {
        &self.end
    }

    /// The token that ends an answer.
    pub fn end_of_turn(&self) -> &str {
        &self.end_of_turn
    }

    /// The template's own text, whose digest an adapter's manifest keeps.
    pub fn source(&self) -> &str {
        &self.source
    }
}

/// `{% generation %}` marks what an assistant said, for Hugging Face's masks; here it is a block like another.
fn without_generation(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        let Some((inner, after)) = tag.split_once("%}") else {
            break;
        };
        let name = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let inner = match name {
            "generation" => inner.replace(name, "if true"),
            "endgeneration" => inner.replace(name, "endif"),
            _ => inner.to_owned(),
        };
        out.extend([before, "{%", &inner, "%}"]);
        rest = after;
    }
    out + rest
}

/// As Hugging Face's: Python's `json.dumps(value, ensure_ascii=False, indent=indent)`, and nothing escaped for HTML.
fn tojson(value: &minijinja::Value, named: Kwargs) -> Result<String, minijinja::Error> {
    let wrong = |e: serde_json::Error| {
        minijinja::Error::new(ErrorKind::BadSerialization, "tojson").with_source(e)
    };
    let mut out = Vec::new();
    match named.get::<Option<usize>>("indent")? {
        Some(indent) => {
            let indent = " ".repeat(indent);
            let pretty = PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, pretty))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, Spaced)),
    }
    .map_err(wrong)?;
    String::from_utf8(out)
        .map_err(|e| minijinja::Error::new(ErrorKind::BadSerialization, "tojson").with_source(e))
}

/// JSON on one line with a space behind each comma and colon.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> io::Result<()> {
        w.write_all(b": ")
    }
}

/// `chat_template`: a text, or a list of named ones of which `default` counts.
fn template_of(config: &Value) -> Option<String> {
    match config.get("chat_template")? {
        Value::String(text) => Some(text.clone()),
        Value::Array(named) => {
            let default = named.iter().find(|t| t["name"] == "default")?;
            default["template"].as_str().map(str::to_owned)
        }
        _ => None,
    }
}

/// Tokens that stand for themselves, from the tokenizer's configuration, or else from the tokenizer.
fn added_tokens(base: &Path, config: &Value) -> Vec<String> {
    let content = |token: &Value| token["content"].as_str().map(str::to_owned);
    if let Some(added) = config["added_tokens_decoder"].as_object() {
        return added.values().filter_map(content).collect();
    }
    let tokenizer = std::fs::read(base.join("tokenizer.json")).unwrap_or_default();
    let tokenizer: Value = serde_json::from_slice(&tokenizer).unwrap_or_default();
    let added = tokenizer["added_tokens"].as_array();
    added.into_iter().flatten().filter_map(content).collect()
}

/// A special token: a text, or an object with `content`.
fn special(config: &Value, key: &str) -> Option<String> {
    let value = config.get(key)?;
    value
        .as_str()
        .or_else(|| value["content"].as_str())
        .map(str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const CHATML: &str = "{% for message in messages %}\n    <|im_start|>{{ message.role }}\n{{ message['content'].strip() }}<|im_end|>\n{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}";

    fn folder(config: &Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("tokenizer_config.json"),
            config.to_string(),
        )
        .unwrap();
        folder
    }

    #[test]
    fn renders_chatml_with_python_methods_and_trimmed_blocks() {
        let config =
            serde_json::json!({"chat_template": CHATML, "eos_token": {"content": "<|im_end|>"}});
        let template = ChatTemplate::from_folder(folder(&config).path()).unwrap();
        let text = template
            .render(&[ChatMessage::new("user", " hi {{ x }} ")], true)
            .unwrap();
        assert_eq!(
            text,
            "    <|im_start|>user\nhi {{ x }}<|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(template.end_of_turn(), "<|im_end|>");
    }

    #[test]
    fn renders_what_hugging_face_renders() {
        // Each expectation is what transformers' apply_chat_template gives for [user: "<hi>", assistant: "it's é"].
        let messages = [
            ChatMessage::new("user", "<hi>"),
            ChatMessage::new("assistant", "it's é"),
        ];
        for (template, expected) in [
            (
                "{% for m in messages %}\n{%- generation -%} {{ m.content }} {% endgeneration %}\n{% endfor %}",
                "<hi> it's é ",
            ),
            (
                "{% for m in messages[::-1] %}{{ m.role }} {% endfor %}",
                "assistant user ",
            ),
            (
                "{% for i in range(messages|length - 1, -1, -1) %}{{ i }}{% endfor %}",
                "10",
            ),
            (
                "{{ messages[1]|tojson }} {{ [1, true, none]|tojson }}",
                r#"{"role": "assistant", "content": "it's é"} [1, true, null]"#,
            ),
            (
                "{{ [messages[0].content]|tojson(indent=2) }}",
                "[\n  \"<hi>\"\n]",
            ),
            (
                "{% if tools is not none or documents %}tools{% endif %}{{ tools is defined }}",
                "True",
            ),
            (
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ bos_token }}",
                "2<s>",
            ),
            (
                "{{ messages[0].get('tool_calls') }}{{ messages[0].content.split('i')[0].lstrip('<') }}",
                "Noneh",
            ),
        ] {
            let config = serde_json::json!({
                "chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": template}],
                "bos_token": {"content": "<s>"}, "eos_token": "</s>",
            });
            let compiled = ChatTemplate::from_folder(folder(&config).path()).unwrap();
            let rendered = compiled.render(&messages, false);
            assert_eq!(rendered.unwrap(), expected, "{template}");
            assert_eq!(compiled.source(), template);
        }
    }

    #[test]
    fn a_turn_ends_with_what_the_template_writes_behind_it() {
        let turn = "{% for m in messages %}[{{ m.role }}]{{ m.content }}END\n{% endfor %}";
        let added = serde_json::json!({"1": {"content": "</s>"}, "2": {"content": "EN"}, "3": {"content": "<turn>"}});
        for (behind, expected) in [
            ("<turn>\n", "<turn>"),
            (" <turn>{{ eos_token }}", "<turn>"),
            ("{{ eos_token }}", "</s>"),
            ("\n", "</s>"),
            ("!<turn>", "</s>"),
        ] {
            let template = turn.replace("END", behind);
            let config = serde_json::json!({"chat_template": template, "eos_token": "</s>", "added_tokens_decoder": added});
            let template = ChatTemplate::from_folder(folder(&config).path()).unwrap();
            assert_eq!(template.end_of_turn(), expected, "{behind}");
        }
        // Transformers 5 leaves the tokens to the tokenizer.
        let config = serde_json::json!({"chat_template": turn.replace("END", "<turn>"), "eos_token": "</s>"});
        let folder = folder(&config);
        let tokenizer = serde_json::json!({"added_tokens": [{"content": "<turn>"}]});
        std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let template = ChatTemplate::from_folder(folder.path()).unwrap();
        assert_eq!(template.end_of_turn(), "<turn>");
    }

    #[test]
    fn a_template_beside_the_configuration_comes_before_the_one_in_it() {
        let config = serde_json::json!({"chat_template": "in it", "eos_token": "e"});
        let folder = folder(&config);
        std::fs::write(folder.path().join("chat_template.jinja"), "beside it").unwrap();
        let template = ChatTemplate::from_folder(folder.path()).unwrap();
        assert_eq!(template.render(&[], true).unwrap(), "beside it");
    }

    #[test]
    fn says_which_file_lacks_what_and_why_messages_are_refused() {
        let error = |config: Value| {
            ChatTemplate::from_folder(folder(&config).path())
                .unwrap_err()
                .to_string()
        };
        assert!(error(serde_json::json!({"eos_token": "e"})).contains("no chat_template"));
        assert!(error(serde_json::json!({"chat_template": "x"})).contains("no eos_token"));
        assert!(
            error(serde_json::json!({"chat_template": "{% if %}", "eos_token": "e"}))
                .contains("chat_template:")
        );
        let strict = serde_json::json!({"chat_template": "{{ raise_exception('roles must alternate') }}", "eos_token": "e"});
        let template = ChatTemplate::from_folder(folder(&strict).path()).unwrap();
        assert!(
            template
                .render(&[], true)
                .unwrap_err()
                .to_string()
                .contains("roles must alternate")
        );
    }
}
