//! Requests to `/v1/feedback`.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use retune_wire::Feedback;

fuzz_target!(|body: &[u8]| retune_fuzz::request(body, Feedback::read, accepted));
fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    retune_fuzz::mutate::json(data, size, most, seed)
});

/// What is said of an answer says something, in grades from 1 to 5.
fn accepted(said: &Feedback) {
    assert!(said.rating.is_none_or(|rating| (1..=5).contains(&rating)));
    let grades = said.rubric.iter().flat_map(|rubric| rubric.values());
    for grade in grades {
        assert!((1..=5).contains(&grade.as_u64().expect("a grade")));
    }
    let texts = [&said.correction, &said.comment, &said.preferred_over];
    let says = texts.iter().any(|text| text.is_some());
    assert!(says || said.rating.is_some() || said.rubric.is_some());
    assert_ne!(said.preferred_over.as_ref(), Some(&said.completion_id));
}
