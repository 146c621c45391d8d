//! Simulated apps: a few of them ask at once, some want a stream and some one JSON, and raters judge what comes back.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::client::{Answer, Client, Error};
use crate::raters;
use crate::texts::{Era, Message, Texts};

/// Apps that ask at the same time.
const APPS: u64 = 4;
/// How often an app asks again when the server is full.
const ATTEMPTS: u32 = 40;
/// How often somebody looks whether a phase is over, beside after each answer.
const LOOK: Duration = Duration::from_millis(200);

/// One exchange, as the apps and raters know it.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// Which message it was, from 0.
    pub index: u64,
    /// What the traffic was like.
    pub era: Era,
    /// The message's kind, as the generator names it.
    pub kind: String,
    pub text: String,
    pub answer: String,
    pub request_id: String,
    /// The resolved name: `triage@base`, `triage@1`.
    pub adapter: String,
    /// What the server says of the answer's format.
    pub valid: Option<bool>,
    /// Whether the answer says exactly what is right.
    pub exact: bool,
    pub prompt_tokens: u64,
    pub rated: bool,
    pub corrected: bool,
}

/// What the apps ask for a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traffic {
    pub(crate) era: Era,
    /// The raters' table of right answers has slipped by a row: each writes the one of another message.
    pub(crate) slipped: bool,
    /// Each message is a customer's of their own, not an app's.
    pub(crate) customers: bool,
    /// Time between two questions; None as fast as the server answers.
    pub(crate) every: Option<Duration>,
    /// As many questions and no more: a seed's texts are the same again only if each act begins with the same message.
    pub(crate) at_most: Option<usize>,
}

impl Traffic {
    /// As it usually is, as fast as the server answers.
    pub(crate) fn of(era: Era) -> Self {
        Self {
            era,
            slipped: false,
            customers: false,
            every: None,
            at_most: None,
        }
    }
}

/// The apps, and everything that they were answered so far.
pub(crate) struct Apps {
    client: Client,
    texts: Texts,
    seed: u64,
    next: u64,
    /// The right answer to the message before: what a confused rater writes.
    other: String,
    pub(crate) asked: Vec<Asked>,
}

impl Apps {
    pub(crate) fn new(client: Client, seed: u64) -> Self {
        let mut texts = Texts::new(seed);
        let other = texts.normal().answer;
        Self {
            client,
            texts,
            seed,
            next: 0,
            other,
            asked: Vec::new(),
        }
    }

    /// Asks until `over` says so or `at_most` were asked, then waits for what is under way, so that phases don't mix.
    pub(crate) async fn ask(
        &mut self,
        traffic: Traffic,
        mut over: impl FnMut(&[Asked]) -> bool,
    ) -> Result<(), Error> {
        let first = self.asked.len();
        let mut under_way = JoinSet::new();
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut due = Instant::now();
        let mut left = traffic.at_most.unwrap_or(usize::MAX);
        let mut ending = false;
        loop {
            ending = ending || over(&self.asked[first..]) || left == 0;
            let room = !ending && (under_way.len() as u64) < APPS;
            if ending && under_way.is_empty() {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some(done) = under_way.join_next() => self.asked.push(done??),
                () = sleep_until(due), if room => {
                    under_way.spawn(self.question(traffic));
                    left -= 1;
                    due = Instant::now() + traffic.every.unwrap_or_default();
                }
                _ = look.tick() => {}
            }
        }
    }

    /// The next message on its way: asked, answered, judged.
    fn question(
        &mut self,
        traffic: Traffic,
    ) -> impl Future<Output = Result<Asked, Error>> + 'static {
        let message = self.texts.of_era(traffic.era);
        let other = std::mem::replace(&mut self.other, message.answer.clone());
        let index = self.next;
        self.next += 1;
        exchange(
            self.client.clone(),
            self.seed,
            index,
            traffic,
            message,
            other,
        )
    }
}

async fn exchange(
    client: Client,
    seed: u64,
    index: u64,
    traffic: Traffic,
    message: Message,
    other: String,
) -> Result<Asked, Error> {
    let user = match traffic.customers {
        true => format!("customer-{index}"),
        false => format!("app-{}", index % APPS),
    };
    let answer = ask(&client, index, &user, &message.text).await?;
    let opinion = match traffic.slipped {
        true => Some(raters::slipped(&other)),
        false => raters::opinion(seed, index, &answer.text, &message.answer, &other),
    };
    if let Some(opinion) = &opinion {
        let correction = opinion.correction.as_deref();
        let mut attempt = 0;
        while let Err(error) = client
            .feedback(&answer.id, opinion.rating, correction)
            .await
        {
            attempt += 1;
            wait_or(error, attempt).await?;
        }
    }
    Ok(Asked {
        index,
        era: traffic.era,
        kind: message.kind.to_string(),
        exact: raters::exact(&answer.text, &message.answer),
        text: message.text,
        answer: answer.text,
        request_id: answer.id,
        adapter: answer.adapter,
        valid: answer.valid,
        prompt_tokens: answer.prompt_tokens,
        corrected: opinion.as_ref().is_some_and(|o| o.correction.is_some()),
        rated: opinion.is_some(),
    })
}

async fn ask(client: &Client, index: u64, user: &str, text: &str) -> Result<Answer, Error> {
    let stream = index % 3 == 1;
    let mut attempt = 0;
    loop {
        match client.chat(text, user, stream).await {
            Ok(answer) => return Ok(answer),
            Err(error) => {
                attempt += 1;
                wait_or(error, attempt).await?;
            }
        }
    }
}

/// Waits where asking again makes sense, else gives the error back.
async fn wait_or(error: Error, attempt: u32) -> Result<(), Error> {
    match error.retry_after() {
        Some(wait) if attempt < ATTEMPTS => {
            sleep(wait).await;
            Ok(())
        }
        _ => Err(error),
    }
}
