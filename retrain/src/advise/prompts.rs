//! Candidates for a task's full prompt: the present one, and texts in a folder.
//!
//! A task's prompt is one text, and whatever an app sends follows it. So the turns of a few-shot prompt become part of that text: what is
//! measured can then be configured as it was, by writing it into the task's file.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use retune_task::Task;
use serde::Deserialize;

use crate::Error;

/// What the task's own prompt is called.
const CURRENT: &str = "current";
/// Bytes of a file. No model that is fine-tuned reads more.
const LARGEST: u64 = 1 << 20;
/// Files, each of which is asked every row.
const MOST: usize = 64;

/// A text that could be a task's full prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPrompt {
    /// Its file's name without the ending.
    pub name: String,
    pub text: String,
}

/// One line of a few-shot prompt.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    role: String,
    content: String,
}

/// The task's own prompt, and those of the folder in the order of their names; one that another has word for word is left out.
///
/// # Errors
/// The file that cannot be a prompt, or has another one's name; a folder without any.
pub fn prompts(task: &Task, folder: Option<&Path>) -> Result<Vec<NamedPrompt>, Error> {
    let mut all = vec![NamedPrompt {
        name: CURRENT.to_owned(),
        text: task.prompt.clone(),
    }];
    let files = folder.map_or_else(|| Ok(Vec::new()), files)?;
    let mut names = vec![CURRENT.to_owned()];
    for path in files {
        let wrong = |what: String| Error::Prompt {
            path: path.clone(),
            what,
        };
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| wrong("its name is not UTF-8; rename it".to_owned()))?;
        if names.iter().any(|other| other == name) {
            let what = format!(
                "another prompt is called {name:?} (the task's own is {CURRENT:?}); rename one"
            );
            return Err(wrong(what));
        }
        names.push(name.to_owned());
        let text = read(&path)?;
        let text = match path.extension().is_some_and(|ending| ending == "jsonl") {
            true => with_examples(&task.prompt, &text).map_err(wrong)?,
            false => text,
        };
        match all.iter().find(|other| other.text == text) {
            Some(other) => {
                tracing::info!(
                    file = %path.display(),
                    "has the same text as the prompt {:?}, and is not measured again", other.name
                );
            }
            None => all.push(NamedPrompt {
                name: name.to_owned(),
                text,
            }),
        }
    }
    Ok(all)
}

/// The folder's candidates, by name; what begins with a dot is some program's own.
fn files(folder: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::file(folder))? {
        let path = entry.map_err(Error::file(folder))?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden
            && path
                .extension()
                .is_some_and(|ending| ending == "txt" || ending == "jsonl")
        {
            files.push(path);
        }
    }
    files.sort();
    let what = match files.len() {
        0 => "no file *.txt or *.jsonl is in it; expected some, each a full prompt".to_owned(),
        many if many > MOST => format!(
            "{many} files *.txt and *.jsonl are in it; expected {MOST} at most, since each is asked every row"
        ),
        _ => return Ok(files),
    };
    Err(Error::Prompt {
        path: folder.to_owned(),
        what,
    })
}

/// A file's text, as a task's prompt is read.
fn read(path: &Path) -> Result<String, Error> {
    let wrong = |what: String| Error::Prompt {
        path: path.to_owned(),
        what,
    };
    // Before it is opened: a pipe would be waited for.
    if !std::fs::metadata(path)
        .map_err(Error::file(path))?
        .is_file()
    {
        return Err(wrong("is no file; expected a text".to_owned()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::file(path))?;
    file.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(Error::file(path))?;
    if bytes.len() as u64 > LARGEST {
        return Err(wrong(format!(
            "has more than {LARGEST} bytes; expected a prompt that fits a model's context"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        wrong(format!("is not UTF-8 (byte {at}); save it as UTF-8"))
    })?;
    let text = text.trim_start_matches('\u{feff}').trim_end();
    match text.is_empty() {
        true => Err(wrong("is empty; expected a text in it".to_owned())),
        false => Ok(text.to_owned()),
    }
}

/// A conversation's system message, or else the task's prompt, and behind it the turns as examples. The error says which line is wrong.
fn with_examples(own: &str, lines: &str) -> Result<String, String> {
    let mut said = Vec::new();
    for (at, line) in lines.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let one: Said = serde_json::from_str(line).map_err(|e| {
            let at = at + 1;
            format!(r#"line {at}: {e}; expected {{"role": "…", "content": "…"}}"#)
        })?;
        said.push((at + 1, one));
    }
    let mut said = said.into_iter().peekable();
    let system = said.next_if(|(_, first)| first.role == "system");
    let mut text = system.map_or_else(|| own.to_owned(), |(_, said)| said.content);
    let mut roles = [("user", "\n\nUser: "), ("assistant", "\nAssistant: ")]
        .into_iter()
        .cycle();
    let mut last = None;
    text.push_str("\n\nExamples:");
    for ((at, one), (role, mark)) in said.zip(&mut roles) {
        if one.role != role {
            let found = one.role;
            return Err(format!(
                "line {at}: the role is {found:?}; expected {role:?}: a system message, if any, and then a user's and an assistant's in turn"
            ));
        }
        text.push_str(mark);
        text.push_str(one.content.trim());
        last = Some(role);
    }
    match last {
        Some("assistant") => Ok(text),
        Some(_) => Err("the last message is a user's; expected the answer to it".to_owned()),
        None => Err(
            "no example is in it; expected a user's message and the answer to it; a prompt without examples is a *.txt"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::testing::task;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn refused(files: &[(&str, &[u8])]) -> String {
        let folder = folder(files);
        prompts(&task(), Some(folder.path()))
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_present_one_comes_first_and_texts_by_name() {
        let task = task();
        let alone = prompts(&task, None).unwrap();
        assert_eq!(alone.len(), 1);
        assert_eq!((&*alone[0].name, &alone[0].text), (CURRENT, &task.prompt));
        let folder = folder(&[
            ("short.txt", "\u{feff}Be brief.\n\n".as_bytes()),
            ("long.txt", b"  Be long.\nVery."),
            ("same.txt", task.prompt.as_bytes()),
            (
                "few.jsonl",
                br#"{"role": "user", "content": "2 + 2"}
{"role": "assistant", "content": "4"}

{"role": "user", "content": "3 + 3"}
{"role": "assistant", "content": "6"}"#,
            ),
            (
                "own.jsonl",
                br#"{"role": "system", "content": "Count."}
{"role": "user", "content": "1"}
{"role": "assistant", "content": "2"}"#,
            ),
            (".hidden.txt", b"\xff"),
            ("notes.md", b"\xff"),
        ]);
        let all = prompts(&task, Some(folder.path())).unwrap();
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["current", "few", "long", "own", "short"]);
        let text = |name: &str| &all.iter().find(|one| one.name == name).unwrap().text;
        assert_eq!(text("short"), "Be brief.");
        assert_eq!(text("long"), "  Be long.\nVery.");
        assert_eq!(
            *text("few"),
            format!(
                "{}\n\nExamples:\n\nUser: 2 + 2\nAssistant: 4\n\nUser: 3 + 3\nAssistant: 6",
                task.prompt
            )
        );
        assert_eq!(text("own"), "Count.\n\nExamples:\n\nUser: 1\nAssistant: 2");
    }

    #[test]
    fn what_is_no_prompt_is_named() {
        let huge = vec![b'a'; LARGEST as usize + 1];
        let user = br#"{"role": "user", "content": "a"}"#;
        let example = br#"{"role": "user", "content": "a"}
{"role": "assistant", "content": "b"}"#;
        for (files, expected) in [
            (&[][..], "no file *.txt"),
            (&[("a.md", &b"text"[..])], "no file *.txt"),
            (&[("a.txt", b"so \xff far")], "a.txt: is not UTF-8 (byte 3)"),
            (&[("a.txt", b" \n")], "a.txt: is empty"),
            (&[("a.txt", &huge)], "more than 1048576 bytes"),
            (&[("current.txt", b"x")], "called \"current\""),
            (
                &[("a.txt", b"x"), ("a.jsonl", &example[..])],
                "called \"a\"",
            ),
            (&[("a.jsonl", b"\n{\"role\": 1}")], "line 2: "),
            (
                &[("a.jsonl", b"{\"messages\": []}")],
                "unknown field `messages`",
            ),
            (&[("a.jsonl", user)], "expected the answer"),
            (
                &[("a.jsonl", br#"{"role": "system", "content": "a"}"#)],
                "no example",
            ),
            (
                &[("a.jsonl", br#"{"role": "assistant", "content": "a"}"#)],
                "line 1: the role is \"assistant\"",
            ),
        ] {
            let error = refused(files);
            assert!(error.contains(expected), "{expected:?} is not in {error}");
        }
        let folder = folder(&[]);
        std::fs::create_dir(folder.path().join("a.txt")).unwrap();
        let error = prompts(&task(), Some(folder.path())).unwrap_err();
        assert!(error.to_string().contains("is no file"), "{error}");
        let error = prompts(&task(), Some(Path::new("/nowhere"))).unwrap_err();
        assert!(error.to_string().contains("/nowhere"), "{error}");
        let many: Vec<String> = (0..=MOST).map(|n| format!("{n}.txt")).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|n| (n.as_str(), &b"x"[..])).collect();
        assert!(refused(&many).contains("65 files"));
    }

    proptest! {
        #[test]
        fn any_text_is_examples_or_an_error(lines in r#"[\{\}":a-z \n]{0,200}"#) {
            let _ = with_examples("own", &lines);
        }

        #[test]
        fn every_turn_is_in_the_text(turns in prop::collection::vec(("[a-z]{1,9}", "[a-z]{1,9}"), 1..5)) {
            let line = |role: &str, content: &str| serde_json::json!({"role": role, "content": content}).to_string();
            let lines: Vec<String> = turns.iter().flat_map(|(ask, say)| [line("user", ask), line("assistant", say)]).collect();
            let text = with_examples("own", &lines.join("\n")).unwrap();
            prop_assert!(text.starts_with("own\n\nExamples:\n\nUser: "));
            for (ask, say) in turns {
                let turn = format!("\n\nUser: {ask}\nAssistant: {say}");
                prop_assert!(text.contains(&turn));
            }
        }
    }
}
