//! Whether a training went on to learn its examples by heart: the loss on the development split rose again while the training's fell.
//! The chosen epoch is the one before; what it says is that more epochs are for nothing, and more examples are not. Pure.

use crate::report::Curve;

/// A rise below this share of the loss is not worth a word.
const RISE: f64 = 0.1;

/// What a report says of it; nothing where there is nothing to say. An epoch that nobody is known to have chosen is the one with
/// the lowest loss.
pub(crate) fn in_words(curve: &[Curve], chosen_epoch: Option<u64>) -> Option<String> {
    let ends: Vec<(&Curve, f64)> = curve
        .iter()
        .filter_map(|point| Some((point, point.development_loss?)))
        .filter(|(_, loss)| loss.is_finite())
        .collect();
    let (best, lowest) = match chosen_epoch {
        Some(chosen) => *ends.iter().find(|(point, _)| point.epoch == chosen)?,
        None => *ends.iter().min_by(|a, b| a.1.total_cmp(&b.1))?,
    };
    let (last, risen) = *ends.last()?;
    let (before, after) = (best.train_loss?, last.train_loss?);
    let is_learned_by_heart =
        last.step > best.step && risen > lowest * (1.0 + RISE) && after < before;
    let adapter = match chosen_epoch {
        Some(chosen) => format!(
            "The adapter is that of epoch {chosen}; fewer epochs, or lora.patience, would have done"
        ),
        None => "Of which epoch the adapter is, its trainer knows".to_owned(),
    };
    is_learned_by_heart.then(|| {
        format!(
            "after epoch {} the training learned its examples by heart: until epoch {} its own loss fell from {before:.4} to {after:.4}, and that on the \
             development split rose from {lowest:.4} to {risen:.4}. {adapter}. More examples help more",
            best.epoch, last.epoch
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(losses: &[(f64, f64)]) -> Vec<Curve> {
        let begin = Curve {
            step: 0,
            epoch: 0,
            train_loss: None,
            held_out_loss: Some(3.0),
            development_loss: None,
        };
        let epochs = losses
            .iter()
            .zip(1..)
            .map(|((train, development), n)| Curve {
                step: n * 10,
                epoch: n,
                train_loss: Some(*train),
                held_out_loss: Some(1.0),
                development_loss: Some(*development),
            });
        std::iter::once(begin).chain(epochs).collect()
    }

    #[test]
    fn a_loss_that_rose_again_while_the_training_s_fell_is_told() {
        let by_heart = curve(&[(1.0, 0.9), (0.6, 0.7), (0.2, 1.1)]);
        for chosen in [Some(2), None] {
            let said = in_words(&by_heart, chosen).unwrap_or_default();
            for part in ["after epoch 2", "0.6000 to 0.2000", "0.7000 to 1.1000"] {
                assert!(said.contains(part), "{part} in {said}");
            }
            assert_eq!(said.contains("patience"), chosen.is_some());
        }
        for (losses, chosen) in [
            (&[(1.0, 0.9), (0.6, 0.7), (0.2, 0.6)][..], Some(3)),
            (&[(1.0, 0.9), (0.6, 0.7), (0.2, 0.705)], Some(2)),
            (&[(1.0, 0.9), (0.6, 0.7), (0.7, 1.1)], Some(2)),
            (&[(1.0, 0.9)], Some(1)),
            (&[(1.0, 0.9), (0.6, f64::NAN)], Some(1)),
            (&[(1.0, 0.9)], Some(0)),
            (&[], None),
        ] {
            assert_eq!(in_words(&curve(losses), chosen), None, "{losses:?}");
        }
    }
}
