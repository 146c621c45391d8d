//! How a job trains: what it asks for, and for the rest what its file's size suggests.

use retune_ledger::{Job, JobMethod, JobSettings};
use retune_trainer::{DpoSettings, LoraSettings, recommended_learning_rate};

/// Below so many examples fewer of them make a step, and some of the adapter's inputs are dropped.
const FEW: u64 = 500;

/// Settings for a job on `examples` examples and a base that is `hidden` wide, with what `auto` became.
///
/// Preferences are learned with a tenth of the learning rate and in fewer epochs: what people liked is soon known too well (Rafailov et
/// al. 2023 take 1e-6 where 2e-5 is usual).
///
/// Epochs, batch and dropout follow "LoRA Without Regret" (Thinking Machines 2025): one to three epochs, a batch of 8 to 16, a
/// little dropout where there is little to learn from.
pub(crate) fn recipe(job: &Job, examples: u64, hidden: usize) -> (JobSettings, LoraSettings) {
    let n_epochs = job.n_epochs.unwrap_or(match (job.method, examples) {
        (JobMethod::Dpo, 0..FEW) => 2,
        (JobMethod::Dpo, _) => 1,
        (_, 0..5_000) => 3,
        (_, 5_000..50_000) => 2,
        _ => 1,
    });
    let (usual, beta) = match job.method {
        JobMethod::Supervised => (1.0, None),
        JobMethod::Dpo => (0.1, Some(dpo(job).beta)),
    };
    let suggested = if examples < FEW { 8 } else { 16 };
    let most = u32::try_from(examples.max(1)).unwrap_or(u32::MAX);
    let batch_size = job.batch_size.unwrap_or(suggested).min(most);
    let learning_rate_multiplier = job.learning_rate_multiplier.unwrap_or(usual);
    let chosen = JobSettings {
        n_epochs,
        batch_size,
        learning_rate_multiplier,
        beta,
    };
    let settings = LoraSettings {
        dropout: if examples < FEW { 0.05 } else { 0.0 },
        learning_rate: learning_rate_multiplier * recommended_learning_rate(hidden),
        batch_size: batch_size as usize,
        epochs: n_epochs as usize,
        seed: job.seed,
        ..LoraSettings::default()
    };
    (chosen, settings)
}

/// How a job learns from preferences.
pub(crate) fn dpo(job: &Job) -> DpoSettings {
    let usual = DpoSettings::default();
    DpoSettings {
        beta: job.beta.unwrap_or(usual.beta),
        ..usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::tests::asked;

    #[test]
    fn what_is_asked_comes_before_what_the_size_suggests() {
        let mut job = Job {
            n_epochs: None,
            batch_size: None,
            ..asked("support")
        };
        for (examples, epochs, batch, dropout) in [
            (1, 3, 1, 0.05),
            (499, 3, 8, 0.05),
            (500, 3, 16, 0.0),
            (5_000, 2, 16, 0.0),
            (50_000, 1, 16, 0.0),
        ] {
            let (chosen, settings) = recipe(&job, examples, 2000);
            assert_eq!((chosen.n_epochs, chosen.batch_size), (epochs, batch));
            assert_eq!((settings.dropout, settings.seed), (dropout, 7));
            assert_eq!(settings.learning_rate, 5e-4);
        }
        job.n_epochs = Some(9);
        job.batch_size = Some(64);
        job.learning_rate_multiplier = Some(0.5);
        let (chosen, settings) = recipe(&job, 30, 2000);
        assert_eq!((chosen.n_epochs, chosen.batch_size), (9, 30));
        assert_eq!((settings.epochs, settings.batch_size), (9, 30));
        assert_eq!(settings.learning_rate, 2.5e-4);
    }

    #[test]
    fn preferences_are_learned_gently() {
        let mut job = Job {
            method: JobMethod::Dpo,
            n_epochs: None,
            ..asked("support")
        };
        for (examples, epochs) in [(499, 2), (500, 1)] {
            let (chosen, settings) = recipe(&job, examples, 2000);
            assert_eq!((chosen.n_epochs, chosen.beta), (epochs, Some(0.1)));
            assert_eq!(settings.learning_rate, 5e-5);
        }
        job.beta = Some(0.5);
        assert_eq!(recipe(&job, 1, 2000).0.beta, Some(0.5));
    }
}
