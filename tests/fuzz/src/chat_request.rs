//! Requests to `/v1/chat/completions`.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use retune_wire::Request;

fuzz_target!(|body: &[u8]| retune_fuzz::request(body, Request::chat, retune_fuzz::generation));
fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    retune_fuzz::mutate::json(data, size, most, seed)
});
