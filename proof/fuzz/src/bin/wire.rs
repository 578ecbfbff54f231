//! libFuzzer's face of `throughline_fuzz::wire`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| throughline_fuzz::wire::run(data));
