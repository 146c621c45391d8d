//! AdamW, clipping and the learning rate's course.

use candle_core::{Result, Tensor};

use crate::linear::Gradients;
use crate::ops::math::dot;
use crate::ops::slice::{edit, read};
use crate::settings::Decay;

/// AdamW (Loshchilov & Hutter 2019) as PyTorch computes it. Vectors (the norms' weights) are never decayed.
pub(crate) struct AdamW {
    pub(crate) beta1: f64,
    pub(crate) beta2: f64,
    pub(crate) epsilon: f64,
    pub(crate) weight_decay: f64,
    step: i32,
    /// Means of the gradient and of its square, by slot.
    moments: Vec<(Vec<f32>, Vec<f32>)>,
}

impl AdamW {
    pub(crate) fn new(parameters: &[Tensor], beta2: f64, weight_decay: f64) -> Self {
        let zeros = |tensor: &Tensor| {
            (
                vec![0.0; tensor.elem_count()],
                vec![0.0; tensor.elem_count()],
            )
        };
        let moments = parameters.iter().map(zeros).collect();
        AdamW {
            beta1: 0.9,
            beta2,
            epsilon: 1e-8,
            weight_decay,
            step: 0,
            moments,
        }
    }

    pub(crate) fn steps_done(&self) -> i32 {
        self.step
    }

    /// Means of each gradient and of its square, by slot.
    pub(crate) fn moments(&self) -> impl Iterator<Item = (&[f32], &[f32])> {
        let moments = self.moments.iter();
        moments.map(|(mean, square)| (mean.as_slice(), square.as_slice()))
    }

    /// As it was after some steps.
    pub(crate) fn restore(&mut self, step: i32, moments: Vec<(Vec<f32>, Vec<f32>)>) {
        self.step = step;
        self.moments = moments;
    }

    /// Changes the parameters by their gradients, each multiplied by `clip`.
    pub(crate) fn step(
        &mut self,
        parameters: &[Tensor],
        gradients: &Gradients,
        rate: f64,
        clip: f64,
    ) -> Result<()> {
        self.step += 1;
        let (b1, b2, clip) = (self.beta1 as f32, self.beta2 as f32, clip as f32);
        let rate1 = (rate / (1.0 - self.beta1.powi(self.step))) as f32;
        let root2 = (1.0 - self.beta2.powi(self.step)).sqrt() as f32;
        let epsilon = self.epsilon as f32;
        for (slot, (parameter, (mean, square))) in
            parameters.iter().zip(&mut self.moments).enumerate()
        {
            let Some(gradient) = gradients.get(slot) else {
                continue;
            };
            let decay = if parameter.rank() > 1 {
                1.0 - rate * self.weight_decay
            } else {
                1.0
            } as f32;
            let gradient = read(gradient)?;
            edit(parameter, |parameter| {
                let moments = mean.iter_mut().zip(square.iter_mut());
                for ((p, g), (m, v)) in parameter.iter_mut().zip(gradient.iter()).zip(moments) {
                    let g = g * clip;
                    *m = b1 * *m + (1.0 - b1) * g;
                    *v = b2 * *v + (1.0 - b2) * g * g;
                    *p = *p * decay - rate1 * *m / (v.sqrt() / root2 + epsilon);
                }
            })?;
        }
        Ok(())
    }
}

/// Length of all gradients as one vector.
pub(crate) fn norm(gradients: &Gradients) -> Result<f64> {
    let mut total = 0.0;
    for gradient in gradients.all() {
        let gradient = read(gradient)?;
        // Portions in f64: one f32 sum over millions of squares would lose digits.
        total += gradient
            .chunks(1024)
            .map(|part| f64::from(dot(part, part)))
            .sum::<f64>();
    }
    Ok(total.sqrt())
}

/// What the gradients must be multiplied by so that their length is at most `longest`, as PyTorch's `clip_grad_norm_`.
pub(crate) fn clip(norm: f64, longest: f64) -> f64 {
    if longest > 0.0 {
        (longest / (norm + 1e-6)).min(1.0)
    } else {
        1.0
    }
}

/// Rises in a line over `warmup` steps to `peak`, then takes its course to the end of `steps`. `step` counts from 0.
pub(crate) fn learning_rate(
    decay: Decay,
    step: usize,
    steps: usize,
    warmup: usize,
    peak: f64,
) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
    match decay {
        Decay::Cosine => peak * 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        Decay::Linear => peak * (1.0 - done),
        Decay::Constant => peak,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use candle_core::Device;

    /// The figures are torch.optim.AdamW's (lr 0.1, weight_decay 0.1, betas 0.9 and 0.999), on p = [[1, -2]] with the
    /// gradients [[0.5, 0.1]] and then [[-0.3, 0.2]].
    #[test]
    fn two_steps_by_hand() {
        let p = Tensor::new(&[[1f32, -2.0]], &Device::Cpu).unwrap();
        let mut adam = AdamW::new(std::slice::from_ref(&p), 0.999, 0.1);
        let mut by_hand = [(1f64, 0f64, 0f64), (-2.0, 0.0, 0.0)];
        for (t, g) in [[0.5f32, 0.1], [-0.3, 0.2]].into_iter().enumerate() {
            let mut gradients = Gradients::new(1);
            gradients
                .add(0, Tensor::new(&[g], &Device::Cpu).unwrap())
                .unwrap();
            adam.step(std::slice::from_ref(&p), &gradients, 0.1, 1.0)
                .unwrap();
            for ((p, m, v), g) in by_hand.iter_mut().zip(g) {
                let g = f64::from(g);
                *p -= 0.1 * 0.1 * *p;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.999 * *v + 0.001 * g * g;
                let t = t as i32 + 1;
                *p -= 0.1 * (*m / (1.0 - 0.9f64.powi(t)))
                    / ((*v / (1.0 - 0.999f64.powi(t))).sqrt() + 1e-8);
            }
        }
        for (a, (b, ..)) in p
            .flatten_all()
            .unwrap()
            .to_vec1::<f32>()
            .unwrap()
            .into_iter()
            .zip(by_hand)
        {
            assert!((f64::from(a) - b).abs() < 1e-5, "{a} is not {b}");
        }
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let rates = |decay| -> Vec<f64> {
            (0..100)
                .map(|step| learning_rate(decay, step, 100, 10, 2.0))
                .collect()
        };
        for decay in [Decay::Cosine, Decay::Linear] {
            let rates = rates(decay);
            assert_eq!((rates[0], rates[9], rates[10]), (0.2, 2.0, 2.0));
            assert!(rates[10..].windows(2).all(|w| w[1] < w[0]));
            assert!(rates[99] > 0.0 && rates[99] < 0.03);
        }
        assert!((rates(Decay::Linear)[55] - 1.0).abs() < 1e-12);
        assert_eq!(rates(Decay::Constant)[99], 2.0);
        assert_eq!(learning_rate(Decay::Cosine, 0, 1, 0, 2.0), 2.0);
    }

    #[test]
    fn only_long_gradients_are_clipped() {
        assert_eq!(clip(0.5, 1.0), 1.0);
        assert!((clip(4.0, 1.0) - 0.25).abs() < 1e-6);
        assert_eq!(clip(4.0, 0.0), 1.0, "0 turns clipping off");
    }
}
