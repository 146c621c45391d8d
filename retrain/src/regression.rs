//! The regression suite in an examination: prompts beside the task's own, each with a check, which a candidate must not fail where the
//! baseline passes.
//!
//! A narrow training can take away what nobody examined. Both are asked as an app would ask them, through the task: with its prompt, by the model's own name, greedy,
//! as examinations. So what is compared is what users get, and not what the weights could do under another prompt.
//!
//! A suite that somebody wrote for the task says what it must not lose, and shown worse there rejects. The default one cannot know: an
//! adapter that is meant for one thing may well be worse at all others. So there a loss only asks for a canary, whose users tell. And of
//! a task with a format the right answer to anything holds the format: there the default suite checks that alone, on odd input.
//!
//! Of some forty prompts a loss within a few percent cannot be shown to be none, whatever is answered. So shown not worse is not asked for: what is not
//! ruled out is said, and keeps nothing back.

use std::collections::BTreeMap;
use std::sync::Arc;

use retune_task::{Format, RegressionSuite, Suite, SuitePrompt, Task};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::book::Book;
use crate::examine::{Answers, Asking, Contest};
use crate::run::Event;
use crate::server::{Question, Server};
use crate::stages::Observer;
use crate::text::cut;
use crate::verdict::Paired;

const DEFAULT: &str = include_str!("../suite.jsonl");
/// A loss of this share of the suite is said not to be ruled out, where it is not.
pub(crate) const MARGIN: f64 = 0.1;
/// Prompts that a report shows.
const SHOWN: usize = 20;
/// Characters of a text that it shows.
const LONGEST: usize = 2000;

/// What became of a suite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Regression {
    /// Whether it is the task's own; the default one rejects nobody.
    pub own: bool,
    /// Answers that pass.
    pub suite: Paired,
    /// By what the suite's prompts say that they belong to.
    pub slices: BTreeMap<String, Paired>,
    /// Some of the prompts that the baseline passed and the candidate did not.
    pub lost: Vec<Lost>,
}

/// A prompt that was lost, with both answers; long texts are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub name: String,
    /// The last user message.
    pub prompt: String,
    pub check: String,
    pub candidate: String,
    pub baseline: String,
}

/// A task's suite, and whether it is its own.
fn chosen(task: &Task) -> Option<(Arc<Suite>, bool)> {
    match &task.retrain.regression {
        RegressionSuite::Off => None,
        RegressionSuite::Own(suite) => Some((Arc::clone(suite), true)),
        RegressionSuite::Default => {
            // A test reads it.
            let suite = Suite::parse(DEFAULT).unwrap_or_default();
            let suite = match task.format {
                Some(_) => suite.in_format(),
                None => suite,
            };
            Some((Arc::new(suite), false))
        }
    }
}

/// Asks both everything in the task's suite, and counts; `before` prompts were examined already.
pub(crate) async fn examine(
    task: &Task,
    book: &mut Book<'_>,
    server: &Server,
    contest: &Contest,
    before: usize,
    observer: Observer<'_>,
) -> Result<Option<Regression>, Error> {
    let Some((suite, own)) = chosen(task) else {
        return Ok(None);
    };
    let total = before + suite.prompts.len();
    let mut asking = Asking::start(server, contest, suite.prompts.iter().map(Question::from));
    while let Some(done) = asking.next().await? {
        let done = before + done;
        book.progress(done, total).await?;
        observer(&Event::Examining { done, total });
    }
    let answers = asking.finish();
    Ok(Some(count(&suite, own, task.format.as_ref(), &answers)))
}

impl From<&SuitePrompt> for Question {
    fn from(prompt: &SuitePrompt) -> Self {
        Self {
            messages: prompt.messages.clone(),
            user: None,
            may_be_refused: true,
        }
    }
}

/// Checks every answer of both, which stand in the suite's order. Pure.
fn count(suite: &Suite, own: bool, format: Option<&Format>, answers: &[Answers]) -> Regression {
    let mut counted = Regression {
        own,
        suite: Paired::default(),
        slices: BTreeMap::new(),
        lost: Vec::new(),
    };
    for (prompt, both) in suite.prompts.iter().zip(answers) {
        let (candidate, baseline) = (&both.candidate.content, &both.baseline.content);
        let holds = (
            prompt.holds(format, candidate),
            prompt.holds(format, baseline),
        );
        counted.suite.observe(holds.0, holds.1);
        if let Some(slice) = &prompt.slice {
            let slice = counted.slices.entry(slice.clone()).or_default();
            slice.observe(holds.0, holds.1);
        }
        if holds == (false, true) && counted.lost.len() < SHOWN {
            let last = prompt.messages.last();
            counted.lost.push(Lost {
                name: prompt.name.clone(),
                prompt: cut(last.map_or("", |last| &last.content), LONGEST),
                check: cut(&prompt.check, LONGEST),
                candidate: cut(candidate, LONGEST),
                baseline: cut(baseline, LONGEST),
            });
        }
    }
    counted
}

impl Regression {
    /// What a verdict counts of it.
    pub(crate) fn binding(&self) -> Paired {
        match self.own {
            true => self.suite,
            false => Paired::default(),
        }
    }

    /// Whether it asks for a canary.
    pub(crate) fn asks_for_a_canary(&self) -> bool {
        !self.own && self.suite.shown_worse_once()
    }
}

/// For people; nothing where nothing was asked.
pub(crate) fn in_words(suite: &Paired) -> Option<String> {
    let (_, most) = suite.loss_limits_once();
    let also = match (suite.shown_worse_once(), most < MARGIN) {
        (true, _) => "; that is worse".to_owned(),
        (false, true) => String::new(),
        (false, false) => {
            format!(
                "; a loss of more than {:.0} % is not ruled out",
                MARGIN * 100.0
            )
        }
    };
    (suite.prompts > 0).then(|| {
        format!(
            "{} of {} answers to the regression suite pass, {} of the baseline's{also}",
            suite.candidate, suite.prompts, suite.baseline
        )
    })
}

#[cfg(test)]
#[path = "regression_tests.rs"]
mod tests;
