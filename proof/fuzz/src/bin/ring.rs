//! libFuzzer's face of `throughline_fuzz::ring`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| throughline_fuzz::ring::run(data));
