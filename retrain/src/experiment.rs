//! A small experiment first: a fraction of the examples, one epoch, several learning rates; and the chosen one on half of that fraction.
//!
//! The learning rate is the setting that most often ruins a training, and what is best on a fraction is about best on the whole. The
//! two sizes say whether more examples would help: the loss per doubling.

use retune_trainer::{Example, LoraSettings};

use crate::report::Trial;
use crate::run::Event;
use crate::stages::Observer;
use crate::train::{Examples, Material, Training};
use crate::{Error, Options};

/// Below so many examples a fraction of them says nothing.
const LEAST: usize = 32;

/// The settings with the best learning rate, and what was tried for it; without anything to try they stay as they are.
pub(crate) async fn choose(
    o: &Options,
    examples: &Examples,
    settings: LoraSettings,
    (rates, share): (&[f64], f64),
    observer: Observer<'_>,
) -> Result<(LoraSettings, Vec<Trial>), Error> {
    let some = every(&examples.train, share);
    if rates.is_empty() || some.len() < LEAST {
        return Ok((settings, Vec::new()));
    }
    let with = |learning_rate: f64| LoraSettings {
        learning_rate,
        epochs: 1,
        ..settings.clone()
    };
    let mut trials = Vec::new();
    for rate in rates {
        let with = with(settings.learning_rate * rate);
        trials.push(attempt(o, examples, some.clone(), with, observer).await?);
    }
    let Some(best) = best(&trials) else {
        return Ok((settings, trials));
    };
    let half = every(&some, 0.5);
    trials.push(attempt(o, examples, half, with(best), observer).await?);
    let chosen = LoraSettings {
        learning_rate: best,
        ..settings
    };
    Ok((chosen, trials))
}

/// The learning rate with the lowest loss; one that diverged has none.
fn best(trials: &[Trial]) -> Option<f64> {
    let losses = trials
        .iter()
        .filter_map(|trial| Some((trial.development_loss?, trial.learning_rate)));
    let lowest = losses.min_by(|a, b| a.0.total_cmp(&b.0));
    lowest.map(|(_, rate)| rate)
}

async fn attempt(
    o: &Options,
    examples: &Examples,
    train: Vec<Example>,
    settings: LoraSettings,
    observer: Observer<'_>,
) -> Result<Trial, Error> {
    let count = train.len() as u64;
    let rate = settings.learning_rate;
    let examples = Examples {
        train,
        development: examples.development.clone(),
        held_out: Vec::new(),
    };
    let mut training = Training::of_run(o, None, Material::Examples(examples), settings, None)?;
    while let Some(step) = training.next().await {
        observer(&Event::Experiment(step));
    }
    let development_loss = match training.finish().await {
        Ok(outcome) => outcome.curve.last().and_then(|last| last.development_loss),
        // That is what is tried for.
        Err(Error::Trainer(retune_trainer::Error::Diverged { .. })) => None,
        Err(error) => return Err(error),
    };
    Ok(Trial {
        examples: count,
        learning_rate: rate,
        development_loss,
    })
}

/// A share of the examples, from all of them alike.
fn every(examples: &[Example], share: f64) -> Vec<Example> {
    let wanted = (examples.len() as f64 * share).round() as usize;
    let place = |n: usize| examples.get(n * examples.len() / wanted.max(1)).cloned();
    (0..wanted).filter_map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(learning_rate: f64, development_loss: Option<f64>) -> Trial {
        Trial {
            examples: 100,
            learning_rate,
            development_loss,
        }
    }

    #[test]
    fn the_lowest_loss_wins_and_what_diverged_does_not() {
        let trials = [
            trial(1.0, Some(0.5)),
            trial(2.0, Some(0.4)),
            trial(4.0, None),
        ];
        assert_eq!(best(&trials), Some(2.0));
        assert_eq!(
            best(&[trial(1.0, None), trial(2.0, Some(f64::NAN))]),
            Some(2.0)
        );
        assert_eq!(best(&[trial(1.0, None)]), None);
    }

    #[test]
    fn a_share_is_of_all_alike() {
        let example = |n: u32| Example {
            tokens: vec![n],
            weights: vec![1.0],
        };
        let examples: Vec<Example> = (0..100).map(example).collect();
        let tokens = |share: f64| -> Vec<u32> {
            every(&examples, share)
                .iter()
                .map(|e| e.tokens[0])
                .collect()
        };
        assert_eq!(tokens(0.25), (0..100).step_by(4).collect::<Vec<_>>());
        assert_eq!(tokens(1.0).len(), 100);
        assert_eq!(tokens(0.0), Vec::<u32>::new());
        assert_eq!(tokens(0.33).len(), 33);
    }
}
