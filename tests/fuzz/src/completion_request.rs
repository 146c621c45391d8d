//! Requests to `/v1/completions`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use retune_wire::Request;

fuzz_target!(|body: &[u8]| retune_fuzz::request(body, Request::completion));
