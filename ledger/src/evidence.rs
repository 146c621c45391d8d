//! Why an alarm is there, as its evidence keeps it: the monitor computes it once, and whoever shows an alarm reads it.

use serde::{Deserialize, Serialize};

/// What sets the trouble apart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Why {
    /// Conversations that are usual.
    pub usual: usize,
    /// Conversations that are the trouble.
    pub trouble: usize,
    /// How well a classifier tells a conversation that it has not seen: the area under its ROC curve, 0.5 for not at all, 1 for always.
    /// None where there are too few to train one.
    pub separable: Option<f64>,
    /// The Jensen-Shannon distance of both groups' words, from 0 to 1.
    pub words_distance: f64,
    /// Their lengths in characters, compared by Kolmogorov and Smirnov: the statistic, and its p value.
    pub lengths: Option<(f64, f64)>,
    /// The population stability index of the clusters.
    pub clusters_stability: f64,
    /// Words and pairs of words that moved most, those first that are more frequent in the trouble.
    pub phrases: Vec<Moved>,
    /// Kinds of requests that moved most.
    pub clusters: Vec<Cluster>,
    /// Where the trouble sits: a key, a value of the metadata, a language, a length.
    pub slices: Vec<Slice>,
    /// The conversations that are the most typical of the trouble, best first: their last answers' ids, and the classifier's score.
    pub rows: Vec<Typical>,
}

/// A share of each group.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Shares {
    /// Of the usual.
    pub usual: f64,
    /// Of the trouble.
    pub trouble: f64,
    /// How many standard errors lie between them.
    pub z: f64,
}

/// A phrase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// In lower case, digits as 0.
    pub phrase: String,
    /// Of conversations that have it.
    #[serde(flatten)]
    pub shares: Shares,
}

/// A kind of requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// What is said in it more than elsewhere.
    pub phrases: Vec<String>,
    /// Of conversations that belong to it.
    #[serde(flatten)]
    pub shares: Shares,
}

/// A part of the traffic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// `api_key`, `language`, `length`, or `metadata.` and a name.
    pub by: String,
    /// Which.
    pub value: String,
    /// Of conversations that belong to it.
    #[serde(flatten)]
    pub shares: Shares,
}

/// A conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Typical {
    /// Its last answer's id.
    pub request_id: String,
    /// Log odds of being the trouble, by a classifier that has not seen it; 0 where there is none.
    pub score: f64,
}

impl Why {
    /// What the figures mean, in a sentence.
    pub fn verdict(&self) -> String {
        match self.separable {
            None => format!(
                "{} conversations are the trouble, beside {} usual ones: too few to say what sets them apart.",
                self.trouble, self.usual
            ),
            Some(area) if area < 0.6 => {
                "Nothing in what was asked tells the trouble from the usual: look at this side, the model, its server, or what people expect."
                    .to_owned()
            }
            Some(area) if area < 0.8 => {
                "In part of the trouble something else is asked for than usual.".to_owned()
            }
            Some(_) => "In the trouble something else is asked for than usual.".to_owned(),
        }
    }
}
