//! From the false alarms that an operator accepts to the height at which an e-process alarms.
//!
//! An e-detector that alarms at A has an average run length to a false alarm of at least A observations. One expected in a quarter
//! is not none: a run length of exactly a quarter still means up to 63 % chance of a false alarm in it. So the operator
//! says how many are acceptable a quarter, for all of an adapter's streams together, and each stream gets its equal part.

/// A: the mean of an e-detector's components at which it alarms.
///
/// `exchanges_per_quarter / (false_alarms_per_quarter / streams)`, at least 1. A stream that gets an observation with only
/// some of the exchanges alarms falsely less often than that.
pub fn threshold(exchanges_per_quarter: u64, streams: usize, false_alarms_per_quarter: f64) -> f64 {
    (exchanges_per_quarter as f64 * streams as f64 / false_alarms_per_quarter).max(1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_give_ten_million_a_stream() {
        assert_eq!(threshold(1_000_000, 1, 0.1), 1e7);
        assert_eq!(threshold(1_000_000, 5, 0.1), 5e7);
        assert_eq!(threshold(20_000, 1, 1.0), 20_000.0);
        assert_eq!(threshold(0, 1, 0.1), 1.0);
    }

    proptest! {
        #[test]
        fn all_streams_together_keep_the_budget(exchanges in 1_u64..1_000_000_000, streams in 1_usize..50, alarms in 0.001_f64..1.0) {
            let a = threshold(exchanges, streams, alarms);
            let expected = streams as f64 * exchanges as f64 / a;
            prop_assert!((expected / alarms - 1.0).abs() < 1e-9);
        }
    }
}
