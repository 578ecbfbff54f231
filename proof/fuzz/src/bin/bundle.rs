//! libFuzzer's face of `throughline_fuzz::bundle`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| throughline_fuzz::bundle::run(data));
