//! Blind comparisons that wait for people, and what people said.
//!
//! A candidate's pairs are a file that is created once. A vote on one of them is a file as well, named after the pair: whoever comes
//! second finds it there, on whichever replica, so that a pair has one vote and nobody's is written over. A third file says that nothing more is
//! asked. None of them has a text: what was asked and answered is in the exchanges, and goes with them; of what is forgotten nobody is asked, and
//! what is left of it here are ids.

use chrono::{DateTime, Utc};
use retune_task::{Choice, Marks, Side};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::ledger::Ledger;
use crate::place::Place;

/// What a candidate was compared by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pairs {
    /// The task.
    pub task: String,
    /// The candidate's number.
    pub number: u32,
    /// The run that made it.
    pub run_id: String,
    /// Who judged: what else judges is compared with people by itself.
    #[serde(default)]
    pub judge: Option<String>,
    /// Until then they wait.
    pub until: DateTime<Utc>,
    /// What makes an answer better, in the owner's words.
    pub criteria: Option<String>,
    /// In the order in which both were asked.
    pub pairs: Vec<Pair>,
}

/// Two answers to one prompt, by their exchanges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Tells nothing of what is in it.
    pub id: String,
    /// The exchange whose prompt both were asked.
    pub request_id: String,
    /// The answer on the left; none where there was none.
    pub left: Option<String>,
    /// The answer on the right.
    pub right: Option<String>,
    /// Where the candidate sits.
    pub candidate: Side,
    /// The candidate's answer keeps the task's format.
    pub format_valid: bool,
    /// The baseline's does.
    pub baseline_format_valid: bool,
    /// Parts of the traffic that the prompt belongs to, each by what it is one of.
    pub parts: Vec<(String, String)>,
    /// What is known without asking people: the answers are alike, one is none, or a model has judged.
    pub judged: Option<Choice>,
    /// Whether people are asked.
    pub asked: bool,
}

/// What somebody said of a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairVote {
    /// When it was said.
    pub at: DateTime<Utc>,
    /// The id of the key with which it was said; none where there are no keys.
    pub by: Option<String>,
    /// Which answer is better.
    pub choice: Choice,
    /// The left answer's marks.
    #[serde(default)]
    pub left: Marks,
    /// The right answer's.
    #[serde(default)]
    pub right: Marks,
}

/// What became of a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Voted {
    /// It counts.
    Kept,
    /// The pair has one already.
    Late,
    /// Nobody is asked any more.
    Ended,
}

impl Pairs {
    /// Those that people are asked about.
    pub fn asked(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().filter(|pair| pair.asked)
    }
}

impl Ledger {
    /// Puts a candidate's pairs; false if they were there.
    pub async fn put_pairs(&self, pairs: &Pairs) -> Result<bool, Error> {
        let pairs = pairs.clone();
        self.blocking(move |store| {
            folder(store, &pairs.task, pairs.number)
                .join(PAIRS)
                .create_json_once(&pairs)
        })
        .await
    }

    /// A candidate's pairs.
    pub async fn pairs(&self, task: &str, number: u32) -> Result<Option<Pairs>, Error> {
        let task = task.to_owned();
        let found = self
            .blocking(move |store| folder(store, &task, number).join(PAIRS).read_json())
            .await?;
        let mut found: Vec<Pairs> = found.into_iter().collect();
        self.ask_nothing_forgotten(&mut found).await?;
        Ok(found.pop())
    }

    /// Of exchanges that were forgotten nobody is asked, and nothing is known.
    async fn ask_nothing_forgotten(&self, all: &mut [Pairs]) -> Result<(), Error> {
        let ids = |pair: &Pair| {
            let ids = [
                Some(&pair.request_id),
                pair.left.as_ref(),
                pair.right.as_ref(),
            ];
            ids.into_iter().flatten().cloned().collect::<Vec<String>>()
        };
        let pairs = all.iter().flat_map(|pairs| &pairs.pairs);
        let every: Vec<String> = pairs.flat_map(ids).collect();
        let gone = self.forgotten(every.iter().map(String::as_str)).await?;
        for pair in all.iter_mut().flat_map(|pairs| &mut pairs.pairs) {
            if ids(pair).iter().any(|id| gone.contains(id)) {
                pair.asked = false;
                pair.judged = None;
            }
        }
        Ok(())
    }

    /// All pairs of a task's candidates, oldest candidate first.
    pub async fn all_pairs(&self, task: &str) -> Result<Vec<Pairs>, Error> {
        let task = task.to_owned();
        self.blocking(move |store| all(store, &task, |_| Ok(true)))
            .await
    }

    /// Pairs of a task that people are asked about at a time.
    pub async fn open_pairs(&self, task: &str, now: DateTime<Utc>) -> Result<Vec<Pairs>, Error> {
        let task = task.to_owned();
        let open = self.blocking(move |store| {
            let is_open = |folder: &Place| Ok(!folder.names()?.iter().any(|name| name == END));
            let mut open = Vec::new();
            for pairs in all(store, &task, is_open)? {
                match now < pairs.until {
                    true => open.push(pairs),
                    // So that nobody reads it again.
                    false => end(store, &task, pairs.number)?,
                }
            }
            Ok(open)
        });
        let mut open = open.await?;
        self.ask_nothing_forgotten(&mut open).await?;
        Ok(open)
    }

    /// How many of a task's pairs wait for somebody's vote at a time.
    pub async fn pairs_waiting(&self, task: &str, now: DateTime<Utc>) -> Result<usize, Error> {
        let mut waiting = 0;
        for pairs in self.open_pairs(task, now).await? {
            let voted = self.voted(task, pairs.number).await?.len();
            waiting += pairs.asked().count().saturating_sub(voted);
        }
        Ok(waiting)
    }

    /// Keeps a vote on one of a candidate's pairs, if it is the first.
    pub async fn vote(&self, pairs: &Pairs, pair: &str, vote: &PairVote) -> Result<Voted, Error> {
        let (task, number, vote) = (pairs.task.clone(), pairs.number, vote.clone());
        let name = format!("{pair}.json");
        let until = pairs.until;
        self.blocking(move |store| {
            let folder = folder(store, &task, number);
            if vote.at >= until || folder.join(END).read()?.is_some() {
                return Ok(Voted::Ended);
            }
            let is_first = folder.join(VOTES).join(name).create_json_once(&vote)?;
            Ok(if is_first { Voted::Kept } else { Voted::Late })
        })
        .await
    }

    /// The ids of a candidate's pairs that have a vote.
    pub async fn voted(&self, task: &str, number: u32) -> Result<Vec<String>, Error> {
        let task = task.to_owned();
        self.blocking(move |store| voted(&folder(store, &task, number).join(VOTES)))
            .await
    }

    /// The votes on a candidate's pairs, by the pairs' ids.
    pub async fn votes(&self, task: &str, number: u32) -> Result<Vec<(String, PairVote)>, Error> {
        let task = task.to_owned();
        self.blocking(move |store| {
            let folder = folder(store, &task, number).join(VOTES);
            let mut votes = Vec::new();
            for id in voted(&folder)? {
                let vote = folder.join(format!("{id}.json")).read_json()?;
                votes.extend(vote.map(|vote| (id, vote)));
            }
            Ok(votes)
        })
        .await
    }

    /// Asks nobody any more about a candidate's pairs.
    pub async fn end_pairs(&self, task: &str, number: u32) -> Result<(), Error> {
        let task = task.to_owned();
        self.blocking(move |store| end(store, &task, number)).await
    }
}

fn end(store: &Place, task: &str, number: u32) -> Result<(), Error> {
    let folder = folder(store, task, number);
    // Of candidates that nobody was asked about there is nothing to end.
    if folder.join(PAIRS).read()?.is_some() {
        let at = serde_json::json!({ "at": Utc::now() });
        folder.join(END).create_json_once(&at)?;
    }
    Ok(())
}

const PAIRS: &str = "pairs.json";
const VOTES: &str = "votes";
const END: &str = "end.json";

fn folder(store: &Place, task: &str, number: u32) -> Place {
    let of_task = store.join("pairs").join(task);
    of_task.join(number.to_string())
}

fn all(
    store: &Place,
    task: &str,
    is_wanted: impl Fn(&Place) -> Result<bool, Error>,
) -> Result<Vec<Pairs>, Error> {
    let of_task = store.join("pairs").join(task);
    let names = of_task.names()?;
    let mut numbers: Vec<u32> = names.iter().filter_map(|name| name.parse().ok()).collect();
    numbers.sort_unstable();
    let mut all = Vec::new();
    for number in numbers {
        let folder = folder(store, task, number);
        if is_wanted(&folder)? {
            all.extend(folder.join(PAIRS).read_json()?);
        }
    }
    Ok(all)
}

fn voted(folder: &Place) -> Result<Vec<String>, Error> {
    let names = folder.names()?;
    let ids = names.iter().filter_map(|name| name.strip_suffix(".json"));
    let mut ids: Vec<String> = ids.map(str::to_owned).collect();
    ids.sort_unstable();
    Ok(ids)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use chrono::TimeDelta;
    use retune_task::Config;

    use super::*;

    fn pairs(number: u32, until: DateTime<Utc>) -> Pairs {
        let pair = |n: u32| Pair {
            id: format!("pair-{number}-{n}"),
            request_id: format!("request-{n}"),
            left: Some(format!("left-{n}")),
            right: None,
            candidate: Side::Right,
            format_valid: true,
            baseline_format_valid: false,
            parts: vec![("prompt".to_owned(), "short".to_owned())],
            judged: (n == 0).then_some(Choice::Tie),
            asked: n > 0,
        };
        Pairs {
            task: "ask".to_owned(),
            number,
            run_id: "run-1".to_owned(),
            judge: None,
            until,
            criteria: None,
            pairs: (0..3).map(pair).collect(),
        }
    }

    async fn ledger(folder: &std::path::Path) -> Ledger {
        let url = format!("file:{}", folder.join("store").display());
        let variables = [("RETUNE_STORE__URL".to_owned(), url)];
        let config = Config::load(None, variables).unwrap();
        Ledger::open(&config.store).await.unwrap()
    }

    #[tokio::test]
    async fn a_pair_has_one_vote_until_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(folder.path()).await;
        let now = Utc::now();
        let (first, tenth) = (
            pairs(2, now + TimeDelta::days(1)),
            pairs(10, now + TimeDelta::days(2)),
        );
        assert!(ledger.put_pairs(&tenth).await.unwrap());
        assert!(ledger.put_pairs(&first).await.unwrap());
        assert!(!ledger.put_pairs(&first).await.unwrap());
        assert_eq!(ledger.pairs("ask", 2).await.unwrap().as_ref(), Some(&first));
        assert_eq!(ledger.pairs("ask", 3).await.unwrap(), None);
        assert_eq!(first.asked().count(), 2);
        let open = async |at| ledger.open_pairs("ask", at).await.unwrap();
        assert_eq!(open(now).await, [first.clone(), tenth.clone()]);

        let vote = |choice, at| PairVote {
            at,
            by: Some("key-1".to_owned()),
            choice,
            left: Marks::from([("style".to_owned(), 4.0)]),
            right: Marks::new(),
        };
        let cast = async |choice, at| {
            let vote = vote(choice, at);
            ledger.vote(&first, "pair-2-1", &vote).await.unwrap()
        };
        assert_eq!(cast(Choice::Left, now).await, Voted::Kept);
        assert_eq!(cast(Choice::Right, now).await, Voted::Late);
        assert_eq!(cast(Choice::Right, first.until).await, Voted::Ended);
        let votes = ledger.votes("ask", 2).await.unwrap();
        assert_eq!(votes, [("pair-2-1".to_owned(), vote(Choice::Left, now))]);
        assert_eq!(ledger.voted("ask", 2).await.unwrap(), ["pair-2-1"]);
        assert!(ledger.voted("ask", 10).await.unwrap().is_empty());

        // Whoever looks after their time ends them.
        assert_eq!(open(first.until).await, std::slice::from_ref(&tenth));
        for number in [2, 99] {
            ledger.end_pairs("ask", number).await.unwrap();
        }
        assert_eq!(open(now).await, std::slice::from_ref(&tenth));
        assert_eq!(
            ledger.all_pairs("ask").await.unwrap(),
            [first.clone(), tenth]
        );
        let late = vote(Choice::Tie, now);
        let late = ledger.vote(&first, "pair-2-2", &late).await;
        assert_eq!(late.unwrap(), Voted::Ended);
        ledger.close().await.unwrap();
    }

    #[tokio::test]
    async fn of_many_who_vote_at_once_one_counts() {
        let folder = tempfile::tempdir().unwrap();
        let ledger = ledger(folder.path()).await;
        let pairs = pairs(1, Utc::now() + TimeDelta::days(1));
        ledger.put_pairs(&pairs).await.unwrap();
        let votes = (0..16).map(|n| {
            let (ledger, pairs) = (ledger.clone(), pairs.clone());
            tokio::spawn(async move {
                let vote = PairVote {
                    at: Utc::now(),
                    by: Some(n.to_string()),
                    choice: Choice::ALL[n % 3],
                    left: Marks::new(),
                    right: Marks::new(),
                };
                ledger.vote(&pairs, "pair-1-1", &vote).await.unwrap()
            })
        });
        let mut kept = 0;
        for vote in votes.collect::<Vec<_>>() {
            kept += u32::from(vote.await.unwrap() == Voted::Kept);
        }
        assert_eq!(kept, 1);
        assert_eq!(ledger.votes("ask", 1).await.unwrap().len(), 1);
        ledger.close().await.unwrap();
    }
}
