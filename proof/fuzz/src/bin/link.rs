//! libFuzzer's face of `throughline_fuzz::link`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| throughline_fuzz::link::run(data));
