//! Pure statistics: e-processes for failure rates and for windows, their budget of false alarms, permutation tests, sequential tests
//! of votes and of two rates side by side, exact intervals, agreement of raters, distances between distributions.
//!
//! No I/O, no clock, and no randomness but that of a given seed: what a number is, follows from its arguments alone, so a monitor or a run that
//! starts again arrives at the same one. Each file cites where its formula comes from.

mod bernoulli_cusum;
mod budget;
mod distance;
mod interval;
mod kappa;
mod mmd;
mod permutation;
mod sign_test;
mod sprt;
mod two_rates;
mod window_cusum;

pub use bernoulli_cusum::BernoulliCusum;
pub use budget::threshold;
pub use distance::{KolmogorovSmirnov, jensen_shannon, kolmogorov_smirnov, stability_index};
pub use interval::{lower_limit, upper_limit};
pub use kappa::kappa;
pub use mmd::{DenseMmd, DenseUnits, SparseMmd, SparseUnits};
pub use permutation::{Effort, Statistic, holm, permutation_test};
pub use sign_test::sign_test;
pub use sprt::{Sprt, Told};
pub use two_rates::{Side, Tally, TwoRates};
pub use window_cusum::{WindowCusum, p_to_e};
