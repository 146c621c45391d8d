//! The names that models have in the API.

use std::fmt;

/// What a request's `model` names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModelName {
    /// A bare name: a task (its champion or canary) or the base's own id; the router knows which.
    Bare(String),
    /// `task@base`: the base with the task's full prompt.
    Baseline(String),
    /// `task@3`: that adapter and no other.
    Adapter {
        /// The task.
        task: String,
        /// The adapter's number, from 1.
        number: u32,
    },
}

impl ModelName {
    /// Reads `task`, `task@base`, `task@3` or `ft:<base>:<org>:<task>:<n>`. None if it is none of these.
    pub fn parse(name: &str) -> Option<Self> {
        if let Some(rest) = name.strip_prefix("ft:") {
            let mut parts = rest.rsplitn(4, ':');
            let (number, task, _org, base) =
                (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
            return (!base.is_empty())
                .then(|| Self::adapter(task, number))
                .flatten();
        }
        match name.split_once('@') {
            None => (!name.is_empty()).then(|| ModelName::Bare(name.to_owned())),
            Some((task, "base")) => {
                is_task_name(task).then(|| ModelName::Baseline(task.to_owned()))
            }
            Some((task, number)) => Self::adapter(task, number),
        }
    }

    /// The adapter `number` of a task, or its baseline.
    pub fn of(task: &str, number: Option<u32>) -> Self {
        let task = task.to_owned();
        match number {
            Some(number) => ModelName::Adapter { task, number },
            None => ModelName::Baseline(task),
        }
    }

    /// Of `task@3` the 3.
    pub fn number_of(name: &str) -> Option<u32> {
        match Self::parse(name)? {
            ModelName::Adapter { number, .. } => Some(number),
            _ => None,
        }
    }

    fn adapter(task: &str, number: &str) -> Option<Self> {
        let canonical = number.bytes().all(|b| b.is_ascii_digit()) && !number.starts_with('0');
        let number = number
            .parse()
            .ok()
            .filter(|_| canonical && is_task_name(task))?;
        Some(ModelName::Adapter {
            task: task.to_owned(),
            number,
        })
    }

    /// The task that a fine-tuning job's suffix becomes: lower-case letters and digits, all else a `-` between them; None if nothing is left.
    pub fn task_of_suffix(suffix: &str) -> Option<String> {
        let lower = suffix.to_ascii_lowercase();
        let words: Vec<&str> = lower
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter(|word| !word.is_empty())
            .collect();
        let task = words.join("-");
        is_task_name(&task).then_some(task)
    }

    /// The adapter as OpenAI names fine-tuned models: another name of `task@3`.
    pub fn fine_tuned(base: &str, task: &str, number: u32) -> String {
        format!("ft:{base}:retune:{task}:{number}")
    }

    /// The task it belongs to; None for a bare name.
    pub fn task(&self) -> Option<&str> {
        match self {
            ModelName::Bare(_) => None,
            ModelName::Baseline(task) | ModelName::Adapter { task, .. } => Some(task),
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelName::Bare(name) => f.write_str(name),
            ModelName::Baseline(task) => write!(f, "{task}@base"),
            ModelName::Adapter { task, number } => write!(f, "{task}@{number}"),
        }
    }
}

/// Words of lower-case letters and digits, joined by single `-`, 64 characters at most: a task's name is part of model
/// names, folders, metric labels, and of variables, where `-` is written `_` and `__` parts the keys.
pub(crate) fn is_task_name(name: &str) -> bool {
    let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let word = |word: &str| !word.is_empty() && word.bytes().all(fits);
    name.len() <= 64 && name.split('-').all(word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::ModelName;

    #[test]
    fn reads_every_form() {
        let adapter = Some(ModelName::Adapter {
            task: "support".into(),
            number: 3,
        });
        assert_eq!(ModelName::parse("support@3"), adapter);
        assert_eq!(ModelName::parse("ft:pocket:acme:support:3"), adapter);
        assert_eq!(
            ModelName::parse("support@base"),
            Some(ModelName::Baseline("support".into()))
        );
        assert_eq!(
            ModelName::parse("pocket"),
            Some(ModelName::Bare("pocket".into()))
        );
        for wrong in [
            "",
            "a@",
            "@3",
            "a@0",
            "a@03",
            "a@-1",
            "a@3@4",
            "A@3",
            "ft:a",
            "ft:a:b:c:x",
            "../x@1",
            "a_b@1",
            "-a@1",
            "a--b@1",
            "a@4294967296",
        ] {
            assert_eq!(ModelName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_suffix_becomes_a_task() {
        for (suffix, task) in [
            ("My Model_v2", Some("my-model-v2")),
            ("support", Some("support")),
            ("--x--", Some("x")),
            ("größe", Some("gr-e")),
            ("", None),
            ("___", None),
            (&"x".repeat(65), None),
        ] {
            assert_eq!(
                ModelName::task_of_suffix(suffix).as_deref(),
                task,
                "{suffix}"
            );
        }
        let name = ModelName::fine_tuned("pocket", "my-model", 3);
        assert_eq!(name, "ft:pocket:retune:my-model:3");
        let adapter = ModelName::of("my-model", Some(3));
        assert_eq!(ModelName::parse(&name), Some(adapter));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(task in "[a-z0-9]{1,9}(-[a-z0-9]{1,5}){0,3}", number in 1u32..) {
            for name in [ModelName::Baseline(task.clone()), ModelName::Adapter { task, number }] {
                prop_assert_eq!(ModelName::parse(&name.to_string()), Some(name));
            }
        }

        #[test]
        fn no_text_breaks_it(text in ".*") {
            let _ = ModelName::parse(&text);
        }
    }
}
